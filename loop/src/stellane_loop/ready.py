"""The order of the ready queue, for those who want another than first in, first out.

Without an order a callback goes through a ring of pointers and nothing here is consulted.
"""

import contextvars
import heapq
import itertools
from asyncio import Handle
from typing import Protocol

NORMAL = 0

priority: contextvars.ContextVar[int] = contextvars.ContextVar("stellane_loop.priority")
"""The priority of what is scheduled from this context; a lower number is more urgent. Unset: NORMAL."""


class ReadyOrder(Protocol):
    """What `loop.set_ready_order` takes. Called from the loop's thread only."""

    budget_s: float
    """After this long in one turn I/O is polled, so that what is urgent and new can overtake."""

    def push(self, handle: Handle, priority: int) -> None:
        """Keep it; `priority` is that of the context which scheduled it."""

    def pop(self) -> Handle:
        """What runs next. Called only when len() is not 0."""

    def __len__(self) -> int: ...


class PriorityOrder:
    """The most urgent first; among equals the oldest."""

    def __init__(self, budget_s: float = 0.0005) -> None:
        self.budget_s = budget_s
        self._heap: list[tuple[int, int, Handle]] = []
        self._numbers = itertools.count()

    def push(self, handle: Handle, priority: int) -> None:
        heapq.heappush(self._heap, (priority, next(self._numbers), handle))

    def pop(self) -> Handle:
        return heapq.heappop(self._heap)[2]

    def __len__(self) -> int:
        return len(self._heap)
