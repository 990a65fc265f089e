"""What the system does to the engine besides refusing space: reads that fail, no threads, killed writers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from stellane.errors import JournalError
from stellane.recovery.journal import Journal, JournaledRequest
from stellane.testing.journal_records import make_request
from stellane_journal_file import FileJournal, Options, engine, segment, stellane_probe
from stellane_journal_file.engine import SEGMENT_BYTES_MIN

FAILURES_MAX = 40
"""More than one opening reads segments."""


def open_journal(path: Path, **options: Any) -> Journal:
    return Journal.open(path, engine_name="file", engine=FileJournal(SEGMENT_BYTES_MIN), **options)


def large_request(number: int) -> JournaledRequest:
    """Two of them do not fit into one segment."""
    request = make_request(number)
    request.body = bytes([number]) * 40_000
    return request


@pytest.mark.parametrize("torn", [False, True])
def test_what_cannot_be_read_is_neither_damaged_nor_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """Whichever read of an opening fails, once: it ends there, and the next one finds every request."""
    path = tmp_path / "w0"
    journal = open_journal(path)
    kept = [journal.begin(large_request(number)).entry_id for number in (1, 2, 3)]
    journal.close(clean=False)
    if torn:
        last = max((path / "engine").glob("seg-*.wal"))
        content = bytearray(last.read_bytes())
        content[20_000] ^= 1
        last.write_bytes(content)
        kept.pop()

    real = segment._read_descriptor
    for failing in range(1, FAILURES_MAX):
        reads = 0

        def read(descriptor: int, failing: int = failing) -> bytes:
            nonlocal reads
            reads += 1
            if reads == failing:
                raise OSError(errno.EIO, "Input/output error")
            return real(descriptor)

        monkeypatch.setattr(segment, "_read_descriptor", read)
        with contextlib.suppress(JournalError):
            open_journal(path).close(clean=False)
            assert reads < failing, f"read number {failing} failed and the journal was opened"
            break
        monkeypatch.setattr(segment, "_read_descriptor", real)
        reader = open_journal(path, read_only=True, create=False)
        assert [entry.entry_id for entry in reader.entries()] == kept, f"after read number {failing} had failed"
        reader.close()
    else:
        raise AssertionError(f"an opening reads more than {FAILURES_MAX} times")
    assert failing > len(kept)


def test_without_threads_the_journal_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The spare segment is made in the foreground then."""

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    journal = open_journal(tmp_path / "w0")
    for number in range(1, 5):
        journal.begin(large_request(number))
    assert journal.statistics().engine.segments == 4
    journal.close()


def test_a_temporary_directory_that_cannot_be_used_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker killed on a full disk must come back; its journal has space of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    probe = stellane_probe(Options())
    assert probe.usable
    assert probe.facts["tried"].startswith("no: ")


def test_what_a_killed_writer_left_is_not_called_running(tmp_path: Path) -> None:
    """A reader sees whether anybody holds the journal."""

    def states() -> list[str]:
        reader = open_journal(tmp_path / "w0", read_only=True, create=False)
        reader.close()
        return [str(entry.state) for entry in reader.entries()]

    journal = open_journal(tmp_path / "w0")
    journal.begin(make_request(1))
    assert states() == ["running"]
    journal.close(clean=False)
    assert states() == ["pending"]


def test_a_reader_that_looks_keeps_no_writer_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks whether the lock is held, holds it for a moment."""
    open_journal(tmp_path / "w0").close()
    look = os.open(tmp_path / "w0" / "engine" / "LOCK", os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    reader = FileJournal(SEGMENT_BYTES_MIN)
    reader.open(tmp_path / "w0" / "engine", read_only=True)
    assert reader.in_use() is False, "two who look are no writer"
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        os.close(look)

    monkeypatch.setattr(engine.time, "sleep", sleep)
    open_journal(tmp_path / "w0").close()
    assert len(waits) == 1
