"""The scheduler contract: which of the waiting requests starts next."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

from stellane.abc.backend import Priority


@dataclass(slots=True)
class Entry:
    """One unit of work that has not started: what it is, how urgent, what it belongs to."""

    work: Any
    priority: Priority = Priority.NORMAL
    key: str | None = None


@dataclass(frozen=True, slots=True)
class SchedulerStatistics:
    """A snapshot of one scheduler."""

    waiting: int
    capacity: int
    submitted_total: int
    refused_total: int


class Scheduler(abc.ABC):
    """A bounded queue of entries. Used by one thread, except for `steal`."""

    @abc.abstractmethod
    def submit(self, entry: Entry) -> None:
        """Add an entry. Raises QueueFull at the bound; the entry is then not kept."""

    @abc.abstractmethod
    def next(self) -> Entry | None:
        """Take the entry that runs next, or None when there is none."""

    @abc.abstractmethod
    def steal(self, max_entries: int) -> list[Entry]:
        """Give away up to `max_entries` entries, the ones that would have run last."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many entries wait."""

    @abc.abstractmethod
    def statistics(self) -> SchedulerStatistics:
        """A snapshot; cheap."""
