"""The engine: records appended to preallocated segment files.

LOCK               held with flock(2) by the one writer
seg-<n>.wal        segments in order; a record never spans two
spare.tmp          the next segment, already zero-filled
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from stellane.abc import Durability, EngineCapabilities, EngineStatistics, Gap, JournalEngine
from stellane.errors import JournalCorrupt, JournalError, JournalFull, JournalLocked, JournalPoisoned
from stellane.recovery.forked_child import call_in_forked_child
from stellane.recovery.record import journal_id_of
from stellane_journal_file.segment import (
    RECORDS_OFFSET,
    Content,
    Header,
    Segment,
    encode_header,
    list_segments,
    make_zeroed,
    read_segment,
    segment_name,
)
from stellane_journal_file.spare import SpareMaker

SEGMENT_BYTES = 16_777_216
SEGMENT_BYTES_MIN = 65_536
RECORD_BYTES_MAX = 1_073_741_824
LOCK_WAIT_S = 0.5
"""How long a writer waits for the lock, seconds: a reader may be looking whether it is held, and a killed worker with
much memory is a while in ending."""
LIST_TRIES_MAX = 10
"""How often a reader lists the segments anew because one was released meanwhile."""
READ_TRIES_MAX = 10
"""How often a reader reads a segment again because what looked damaged had changed."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class FileJournal(JournalEngine):
    """A journal in segment files of `segment_bytes` each.

    While no spare segment can be made (the disk is full), batches without `reserve` are refused
    once the current segment is half full, so that requests in hand can still be ended.
    """

    name = "file"
    capabilities = EngineCapabilities(
        durability=frozenset({Durability.PROCESS, Durability.POWER}), record_bytes_max=RECORD_BYTES_MAX
    )

    def __init__(self, segment_bytes: int = SEGMENT_BYTES) -> None:
        if segment_bytes < SEGMENT_BYTES_MIN:
            raise ValueError(f"segment_bytes is {segment_bytes}; the least is {SEGMENT_BYTES_MIN}")
        self._segment_bytes = segment_bytes
        self._path = Path()
        self._read_only = True
        self._lock = -1
        self._segments: list[Segment] = []
        self._descriptor = -1
        self._offset = 0
        self._size = 0
        self._appended_seq = 0
        self._synced_seq = 0
        self._roll_next = False
        self._names_changed = True
        self._poisoned: BaseException | None = None
        self._spare: SpareMaker | None = None

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        self._path, self._read_only = path, read_only
        try:
            self._segments = list_segments(path)
            if not self._segments and not create and not read_only:
                raise JournalError(f"{path}: there is no journal here", path=path)
            if not self._segments and (strangers := self._strangers()):
                raise JournalCorrupt(f"{path} is not a file journal: it holds {strangers[0]}", path=path)
            if not read_only:
                self._take_lock()
                # Listed again under the lock: the writer before us may have gone on until now.
                self._segments = list_segments(path)
                for draft in path.glob("*.tmp"):
                    draft.unlink()
        except OSError as error:
            raise JournalError(f"{path}: {error.strerror}", path=path) from error
        if read_only:
            return
        call_in_forked_child(self._forked)
        try:
            self._find_end()
        except OSError as error:
            self.close()
            text = f"{path}: {error.filename} cannot be read: {error.strerror}; what it holds may be whole"
            raise JournalError(f"{text}, and nothing was changed", path=path) from error
        self._spare = SpareMaker(path / "spare.tmp", self._segment_bytes)
        self._spare.start()

    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        if self._poisoned is not None or self._spare is None:
            self._refuse()
        if first_seq != self._appended_seq + 1:
            raise ValueError(f"first_seq is {first_seq}; the next one is {self._appended_seq + 1}")
        data = records[0] if len(records) == 1 else b"".join(records)
        end = self._offset + len(data)
        if end > self._size or self._roll_next or (not reserve and 2 * end > self._size and not self._spare.ready):
            self._make_room(data, reserve=reserve)
        try:
            written = os.pwrite(self._descriptor, data, self._offset)
            if written != len(data):
                self._write_rest(data, written)
        except OSError as error:
            if error.errno in _NO_SPACE:
                # The first write failed whole (pwrite(2)): the segment is as it was.
                raise JournalFull(f"{self._path}: {error.strerror}", path=self._path) from error
            raise self._poison("write", error) from error
        self._offset += len(data)
        self._appended_seq += len(records)

    def sync(self) -> int:
        if self._poisoned is not None or self._spare is None:
            self._refuse()
        self._spare.wait()
        if self._spare.sync_error is not None:
            raise self._poison("sync", self._spare.sync_error)
        try:
            if self._descriptor >= 0:
                os.fdatasync(self._descriptor)
            if self._names_changed:
                self._sync_names()
        except OSError as error:
            raise self._poison("sync", error) from error
        self._synced_seq = self._appended_seq
        return self._synced_seq

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        with contextlib.ExitStack() as stack:
            previous = 0
            for segment, descriptor in self._open_all(stack):
                if previous and segment.n != previous + 1:
                    missing = segment_name(previous + 1)
                    yield Gap(missing, f"{segment.n - previous - 1} segment file(s) from here on are missing")
                previous = segment.n
                yield from self._scan_segment(segment, descriptor, from_seq)

    def truncate(self, after_seq: int) -> None:
        self._check_writable()
        try:
            while self._segments:
                end = self._end_of(self._segments[-1], after_seq)
                if end > 0:
                    break
                self._segments.pop().path.unlink()
                self._names_changed = True
            self._close_current()
            self._appended_seq = after_seq
            if self._segments:
                self._reopen_last(end)
                self._zero_tail()
            self._sync_names()
        except OSError as error:
            raise self._poison("truncate", error) from error

    def release(self, upto_seq: int) -> None:
        self._check_writable()
        while len(self._segments) > 1 and 0 < self._segments[1].base_seq <= upto_seq + 1:
            # The lowest first: what is left is always an unbroken run.
            self._segments[0].path.unlink(missing_ok=True)
            del self._segments[0]
            self._names_changed = True
            if self._spare is not None:
                self._spare.space_freed()

    def checkpoint(self, dest: Path) -> None:
        dest.mkdir(mode=0o700)
        try:
            for segment in list_segments(self._path):
                copy = dest / segment.path.name
                descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "wb") as target, segment.path.open("rb") as source:
                    shutil.copyfileobj(source, target)
                    target.flush()
                    os.fsync(target.fileno())
        except OSError as error:
            raise JournalError(f"{dest}: cannot copy the journal: {error.strerror}", path=self._path) from error

    def in_use(self) -> bool | None:
        try:
            descriptor = os.open(self._path / "LOCK", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return None
        try:
            # Shared, so that two readers do not take each other for a writer. A writer waits for that long.
            return not _lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def statistics(self) -> EngineStatistics:
        first = self._segments[0].base_seq if self._segments else self._appended_seq + 1
        return EngineStatistics(
            records=self._appended_seq + 1 - first if first else 0,
            bytes=sum(segment.path.stat().st_size for segment in self._segments if segment.path.exists()),
            segments=len(self._segments),
            appended_seq=self._appended_seq,
            synced_seq=self._synced_seq,
        )

    def close(self) -> None:
        if self._spare is not None:
            self._spare.close()
            self._spare = None
        self._close_current()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _forked(self) -> None:
        """In a forked child: leave the journal to the parent. Closing does not unlock its LOCK."""
        if self._spare is not None:
            self._spare.forked()
            self._spare = None
        self._close_current()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    # --- Opening ----------------------------------------------------------------------------------

    def _strangers(self) -> list[str]:
        names = sorted(entry.name for entry in self._path.iterdir())
        return [name for name in names if name != "LOCK" and not name.endswith(".tmp")]

    def _take_lock(self) -> None:
        path = self._path / "LOCK"
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while not _lock(self._lock, fcntl.LOCK_EX):
            if time.monotonic() >= deadline_s:
                os.close(self._lock)
                self._lock = -1
                text = f"{self._path}: another process writes to this journal; stop it or use another journal_path"
                raise JournalLocked(text, path=self._path)
            time.sleep(0.01)

    def _find_end(self) -> None:
        """Where the next record goes: after the last valid one, or into a fresh segment when the last
        one is damaged, so that it can be released whole."""
        for segment in reversed(self._segments):
            content = _read_to_write(segment)
            end = RECORDS_OFFSET
            for found in content.walk():
                if found.seq:
                    segment.base_seq = segment.base_seq or found.seq
                    self._appended_seq, end = found.seq, found.offset + len(found.raw)
                else:
                    self._roll_next = True
            if content.damage:
                self._roll_next = True
            if segment is self._segments[-1] and not self._roll_next:
                self._reopen_last(end)
            if content.header is not None:
                segment.base_seq = content.header.base_seq
            if self._appended_seq:
                break
        for segment in self._segments:
            if not segment.base_seq and (header := _read_to_write(segment).header) is not None:
                segment.base_seq = header.base_seq

    def _open_all(self, stack: contextlib.ExitStack) -> list[tuple[Segment, int | None]]:
        """Every segment with a descriptor; None for one that cannot be opened.

        All are opened before the first is read, so that a writer's release in the meantime
        takes nothing away from this reader. A directory listed while files come and go may show
        a hole that is none; a real one is still there at the last try.
        """
        for tries_left in reversed(range(LIST_TRIES_MAX)):
            opened: list[tuple[Segment, int | None]] = []
            try:
                for segment in list_segments(self._path):
                    descriptor = _open_to_read(segment.path)
                    if descriptor is not None:
                        stack.callback(os.close, descriptor)
                    opened.append((segment, descriptor))
            except FileNotFoundError:
                stack.close()
                continue
            if not opened or not tries_left or opened[-1][0].n - opened[0][0].n + 1 == len(opened):
                return opened
            stack.close()
        return [(segment, None) for segment in list_segments(self._path)]

    def _scan_segment(
        self, segment: Segment, descriptor: int | None, from_seq: int
    ) -> Iterator[tuple[int, bytes] | Gap]:
        content = self._read_settled(segment, descriptor)
        cut = [gap for gap in content.damage if not gap.raw]
        yield from (gap for gap in content.damage if gap.raw)
        # Before the first record only the header knows which ones were here.
        next_seq = content.header.base_seq if content.header is not None else 0
        for found in content.walk():
            if found.seq:
                next_seq = found.seq + 1
                if found.seq >= from_seq:
                    yield found.seq, found.raw
            else:
                where = f"{segment.path.name} at byte {found.offset}"
                yield Gap(where, "these bytes are not a record", found.raw, next_seq)
        yield from cut

    def _read_settled(self, segment: Segment, descriptor: int | None) -> Content:
        """Read a segment that may be growing.

        A page read before a record was written and a later page read after it look like damage
        in the middle; damage is there again when the segment is read again.
        """
        content = read_segment(segment, descriptor)
        if not self._read_only:
            return content
        damage = content.damaged_before_a_record()
        for _ in range(READ_TRIES_MAX):
            if not damage:
                break
            content = read_segment(segment, descriptor)
            again = content.damaged_before_a_record()
            if again == damage:
                break
            damage = again
        return content

    # --- Writing ----------------------------------------------------------------------------------

    def _make_room(self, data: bytes, *, reserve: bool) -> None:
        """Make sure that `data` fits at `_offset` of the current segment, or raise JournalFull."""
        assert self._spare is not None
        size = len(data)
        fits = self._offset + size <= self._size and not self._roll_next
        if self._spare.retry():
            if fits:
                return
        elif not reserve or not fits:
            error = self._spare.error
            reason = error.strerror if error is not None else "no spare segment"
            raise JournalFull(f"{self._path}: no space for another segment: {reason}", path=self._path)
        else:
            return
        try:
            self._roll(size, journal_id_of(data))
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise JournalFull(f"{self._path}: {error.strerror}", path=self._path) from error
            raise self._poison("make a segment", error) from error

    def _roll(self, size: int, journal_id: int) -> None:
        """Go on in a new segment: the spare, or one of its own size for a very large batch."""
        assert self._spare is not None
        n = self._segments[-1].n + 1 if self._segments else 1
        path = self._path / segment_name(n)
        draft, file_size = self._spare.path, self._segment_bytes
        if RECORDS_OFFSET + size > file_size:
            draft, file_size = path.with_suffix(".tmp"), RECORDS_OFFSET + size
            descriptor = make_zeroed(draft, file_size)
        else:
            descriptor = self._spare.take()
        try:
            os.pwrite(descriptor, encode_header(Header(n, self._appended_seq + 1, file_size, journal_id)), 0)
            draft.rename(path)
        except BaseException:
            os.close(descriptor)
            raise
        self._names_changed = True
        replaced, self._descriptor = self._descriptor, descriptor
        self._offset, self._size = RECORDS_OFFSET, file_size
        self._segments.append(Segment(n, path, self._appended_seq + 1))
        self._roll_next = False
        self._spare.start(replaced)

    def _write_rest(self, data: bytes, written: int) -> None:
        """Go on after a short write. On no space, wipe what was written: all or nothing."""
        try:
            while written < len(data):
                written += os.pwrite(self._descriptor, data[written:], self._offset + written)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            self._wipe(written)
            raise JournalFull(f"{self._path}: {error.strerror}", path=self._path) from error

    def _wipe(self, count: int) -> None:
        """Put zeros over the `count` bytes behind the last record, or poison: half a batch may not stay."""
        try:
            wiped = os.pwrite(self._descriptor, bytes(count), self._offset)
            if wiped != count:
                raise OSError(errno.EIO, f"{wiped} of {count} bytes were written")
        except OSError as error:
            raise self._poison("wipe", error) from error

    def _end_of(self, segment: Segment, after_seq: int) -> int:
        """The offset behind the last record of `segment` with seq <= `after_seq`; 0 when it has none."""
        end = 0
        for found in _read_to_write(segment).walk():
            if 0 < found.seq <= after_seq:
                end = found.offset + len(found.raw)
        return end

    def _reopen_last(self, offset: int) -> None:
        path = self._segments[-1].path
        self._descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._size = os.fstat(self._descriptor).st_size
        self._offset = offset

    def _zero_tail(self) -> None:
        left, offset = self._size - self._offset, self._offset
        if left > 0:
            rest = os.pread(self._descriptor, left, offset).rstrip(b"\0")
            if rest:
                os.pwrite(self._descriptor, bytes(len(rest)), offset)
        os.fdatasync(self._descriptor)

    def _close_current(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._offset = self._size = 0

    def _sync_names(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._names_changed = False

    def _poison(self, what: str, error: OSError) -> JournalPoisoned:
        self._poisoned = error
        return JournalPoisoned(f"{self._path}: {what} failed: {error.strerror}", path=self._path)

    def _check_writable(self) -> None:
        if self._poisoned is not None or self._spare is None:
            self._refuse()

    def _refuse(self) -> NoReturn:
        if self._poisoned is not None:
            raise JournalPoisoned(f"{self._path}: an earlier write failed: {self._poisoned}", path=self._path)
        state = "open for reading only" if self._read_only and self._path != Path() else "not open"
        raise JournalError(f"{self._path}: the journal is {state}", path=self._path)


def _lock(descriptor: int, kind: int) -> bool:
    """Take the lock without waiting; False when somebody else has it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_to_write(segment: Segment) -> Content:
    """Read a segment that is to be continued, cut or removed. Raises OSError: what was not read must stay."""
    content = read_segment(segment)
    if content.error is not None:
        raise OSError(content.error.errno, content.error.strerror, segment.path.name)
    return content


def _open_to_read(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:
        return None
