"""Backend `epoll`: an asyncio loop over Linux epoll (epoll(7))."""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Any

from stellane.backend import Backend, Capability, LoopBackend, Probe, hookimpl

stellane_api_level = 1

__all__ = ["EpollBackend"]


class EpollBackend(LoopBackend):
    """The standard selector loop, always over epoll."""

    capabilities = frozenset(
        {Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP}
    )

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop with an epoll descriptor of its own."""
        return asyncio.SelectorEventLoop(selectors.EpollSelector())


@hookimpl
def stellane_probe(options: Any) -> Probe:  # noqa: ARG001 - it has no options
    """Open an epoll descriptor and poll it once."""
    if not hasattr(select, "epoll"):
        return Probe(usable=False, reason="this system has no epoll", remedy='backend = "asyncio"')
    try:
        with select.epoll() as epoll:
            epoll.poll(0)
    except OSError as error:
        return Probe(usable=False, reason=f"epoll_create1: {error.strerror}", remedy="raise `ulimit -n`")
    return Probe(usable=True)


@hookimpl
def stellane_create_backend(options: Any) -> Backend:  # noqa: ARG001
    """The backend of one worker."""
    return EpollBackend()
