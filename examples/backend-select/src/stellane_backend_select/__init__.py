"""Backend `select`: an asyncio loop over poll(2) or select(2), for systems with nothing better.

This is all of a third-party backend: a loop, a declaration of what it can do, a probe that
tries it, and the hook that makes it.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Literal

import msgspec

from stellane.backend import Backend, Capability, LoopBackend, Probe, hookimpl

stellane_api_level = 1

SELECTORS = {"poll": selectors.PollSelector, "select": selectors.SelectSelector}


class SelectOptions(msgspec.Struct, frozen=True):
    """[backend.select] of the configuration."""

    call: Literal["poll", "select"] = "poll"
    """The system call to wait with. select(2) cannot watch descriptors from 1024 on."""


stellane_options = SelectOptions


class SelectBackend(LoopBackend):
    """The standard selector loop over `call`."""

    capabilities = frozenset(
        {Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP}
    )

    def __init__(self, options: SelectOptions) -> None:
        super().__init__()
        self.options = options

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop with a selector of its own."""
        return asyncio.SelectorEventLoop(SELECTORS[self.options.call]())


@hookimpl
def stellane_probe(options: SelectOptions) -> Probe:
    """Wait once with the chosen call."""
    with SELECTORS[options.call]() as selector:
        selector.select(0)
    return Probe(usable=True, facts={"call": options.call})


@hookimpl
def stellane_create_backend(options: SelectOptions) -> Backend:
    """The backend of one worker."""
    return SelectBackend(options)
