"""Scheduler `fifo`: first in, first out."""

from __future__ import annotations

from collections import deque
from typing import Any

from stellane.abc import Entry, Scheduler, SchedulerStatistics
from stellane.errors import QueueFull
from stellane.hookspecs import hookimpl

stellane_api_level = 1


@hookimpl
def stellane_create_scheduler(options: Any, capacity: int) -> Scheduler:  # noqa: ARG001 - it has no options
    """The scheduler of one worker."""
    return FifoScheduler(capacity)


class FifoScheduler(Scheduler):
    """A bounded queue. `capacity` is how many entries may wait."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a scheduler's capacity must be at least 1, not {capacity}")
        self._capacity = capacity
        # One end is the owner's and the other the thief's; each deque call is atomic.
        self._entries: deque[Entry] = deque()
        self._submitted_total = 0
        self._refused_total = 0

    def submit(self, entry: Entry) -> None:
        if len(self._entries) >= self._capacity:
            self._refused_total += 1
            raise QueueFull(f"the scheduler holds {self._capacity} entries, as many as it may")
        self._entries.append(entry)
        self._submitted_total += 1

    def next(self) -> Entry | None:
        # Not "if entries: popleft()": a thief may take the last entry in between.
        try:
            return self._entries.popleft()
        except IndexError:
            return None

    def steal(self, max_entries: int) -> list[Entry]:
        """The last `max_entries` entries or fewer, in the order they would have run."""
        if max_entries < 0:
            raise ValueError(f"max_entries must not be negative, but is {max_entries}")
        stolen: list[Entry] = []
        while len(stolen) < max_entries:
            try:
                stolen.append(self._entries.pop())
            except IndexError:
                break
        stolen.reverse()
        return stolen

    def __len__(self) -> int:
        return len(self._entries)

    def statistics(self) -> SchedulerStatistics:
        return SchedulerStatistics(
            waiting=len(self._entries),
            capacity=self._capacity,
            submitted_total=self._submitted_total,
            refused_total=self._refused_total,
        )
