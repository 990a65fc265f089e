"""Backend `io_uring`: stellane-loop's native event loop over Linux io_uring (io_uring(7))."""

from __future__ import annotations

import asyncio
from typing import Any

import stellane_loop
from stellane.backend import Backend, Capability, LoopBackend, Probe, hookimpl

stellane_api_level = 1

__all__ = ["IoUringBackend"]


class IoUringBackend(LoopBackend):
    """One native loop with a ring of its own."""

    capabilities = frozenset(
        {Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP}
    )

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop of its own, whatever the event loop policy says."""
        return stellane_loop.new_io_uring_event_loop()


@hookimpl
def stellane_probe(options: Any) -> Probe:  # noqa: ARG001 - it has no options
    """Set a ring up, and tell apart what keeps it from working."""
    found = stellane_loop.probe_io_uring()
    if not found.usable:
        return Probe(usable=False, reason=found.message, remedy='backend = "epoll"')
    facts = {"stellane-loop": stellane_loop.__version__, "setup_flags": f"{found.setup_flags:#x}"}
    return Probe(usable=True, facts=facts)


@hookimpl
def stellane_create_backend(options: Any) -> Backend:  # noqa: ARG001
    """The backend of one worker."""
    return IoUringBackend()
