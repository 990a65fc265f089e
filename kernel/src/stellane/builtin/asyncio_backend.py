"""Backend `asyncio`: the standard library's loop, with nothing to install."""

from __future__ import annotations

import asyncio
from typing import Any

from stellane.abc.backend import Backend, Capability, Probe
from stellane.builtin.loop_backend import LoopBackend
from stellane.hookspecs import hookimpl

stellane_api_level = 1


class AsyncioBackend(LoopBackend):
    """`asyncio.SelectorEventLoop` over the best selector of the platform."""

    capabilities = frozenset(
        {Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP}
    )

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        # Not asyncio.new_event_loop(): that follows the policy, which may have been set to another
        # library's loop, and then this backend would not be what its name says.
        return asyncio.SelectorEventLoop()


@hookimpl
def stellane_probe(options: Any) -> Probe:  # noqa: ARG001 - it has no options
    """Open a loop and close it."""
    loop = asyncio.SelectorEventLoop()
    selector = type(getattr(loop, "_selector", loop)).__name__
    loop.close()
    return Probe(usable=True, facts={"selector": selector})


@hookimpl
def stellane_create_backend(options: Any) -> Backend:  # noqa: ARG001
    """The backend of one worker."""
    return AsyncioBackend()
