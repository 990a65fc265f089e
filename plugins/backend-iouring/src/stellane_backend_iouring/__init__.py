"""Backend `io_uring`: stellane-loop's native event loop over Linux io_uring (io_uring(7))."""

from __future__ import annotations

import asyncio
from typing import Any

import stellane_loop
from stellane.backend import Backend, Capability, LoopBackend, Probe, hookimpl
from stellane.config import Config, PerformanceConfig

stellane_api_level = 1

__all__ = ["IoUringBackend"]


class IoUringBackend(LoopBackend):
    """One native loop with a ring of its own."""

    capabilities = frozenset(
        {
            *(Capability.TCP, Capability.UNIX, Capability.SIGNALS, Capability.SUBPROCESS, Capability.UDP),
            *(Capability.OWN_READY_QUEUE, Capability.ADAPTIVE_POLLING, Capability.BATCHING),
        }
    )

    def __init__(self, performance: PerformanceConfig | None = None) -> None:
        super().__init__()
        self._performance = performance or PerformanceConfig()
        if self._performance.ready_order == "priority":
            self.priority_variable = stellane_loop.priority

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop of its own, whatever the event loop policy says."""
        loop = stellane_loop.new_io_uring_event_loop()
        spin_us_max = self._performance.poll_spin_us_max if self._performance.adaptive_polling else 0
        loop.set_adaptive_polling(spin_us_max, self._performance.batch_wait_us_max)
        if self.priority_variable is not None:
            loop.set_ready_order(stellane_loop.PriorityOrder(self._performance.turn_budget_us / 1e6))
        return loop


@hookimpl
def stellane_probe(options: Any) -> Probe:  # noqa: ARG001 - it has no options
    """Set a ring up, and tell apart what keeps it from working."""
    found = stellane_loop.probe_io_uring()
    if not found.usable:
        return Probe(usable=False, reason=found.message, remedy='backend = "epoll"')
    facts = {"stellane-loop": stellane_loop.__version__, "setup_flags": f"{found.setup_flags:#x}"}
    return Probe(usable=True, facts=facts)


@hookimpl
def stellane_create_backend(options: Any, config: Config) -> Backend:  # noqa: ARG001
    """The backend of one worker."""
    return IoUringBackend(config.performance)
