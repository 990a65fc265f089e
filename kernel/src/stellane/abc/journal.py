"""The journal engine contract: where records are kept, not what they mean.

The kernel owns the record envelope, the order and the checker (`stellane.recovery`); an
engine stores bytes under gapless sequence numbers and gives them back. Every record is a
whole envelope as `stellane.recovery.record` describes it, and an engine may rely on that
(`record.walk` finds the records in a damaged file). Calls are
synchronous and serialised by the kernel: never two at once on one engine. At durability
`process` they come from the worker's loop thread, so `append` must be no more than a copy
into the page cache; waiting for a device belongs in `sync`.
"""

from __future__ import annotations

import abc
import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


class Durability(enum.StrEnum):
    """What an acknowledged record survives."""

    NONE = "none"
    PROCESS = "process"
    POWER = "power"


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """What an engine can do.

    `concurrent_reader`: a second process may open it read-only while a writer appends.
    """

    durability: frozenset[Durability]
    record_bytes_max: int
    concurrent_reader: bool = True


@dataclass(frozen=True, slots=True)
class EngineStatistics:
    """A snapshot of one engine."""

    records: int
    bytes: int
    segments: int
    appended_seq: int
    synced_seq: int


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes an engine could not give back as records. Never hidden, never repaired.

    `where` is for a person (file and offset, or a key); `raw` are the bytes, if there are any.
    `first_seq` and `acknowledged_seq` are the lowest and the highest seq that the engine knows it
    had kept here, 0 when it cannot tell. `unread` says that reading failed (the device, a right, a
    descriptor): what lies there may be whole, and no writer may go on without it.
    """

    where: str
    reason: str
    raw: bytes = b""
    first_seq: int = 0
    acknowledged_seq: int = 0
    unread: bool = False


class JournalEngine(abc.ABC):
    """A storage engine for one journal directory, held by one process at a time."""

    name: str
    capabilities: EngineCapabilities

    @abc.abstractmethod
    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        """Open the journal in directory `path` (already there, mode 0700).

        A writer takes the lock and holds it until `close` or the process's death, also when a
        child that the process forked lives on. A reader takes no lock and may look while a
        writer appends.
        Raises JournalLocked, JournalUnsupported, JournalCorrupt (not a journal of this engine).
        """

    @abc.abstractmethod
    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        """Keep `records` under `first_seq`, `first_seq + 1`, …: all of them or none.

        On return they survive the death of this process. `first_seq` is one past the last
        appended one; anything else is a ValueError and changes nothing.
        `reserve` says that the batch begins no request, so it may use the space an engine keeps
        back for the end of requests when the disk is full.
        Raises JournalFull (nothing was kept, the engine stays usable) or JournalPoisoned.
        Any other write error poisons: JournalPoisoned now and from every later append and sync.
        """

    @abc.abstractmethod
    def sync(self) -> int:
        """Make everything appended so far survive a power cut; return the highest such seq.

        Any failure poisons the engine: JournalPoisoned now and from every later append and
        sync. The system call is never tried again (a second fsync lies: fsyncgate, 2018).
        """

    @abc.abstractmethod
    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        """Every kept record with seq >= `from_seq`, in order, as raw bytes, or a Gap.

        Released records may still appear. Never raises for damaged content and never skips
        silently: what cannot be read as a record is yielded as a Gap. The kernel's checker
        decides what it means.
        """

    @abc.abstractmethod
    def truncate(self, after_seq: int) -> None:
        """Forget every record and every stray byte after `after_seq` (a torn tail).

        Called at most once, after a scan and before the first append. The next append has
        `first_seq` = `after_seq` + 1; 0 empties the journal.
        """

    @abc.abstractmethod
    def release(self, upto_seq: int) -> None:
        """Records with seq <= `upto_seq` are no longer needed; free what can be freed."""

    @abc.abstractmethod
    def checkpoint(self, dest: Path) -> None:
        """Copy a consistent state into the new directory `dest`, openable by this engine."""

    def in_use(self) -> bool | None:
        """Whether some process holds this journal for writing at this moment; None when that cannot be told."""
        return None

    @abc.abstractmethod
    def statistics(self) -> EngineStatistics:
        """A snapshot; cheap."""

    @abc.abstractmethod
    def close(self) -> None:
        """Release files and lock. Idempotent."""
