"""Backend `epoll`: stellane-loop's native event loop over Linux epoll (epoll(7))."""

from __future__ import annotations

import asyncio
from typing import Any

import stellane_loop
from stellane.backend import Backend, Capability, LoopBackend, Probe, hookimpl
from stellane.config import Config, PerformanceConfig

stellane_api_level = 1

__all__ = ["EpollBackend"]


class EpollBackend(LoopBackend):
    """One native loop with an epoll descriptor of its own."""

    capabilities = frozenset(
        {
            *(Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP),
            *(Capability.OWN_READY_QUEUE, Capability.ADAPTIVE_POLLING),
        }
    )

    def __init__(self, performance: PerformanceConfig | None = None) -> None:
        super().__init__()
        self._performance = performance or PerformanceConfig()
        if self._performance.ready_order == "priority":
            self.priority_variable = stellane_loop.priority

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop of its own, whatever the event loop policy says."""
        loop = stellane_loop.new_epoll_event_loop()
        if self._performance.adaptive_polling:
            loop.set_adaptive_polling(self._performance.poll_spin_us_max)
        if self.priority_variable is not None:
            loop.set_ready_order(stellane_loop.PriorityOrder(self._performance.turn_budget_us / 1e6))
        return loop


@hookimpl
def stellane_probe(options: Any) -> Probe:  # noqa: ARG001 - it has no options
    """Run one turn of a loop."""
    try:
        loop = stellane_loop.new_epoll_event_loop()
        try:
            loop.call_soon(loop.stop)
            loop.run_forever()
        finally:
            loop.close()
    except OSError as error:
        return Probe(usable=False, reason=f"epoll cannot be set up: {error.strerror}", remedy="raise `ulimit -n`")
    return Probe(usable=True, facts={"stellane-loop": stellane_loop.__version__})


@hookimpl
def stellane_create_backend(options: Any, config: Config) -> Backend:  # noqa: ARG001
    """The backend of one worker."""
    return EpollBackend(config.performance)
