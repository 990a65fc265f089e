"""A native asyncio event loop for Linux, over epoll or io_uring."""

import asyncio

from stellane_loop.loop import Loop
from stellane_loop.observation import LoopStatistics, SlowCallback
from stellane_loop.probe import IoUringProbe, probe_io_uring
from stellane_loop.ready import NORMAL, PriorityOrder, ReadyOrder, priority

__version__ = "0.1.0"
__all__ = [
    "NORMAL",
    "IoUringProbe",
    "Loop",
    "LoopStatistics",
    "PriorityOrder",
    "ReadyOrder",
    "SlowCallback",
    "new_epoll_event_loop",
    "new_event_loop",
    "new_io_uring_event_loop",
    "priority",
    "probe_io_uring",
]


def new_event_loop(poller: str = "epoll") -> asyncio.AbstractEventLoop:
    """A new loop: asyncio.run(main(), loop_factory=stellane_loop.new_event_loop)."""
    return Loop(poller)


def new_epoll_event_loop() -> asyncio.AbstractEventLoop:
    """A new loop that waits by epoll."""
    return Loop("epoll")


def new_io_uring_event_loop() -> asyncio.AbstractEventLoop:
    """A new loop that waits by io_uring; OSError where the kernel or its policy has none."""
    return Loop("io_uring")
