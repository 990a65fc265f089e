"""The engine: each record is one value under its sequence number, eight bytes big-endian.

db/            the RocksDB database
high-water     the last sequence number appended
damaged-<ns>/  copies of log files that RocksDB refused
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from rocksdict import Checkpoint, Rdict, ReadOptions, WriteBatch

from stellane.abc import Durability, EngineCapabilities, EngineStatistics, Gap, JournalEngine
from stellane.errors import JournalError, JournalFull, JournalPoisoned
from stellane.recovery.forked_child import call_in_forked_child
from stellane_journal_rocksdb.database import (
    catch_up,
    error_text,
    is_ours_to_handle,
    open_reader,
    open_writer,
    poisoned,
    reading_failed,
)
from stellane_journal_rocksdb.high_water import HighWater, read_high_water

WRITE_BUFFER_BYTES = 16_777_216
WRITE_BUFFER_BYTES_MIN = 65_536
FREE_BYTES_MIN = 67_108_864
RECORD_BYTES_MAX = 268_435_456
KEY_BYTES = 8
VIEW_TRIES_MAX = 20
"""How often a reader catches up with a writer to get a whole view."""
VIEW_WAIT_S = 0.01
"""How much longer, in seconds, it waits before each further try: two seconds in all for a writer that cannot run."""

_AFTER_ALL_KEYS = b"\xff" * (KEY_BYTES + 1)


def key_of(seq: int) -> bytes:
    """The key of a record."""
    return seq.to_bytes(KEY_BYTES, "big")


class RocksDbJournal(JournalEngine):
    """A journal in a RocksDB database.

    `free_bytes_min` is kept free on the file system: below it, batches without `reserve` are
    refused, because RocksDB itself does not recover from a full disk.
    """

    name = "rocksdb"
    capabilities = EngineCapabilities(
        durability=frozenset({Durability.PROCESS, Durability.POWER}), record_bytes_max=RECORD_BYTES_MAX
    )

    def __init__(self, write_buffer_bytes: int = WRITE_BUFFER_BYTES, free_bytes_min: int = FREE_BYTES_MIN) -> None:
        self._write_buffer_bytes = write_buffer_bytes
        self._free_bytes_min = free_bytes_min
        self._path = Path()
        self._database: Rdict | None = None
        self._high_water: HighWater | None = None
        self._kept_seq: int | None = 0
        self._damage = ""
        self._first_seq = 0
        self._appended_seq = 0
        self._synced_seq = 0
        self._poisoned: BaseException | None = None
        self._private: tempfile.TemporaryDirectory[str] | None = None

    def open(self, path: Path, *, create: bool = True, read_only: bool = False) -> None:
        self._path = path
        if read_only:
            try:
                self._open_to_read(path)
            except BaseException:
                self.close()
                raise
            return
        keep = path / f"damaged-{time.time_ns()}"
        self._database, self._damage = open_writer(
            path / "db", self._write_buffer_bytes, create=create, keep_damaged=keep
        )
        if self._damage:
            self._damage += f" (the log files were copied to {keep.name})"
        call_in_forked_child(self._forked)
        try:
            self._kept_seq = read_high_water(path / "high-water")
            self._high_water = HighWater(path / "high-water")
            self._first_seq, self._appended_seq = self._ends()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise JournalError(f"{path}: {error.strerror}", path=path) from error
            raise

    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        if self._poisoned is not None or self._database is None or self._high_water is None:
            self._refuse()
        if first_seq != self._appended_seq + 1:
            raise ValueError(f"first_seq is {first_seq}; the next one is {self._appended_seq + 1}")
        if not reserve:
            self._check_space()
        batch = WriteBatch(raw_mode=True)
        for number, record in enumerate(records):
            batch.put(key_of(first_seq + number), record)
        last = first_seq + len(records) - 1
        try:
            self._database.write(batch)
            self._high_water.write(last)
        except BaseException as error:
            raise self._poison("write", error) from error
        self._first_seq = self._first_seq or first_seq
        self._appended_seq = last

    def sync(self) -> int:
        if self._poisoned is not None or self._database is None or self._high_water is None:
            self._refuse()
        try:
            self._database.flush_wal(True)
            self._high_water.sync()
        except BaseException as error:
            raise self._poison("sync", error) from error
        self._synced_seq = self._appended_seq
        return self._synced_seq

    def scan(self, from_seq: int = 0) -> Iterator[tuple[int, bytes] | Gap]:
        database = self._database
        if database is None:
            self._refuse()
        if self._damage:
            yield Gap("the log of RocksDB", self._damage)
        previous = 0
        for seq, record in self._read(database, from_seq):
            if isinstance(record, Exception):
                reason = f"cannot be read by RocksDB: {error_text(record)}"
                yield Gap(f"key {seq}", reason, unread=reading_failed(record))
            elif previous and seq > previous + 1:
                yield Gap(f"keys {previous + 1} to {seq - 1}", "RocksDB does not have them")
            previous = seq
            if not isinstance(record, Exception):
                yield seq, record
        if self._kept_seq is None:
            yield Gap("high-water", "the file is damaged")
        elif self._kept_seq > max(previous, self._appended_seq):
            first = max(previous, self._appended_seq) + 1
            yield Gap(f"keys {first} to {self._kept_seq}", "RocksDB dropped its end", b"", first, self._kept_seq)

    def truncate(self, after_seq: int) -> None:
        if self._poisoned is not None or self._database is None or self._high_water is None:
            self._refuse()
        try:
            # Before the records go: after a death between the two steps a mark that is too low
            # is only that, while one above the last record says that records were lost.
            self._high_water.write(after_seq)
            self._high_water.sync()
        except BaseException as error:
            raise self._poison("truncate", error) from error
        self._delete(key_of(after_seq + 1), _AFTER_ALL_KEYS)
        self._appended_seq = self._kept_seq = after_seq
        self.sync()

    def release(self, upto_seq: int) -> None:
        upto_seq = min(upto_seq, self._appended_seq)
        self._delete(key_of(0), key_of(upto_seq + 1))
        self._first_seq = max(self._first_seq, upto_seq + 1)

    def checkpoint(self, dest: Path) -> None:
        if self._database is None:
            self._refuse()
        dest.mkdir(mode=0o700)
        try:
            Checkpoint(self._database).create_checkpoint(str(dest / "db"))
            shutil.copyfile(self._path / "high-water", dest / "high-water")
        except BaseException as error:
            if not is_ours_to_handle(error):
                raise
            raise JournalError(f"{dest}: cannot copy the journal: {error_text(error)}", path=self._path) from error

    def statistics(self) -> EngineStatistics:
        files = [entry for entry in (self._path / "db").iterdir() if entry.suffix in (".log", ".sst")]
        return EngineStatistics(
            records=self._appended_seq + 1 - self._first_seq if self._first_seq else 0,
            bytes=sum(file.stat().st_size for file in files if file.exists()),
            segments=len(files),
            appended_seq=self._appended_seq,
            synced_seq=self._synced_seq,
        )

    def close(self) -> None:
        database, self._database = self._database, None
        high_water, self._high_water = self._high_water, None
        if high_water is not None:
            high_water.close()
        private, self._private = self._private, None
        try:
            if database is not None:
                database.close()
        except Exception as error:
            # Closing flushes; a poisoned database has already said why it cannot.
            if self._poisoned is None:
                raise JournalError(f"{self._path}: closing failed: {error_text(error)}", path=self._path) from error
        finally:
            if private is not None:
                private.cleanup()

    def _forked(self) -> None:
        """In a forked child: leave the database to the parent, whose log two writers would spoil."""
        if self._database is not None:
            # Kept for ever, since closing waits for threads of RocksDB that a child does not have.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._database))
            self._database = None
        if self._high_water is not None:
            self._high_water.close()
            self._high_water = None

    def _open_to_read(self, path: Path) -> None:
        """Open beside a writer, and follow it until the view is whole.

        A log that the writer turns into a table between two steps of RocksDB's opening is
        missing from both until the reader catches up; real damage stays. And a view may show a
        release but not all that was appended before it; the next one does.
        """
        first = -1
        for attempt in range(VIEW_TRIES_MAX):
            # Before the database: read after it, the mark would be ahead of what was opened.
            self._kept_seq = read_high_water(path / "high-water")
            if self._database is None:
                self._private = tempfile.TemporaryDirectory(prefix="stellane-rocksdb-")
                self._database, self._damage = open_reader(
                    path / "db", self._write_buffer_bytes, Path(self._private.name)
                )
            else:
                catch_up(self._database, path / "db")
            self._first_seq, self._appended_seq = self._ends()
            if self._damage:
                return
            settled, first = first == self._first_seq, self._first_seq
            whole = not any(isinstance(item, Gap) for item in self.scan())
            if settled and whole:
                return
            if not whole:
                time.sleep(VIEW_WAIT_S * attempt)

    def _ends(self) -> tuple[int, int]:
        """The first and last keys that can be read; 0 for none."""
        assert self._database is not None
        ends: list[int] = []
        for seek in ("seek_to_first", "seek_to_last"):
            cursor = self._database.iter()
            getattr(cursor, seek)()
            ends.append(int.from_bytes(cursor.key(), "big") if cursor.valid() else 0)
        return ends[0], ends[1]

    def _read(self, database: Rdict, from_seq: int) -> Iterator[tuple[int, bytes | Exception]]:
        """Every value by key, or why it cannot be read."""
        cursor = database.iter(_checked())
        cursor.seek(key_of(from_seq))
        seq = max(from_seq, self._first_seq) - 1
        while cursor.valid():
            key, value = cursor.key(), cursor.value()
            if key is None or value is None:
                break
            seq = int.from_bytes(key, "big")
            yield seq, value
            cursor.next()
        try:
            cursor.status()
        except Exception:
            # A damaged block stops the cursor; the keys behind it may still be there, one by one.
            for missing in range(seq + 1, self._appended_seq + 1):
                try:
                    found = database.get(key_of(missing), read_opt=_checked())
                except Exception as error:
                    yield missing, error
                else:
                    if found is not None:
                        yield missing, found

    def _delete(self, begin: bytes, end: bytes) -> None:
        if self._poisoned is not None or self._database is None or self._high_water is None:
            self._refuse()
        try:
            self._database.delete_range(begin, end)
        except BaseException as error:
            raise self._poison("delete", error) from error

    def _check_space(self) -> None:
        try:
            found = os.statvfs(self._path)
        except OSError as error:
            raise self._poison("statvfs", error) from error
        free = found.f_bavail * found.f_frsize
        if free < self._free_bytes_min:
            text = f"{self._path}: {free} bytes are free, fewer than free_bytes_min = {self._free_bytes_min}"
            raise JournalFull(text, path=self._path)

    def _poison(self, what: str, error: BaseException) -> BaseException:
        self._poisoned = error
        return poisoned(what, error, self._path) if is_ours_to_handle(error) else error

    def _refuse(self) -> NoReturn:
        if self._poisoned is not None:
            raise JournalPoisoned(
                f"{self._path}: an earlier write failed: {error_text(self._poisoned)}", path=self._path
            )
        state = "not open" if self._database is None else "open for reading only"
        raise JournalError(f"{self._path}: the journal is {state}", path=self._path)


def _checked() -> ReadOptions:
    chosen = ReadOptions()
    chosen.set_verify_checksums(True)
    return chosen
