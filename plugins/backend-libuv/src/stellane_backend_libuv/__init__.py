"""Backend `libuv`: the libuv event loop, through uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop

from stellane.backend import Backend, Capability, LoopBackend, Probe, hookimpl

stellane_api_level = 1

__all__ = ["LibUVBackend"]


class LibUVBackend(LoopBackend):
    """`uvloop.Loop`: libuv's polling and transports behind asyncio's interface."""

    capabilities = frozenset(
        {Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP}
    )

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop of its own, whatever the event loop policy says."""
        return uvloop.new_event_loop()


@hookimpl
def stellane_probe(options: Any) -> Probe:  # noqa: ARG001 - it has no options
    """Run one turn of a libuv loop."""
    try:
        loop = uvloop.new_event_loop()
        try:
            loop.call_soon(loop.stop)
            loop.run_forever()
        finally:
            loop.close()
    except OSError as error:
        return Probe(usable=False, reason=f"libuv cannot open a loop: {error}", remedy="raise `ulimit -n`")
    return Probe(usable=True, facts={"uvloop": uvloop.__version__})


@hookimpl
def stellane_create_backend(options: Any) -> Backend:  # noqa: ARG001
    """The backend of one worker."""
    return LibUVBackend()
