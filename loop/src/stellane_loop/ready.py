"""The order of the ready queue, for those who want another than first in, first out.

Without an order a callback goes through a ring of pointers and nothing here is consulted.
"""

import bisect
import contextvars
import itertools
from asyncio import Handle
from collections import deque
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
    """The most urgent first, among equals the oldest; and every `oldest_every`th is the oldest of all.

    What is urgent overtakes everything that waits, and what is not gets its share however much urgent
    work there is. Levels are meant to be few: finding the oldest looks at each.
    """

    def __init__(self, budget_s: float = 0.0005, oldest_every: int = 16) -> None:
        if oldest_every < 1:
            raise ValueError(f"oldest_every is {oldest_every!r}; it is a number of callbacks, at least 1")
        self.budget_s = budget_s
        self._oldest_every = oldest_every
        self._until_oldest = oldest_every  # kept over turns: a budget may end each of them after one callback
        self._levels: dict[int, deque[tuple[int, Handle]]] = {}
        self._urgency: list[int] = []  # the keys of _levels, in order
        self._numbers = itertools.count()
        self._count = 0

    def push(self, handle: Handle, priority: int) -> None:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = deque()
            bisect.insort(self._urgency, priority)
        level.append((next(self._numbers), handle))
        self._count += 1

    def pop(self) -> Handle:
        priority = self._urgency[0]
        self._until_oldest -= 1
        if not self._until_oldest:
            self._until_oldest = self._oldest_every
            priority = min(self._levels, key=lambda priority: self._levels[priority][0][0])
        level = self._levels[priority]
        _, handle = level.popleft()
        if not level:
            del self._levels[priority]
            self._urgency.remove(priority)
        self._count -= 1
        return handle

    def __len__(self) -> int:
        return self._count
