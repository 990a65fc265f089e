"""Journal engines that are broken on purpose, each in one way, to prove the suite.

`BROKEN` maps each one to the tests of JournalEngineConformance that must catch it; together
they are all tests of the suite, so that none of them can be a test that never fails.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from stellane.abc.journal import EngineCapabilities, EngineStatistics, Gap
from stellane.errors import JournalFull, JournalLocked, JournalPoisoned
from stellane.testing.plain_journal import PlainJournal


class Nameless(PlainJournal):
    """Declares no durability at all."""

    name = "nameless"
    capabilities = EngineCapabilities(durability=frozenset(), record_bytes_max=10)


class Reversing(PlainJournal):
    """Gives the records in the wrong order."""

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        yield from reversed(list(super().scan(from_seq)))


class Clipping(PlainJournal):
    """Cuts large records short."""

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        for item in super().scan(from_seq):
            yield item if isinstance(item, Gap) else (item[0], item[1][:600_000])


class Careless(PlainJournal):
    """Takes any sequence number."""

    def check_seq(self, first_seq: int) -> None:  # noqa: ARG002 - not looking at it is the fault
        return None


class Starting(PlainJournal):
    """Always scans from the start."""

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        yield from super().scan(min(from_seq, 0))


class Forgetful(PlainJournal):
    """Empties the file at every open."""

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        if not read_only:
            (path / "records").unlink(missing_ok=True)
        super().open(path, create=create, read_only=read_only)


class Buffering(PlainJournal):
    """Keeps records in the process until it is closed or synced."""

    def __init__(self) -> None:
        super().__init__()
        self.held = b""

    def write(self, data: bytes) -> None:
        self.held += data

    def sync(self) -> int:
        self._spill()
        return super().sync()

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        self._spill()
        yield from super().scan(from_seq)

    def close(self) -> None:
        if self.descriptor >= 0:
            self._spill()
        super().close()

    def _spill(self) -> None:
        held, self.held = self.held, b""
        if held:
            super().write(held)


class Creating(PlainJournal):
    """Makes a journal even when told not to."""

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:  # noqa: ARG002 - the fault
        super().open(path, create=True, read_only=read_only)


class Unlocked(PlainJournal):
    """Takes no lock."""

    def take_lock(self) -> None:
        return None


class StaleLock(PlainJournal):
    """Its lock is a file that outlives a killed process."""

    def take_lock(self) -> None:
        try:
            self.lock = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
        except FileExistsError:
            raise JournalLocked("the lock file is there", path=self.path) from None

    def close(self) -> None:
        if self.lock >= 0:
            (self.path / "LOCK").unlink()
        super().close()


class Inherited(PlainJournal):
    """Leaves its lock open in a forked child."""

    def forked(self) -> None:
        return None


class Unlocking(PlainJournal):
    """Unlocks in a forked child, and with that in the parent."""

    def forked(self) -> None:
        fcntl.flock(self.lock, fcntl.LOCK_UN)
        super().forked()


class Unclosable(PlainJournal):
    """Fails when it is closed again."""

    def __init__(self) -> None:
        super().__init__()
        self.closings = 0

    def close(self) -> None:
        self.closings += 1
        if self.closings == 2:
            raise OSError(errno.EBADF, "closed already")
        super().close()


class ReaderLocks(PlainJournal):
    """A reader takes the lock as well."""

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        if read_only:
            self.path = path
            self.take_lock()
        super().open(path, create=create, read_only=read_only)


class InPlace(PlainJournal):
    """Rewrites its file in place at a release, while a reader may be looking."""

    def release(self, upto_seq: int) -> None:
        kept = b"".join(found.raw for found in self.walk() if found.seq > upto_seq)
        os.ftruncate(self.descriptor, 0)
        time.sleep(0.02)
        os.pwrite(self.descriptor, kept, 0)
        self.end = len(kept)


class Greedy(PlainJournal):
    """Releases one record too many."""

    def release(self, upto_seq: int) -> None:
        super().release(upto_seq + 1)


class Hoarding(PlainJournal):
    """Never frees anything."""

    def release(self, upto_seq: int) -> None:  # noqa: ARG002 - the fault
        self.check_writable()


class Untruncated(PlainJournal):
    """Moves the end without removing what is behind it."""

    def truncate(self, after_seq: int) -> None:
        self.check_writable()
        self.appended_seq = after_seq


class EmptyCheckpoint(PlainJournal):
    """Copies the directory without the records."""

    def checkpoint(self, dest: Path) -> None:
        dest.mkdir(mode=0o700)


class Unsynced(PlainJournal):
    """Says of a sync that it reached nothing."""

    def sync(self) -> int:
        super().sync()
        return 0


class Boasting(PlainJournal):
    """Counts records as synced that are not."""

    def statistics(self) -> EngineStatistics:
        found = super().statistics()
        return EngineStatistics(found.records, found.bytes, found.segments, found.appended_seq, found.appended_seq)


class Forgiving(PlainJournal):
    """Forgets that a write or a sync has failed, and tries again."""

    def poison(self, error: OSError) -> JournalPoisoned:
        return JournalPoisoned(str(error), path=self.path)


class HalfBatch(PlainJournal):
    """Leaves the first record of a batch behind when the disk is full."""

    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        try:
            super().append(records, first_seq, reserve=reserve)
        except JournalFull:
            super().append(records[:1], first_seq, reserve=True)
            raise


class Unreserved(PlainJournal):
    """Keeps nothing back for the end of requests."""

    def append(
        self,
        records: Sequence[bytes],
        first_seq: int,
        *,
        reserve: bool = False,  # noqa: ARG002 - the fault
    ) -> None:
        super().append(records, first_seq, reserve=False)


class FullForever(PlainJournal):
    """Once full it stays full."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def check_space(self) -> None:
        try:
            if self.full:
                raise OSError(errno.ENOSPC, "still full")
            super().check_space()
        except (OSError, JournalFull) as error:
            self.full = True
            raise JournalFull(str(error), path=self.path) from error


class Hiding(PlainJournal):
    """Says nothing of what it could not read, and nothing of what comes after."""

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        for item in super().scan(from_seq):
            if isinstance(item, Gap):
                return
            yield item


class Refusing(PlainJournal):
    """Refuses to open a journal with any damage in it."""

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        super().open(path, create=create, read_only=read_only)
        if any(not found.seq for found in self.walk()):
            self.close()
            raise JournalPoisoned("damaged", path=path)


BROKEN: dict[type[PlainJournal], tuple[str, ...]] = {
    Nameless: ("test_declares_what_it_can",),
    Reversing: ("test_records_come_back_unchanged_and_in_order",),
    Clipping: ("test_records_of_any_size",),
    Careless: ("test_only_the_next_seq_is_accepted",),
    Starting: ("test_scan_can_begin_anywhere",),
    Forgetful: ("test_reopening_keeps_everything",),
    Buffering: ("test_survives_sigkill", "test_a_reader_may_look_beside_the_writer"),
    Creating: ("test_opening_does_not_create_unless_asked",),
    Unlocked: ("test_a_second_writer_is_refused",),
    StaleLock: ("test_the_lock_dies_with_its_process",),
    Inherited: ("test_a_forked_child_does_not_hold_the_lock",),
    Unlocking: ("test_a_forked_child_does_not_hold_the_lock",),
    Unclosable: ("test_close_may_be_called_again",),
    ReaderLocks: ("test_a_reader_may_look_beside_the_writer",),
    InPlace: ("test_a_reader_is_not_misled_by_a_busy_writer",),
    Greedy: ("test_release_keeps_the_rest",),
    Hoarding: ("test_release_frees_space",),
    Untruncated: ("test_truncate_forgets_the_end",),
    EmptyCheckpoint: ("test_checkpoint_is_a_journal",),
    Unsynced: ("test_sync_returns_the_highest_seq",),
    Boasting: ("test_statistics_are_true",),
    Forgiving: ("test_a_failed_write_poisons", "test_a_failed_sync_poisons_and_is_not_tried_again"),
    HalfBatch: ("test_a_full_disk_loses_nothing",),
    Unreserved: ("test_a_full_disk_loses_nothing",),
    FullForever: ("test_a_full_disk_loses_nothing",),
    Hiding: ("test_bit_rot_is_noticed",),
    Refusing: ("test_bit_rot_is_noticed",),
}
"""Each broken engine and the tests that must catch it. `test_suite_is_intact` guards the test
class, not the engine; a class that replaces a test is caught by it."""
