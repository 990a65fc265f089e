"""The plainest correct journal engine: one file, one record after another.

It is the kernel's own test bed, where no plugin is installed, and the base of the broken
engines. It rewrites the whole file at every release, so it is not for use in a server.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from stellane.abc.journal import Durability, EngineCapabilities, EngineStatistics, Gap, JournalEngine
from stellane.errors import JournalError, JournalFull, JournalLocked, JournalPoisoned
from stellane.recovery.forked_child import call_in_forked_child
from stellane.recovery.record import Found, walk

FREE_BYTES_MIN = 1_048_576
"""Batches without `reserve` are refused while the file system has less than this free."""


class PlainJournal(JournalEngine):
    """One file named `records`, and a LOCK beside it."""

    name = "plain"
    capabilities = EngineCapabilities(
        durability=frozenset({Durability.PROCESS, Durability.POWER}), record_bytes_max=1_073_741_824
    )

    def __init__(self) -> None:
        self.path = Path()
        self.descriptor = -1
        self.lock = -1
        self.read_only = True
        self.end = 0
        self.first_seq = 0
        self.appended_seq = 0
        self.synced_seq = 0
        self.poisoned: OSError | None = None

    @property
    def file(self) -> Path:
        """The one file."""
        return self.path / "records"

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        self.path, self.read_only = path, read_only
        flags = os.O_RDONLY if read_only else os.O_RDWR | (os.O_CREAT if create else 0)
        try:
            if not read_only:
                call_in_forked_child(self.forked)
                self.take_lock()
            self.descriptor = os.open(self.file, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self.close()
            raise JournalError(f"{path}: cannot open the journal: {error.strerror}", path=path) from error
        for found in self.walk():
            if found.seq:
                self.first_seq = self.first_seq or found.seq
                self.appended_seq = found.seq
        self.end = os.fstat(self.descriptor).st_size

    def take_lock(self) -> None:
        """Hold LOCK until `close` or the end of the process."""
        self.lock = os.open(self.path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise JournalLocked(f"{self.path}: another process writes to this journal", path=self.path) from None

    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        self.check_writable()
        self.check_seq(first_seq)
        if not reserve:
            self.check_space()
        self.write(b"".join(records))
        self.first_seq = self.first_seq or first_seq
        self.appended_seq = first_seq + len(records) - 1

    def check_seq(self, first_seq: int) -> None:
        """Refuse anything but the next sequence number."""
        if first_seq != self.appended_seq + 1:
            raise ValueError(f"first_seq is {first_seq}; the next one is {self.appended_seq + 1}")

    def check_space(self) -> None:
        """Refuse a batch that would take the space kept back for the end of requests."""
        found = os.fstatvfs(self.descriptor)
        if found.f_bavail * found.f_frsize < FREE_BYTES_MIN:
            raise JournalFull(f"{self.path}: less than {FREE_BYTES_MIN} bytes are free", path=self.path)

    def write(self, data: bytes) -> None:
        """Append `data` to the file, all of it or nothing."""
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self.descriptor, data[written:], self.end + written)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                os.ftruncate(self.descriptor, self.end)
                raise JournalFull(f"{self.path}: {error.strerror}", path=self.path) from error
            raise self.poison(error) from error
        self.end += len(data)

    def sync(self) -> int:
        self.check_writable()
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            raise self.poison(error) from error
        self.synced_seq = self.appended_seq
        return self.synced_seq

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        for found in self.walk():
            if not found.seq:
                yield Gap(f"records at byte {found.offset}", "these bytes are not a record", found.raw)
            elif found.seq >= from_seq:
                yield found.seq, found.raw

    def walk(self) -> Iterator[Found]:
        """The content of the file."""
        return walk(self.file.read_bytes())

    def truncate(self, after_seq: int) -> None:
        self.check_writable()
        kept = [found for found in self.walk() if 0 < found.seq <= after_seq]
        self.end = kept[-1].offset + len(kept[-1].raw) if kept else 0
        os.ftruncate(self.descriptor, self.end)
        self.appended_seq = after_seq

    def release(self, upto_seq: int) -> None:
        self.check_writable()
        kept = b"".join(found.raw for found in self.walk() if found.seq > upto_seq)
        draft = self.path / "records.tmp"
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(descriptor, kept)
        os.fsync(descriptor)
        draft.rename(self.file)
        os.close(self.descriptor)
        self.descriptor, self.end = descriptor, len(kept)
        self.first_seq = max(self.first_seq, upto_seq + 1)

    def checkpoint(self, dest: Path) -> None:
        dest.mkdir(mode=0o700)
        (dest / "records").write_bytes(self.file.read_bytes())

    def statistics(self) -> EngineStatistics:
        return EngineStatistics(
            records=self.appended_seq + 1 - self.first_seq if self.first_seq else 0,
            bytes=self.end,
            segments=1,
            appended_seq=self.appended_seq,
            synced_seq=self.synced_seq,
        )

    def close(self) -> None:
        self.close_files()

    def forked(self) -> None:
        """In a forked child: leave the journal to the parent."""
        self.close_files()

    def close_files(self) -> None:
        """Close what is open."""
        for descriptor in (self.descriptor, self.lock):
            if descriptor >= 0:
                os.close(descriptor)
        self.descriptor = self.lock = -1

    def poison(self, error: OSError) -> JournalPoisoned:
        """Refuse everything from now on."""
        self.poisoned = error
        return JournalPoisoned(f"{self.path}: {error.strerror}", path=self.path)

    def check_writable(self) -> None:
        """Raise unless records may be written."""
        if self.poisoned is not None or self.descriptor < 0 or self.read_only:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise what says why nothing may be written."""
        if self.poisoned is not None:
            raise JournalPoisoned(f"{self.path}: an earlier write failed: {self.poisoned}", path=self.path)
        state = "not open" if self.descriptor < 0 else "open for reading only"
        raise JournalError(f"{self.path}: the journal is {state}", path=self.path)
