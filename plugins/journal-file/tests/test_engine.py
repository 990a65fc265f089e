"""What is particular to the file engine: segments, the spare, the reserve, damage to whole files."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stellane.abc import Gap
from stellane.errors import JournalCorrupt, JournalError, JournalFull, JournalLocked, JournalPoisoned
from stellane.testing.journal_records import make_record, make_records
from stellane_journal_file import FileJournal, Options, stellane_create_journal, stellane_probe
from stellane_journal_file.engine import SEGMENT_BYTES_MIN
from stellane_journal_file.segment import RECORDS_OFFSET

DEADLINE_S = 10.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty engine directory."""
    (tmp_path / "engine").mkdir(mode=0o700)
    return tmp_path / "engine"


@pytest.fixture
def opened(path: Path) -> Iterator[Any]:
    """Open the journal; engines are closed at the end."""
    engines: list[FileJournal] = []

    def open_engine(**options: Any) -> FileJournal:
        engine = FileJournal(SEGMENT_BYTES_MIN)
        engines.append(engine)
        engine.open(path, **options)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


def fill(engine: FileJournal, first: int, count: int, payload_bytes: int = 8000) -> None:
    """Append records one by one; seven or eight of 8000 bytes fill a segment."""
    for seq, record in enumerate(make_records(first, count, payload_bytes), start=first):
        engine.append([record], seq)


def segments(path: Path) -> list[Path]:
    """The segment files."""
    return sorted(path.glob("seg-*.wal"))


def seqs(engine: FileJournal) -> list[int]:
    """The sequence numbers that scan gives."""
    return [item[0] for item in engine.scan() if isinstance(item, tuple)]


def gaps(engine: FileJournal) -> list[Gap]:
    """The gaps that scan gives."""
    return [item for item in engine.scan() if isinstance(item, Gap)]


# --- Files ------------------------------------------------------------------------------------


def test_segments_are_preallocated_private_and_whole(opened: Any, path: Path) -> None:
    """Each has its full size on disk from the start, mode 0600, and no record spans two of them."""
    fill(opened(), 1, 30)
    assert len(segments(path)) >= 4
    for segment in segments(path):
        found = segment.stat()
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert found.st_size == SEGMENT_BYTES_MIN
        assert found.st_blocks * 512 >= SEGMENT_BYTES_MIN
    assert stat.S_IMODE((path / "LOCK").stat().st_mode) == 0o600


def test_a_spare_is_ready(opened: Any, path: Path) -> None:
    """The next segment exists before it is needed, and goes when the journal is closed."""
    engine = opened()
    fill(engine, 1, 1)
    deadline = time.monotonic() + DEADLINE_S
    while not ((path / "spare.tmp").exists() and (path / "spare.tmp").stat().st_size == SEGMENT_BYTES_MIN):
        assert time.monotonic() < deadline, "no spare was made"
        time.sleep(0.001)
    engine.close()
    assert not (path / "spare.tmp").exists()


def test_leftovers_of_a_crash_are_no_obstacle(opened: Any, path: Path) -> None:
    """A half-made spare is made anew; half-made segments of their own size as well."""
    (path / "spare.tmp").write_bytes(b"half")
    (path / "seg-00000001.tmp").write_bytes(b"half")
    engine = opened()
    engine.append([make_record(1, bytes(200_000))], 1)
    fill(engine, 2, 20)
    assert seqs(engine) == list(range(1, 22))


def test_a_large_record_has_a_segment_of_its_own_size(opened: Any, path: Path) -> None:
    """It is stored whole, and small ones go on behind it in ordinary segments."""
    engine = opened()
    fill(engine, 1, 2)
    large = make_record(3, os.urandom(300_000))
    engine.append([large], 3)
    fill(engine, 4, 2)
    assert [segment.stat().st_size for segment in segments(path)] == [
        SEGMENT_BYTES_MIN,
        RECORDS_OFFSET + len(large),
        SEGMENT_BYTES_MIN,
    ]
    engine.close()
    engine = opened()
    assert seqs(engine) == [1, 2, 3, 4, 5]
    assert gaps(engine) == []


def test_released_segments_are_deleted(opened: Any, path: Path) -> None:
    """Whole segments go, the lowest first; the one in use stays."""
    engine = opened()
    fill(engine, 1, 30)
    before = len(segments(path))
    engine.release(20)
    assert len(segments(path)) < before
    first = seqs(engine)[0]
    assert 1 < first <= 21
    engine.release(30)
    assert len(segments(path)) == 1
    engine.close()
    engine = opened()
    engine.append(make_records(31, 1), 31)
    assert engine.statistics().segments == 1


def test_a_reader_keeps_what_is_released_meanwhile(opened: Any) -> None:
    """A scan that has begun ends whole, although the writer deletes the files under it."""
    writer = opened()
    fill(writer, 1, 30)
    scan = opened(create=False, read_only=True).scan()
    first = next(scan)
    writer.release(29)
    assert [first[0], *(item[0] for item in scan)] == list(range(1, 31))


def test_a_strange_directory_is_refused(opened: Any, path: Path) -> None:
    """Something else's files are not taken for a journal."""
    (path / "CURRENT").write_bytes(b"MANIFEST-000005\n")
    with pytest.raises(JournalCorrupt, match="CURRENT"):
        opened()


# --- Damage to whole files --------------------------------------------------------------------


def test_records_are_read_without_a_good_header(opened: Any, path: Path) -> None:
    """Both copies damaged: every record is there, and both copies are reported."""
    engine = opened()
    fill(engine, 1, 5)
    engine.close()
    with segments(path)[0].open("r+b") as file:
        file.write(bytes(RECORDS_OFFSET))
    engine = opened(create=False, read_only=True)
    assert seqs(engine) == [1, 2, 3, 4, 5]
    assert [gap.where for gap in gaps(engine)] == [
        "seg-00000001.wal header, copy 1",
        "seg-00000001.wal header, copy 2",
    ]


def test_a_missing_segment_is_named(opened: Any, path: Path) -> None:
    """A hole in the numbers is a gap with the file's name."""
    engine = opened()
    fill(engine, 1, 30)
    engine.close()
    segments(path)[1].unlink()
    assert [gap.where for gap in gaps(opened(create=False, read_only=True))] == ["seg-00000002.wal"]


def test_a_cut_segment_is_noticed_even_between_two_records(opened: Any, path: Path) -> None:
    """The header knows how long the file was."""
    engine = opened()
    fill(engine, 1, 3)
    end = engine._offset
    engine.close()
    os.truncate(segments(path)[0], end)
    engine = opened(create=False, read_only=True)
    assert seqs(engine) == [1, 2, 3]
    assert [gap.reason for gap in gaps(engine)] == [
        f"the file was cut: {SEGMENT_BYTES_MIN - end} bytes at its end are missing"
    ]


def test_swapped_segments_are_noticed(opened: Any, path: Path) -> None:
    """Two files that changed names do not pass for the journal."""
    engine = opened()
    fill(engine, 1, 30)
    engine.close()
    one, two = segments(path)[1:3]
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)
    found = gaps(opened(create=False, read_only=True))
    assert [gap.where for gap in found] == [one.name, two.name]
    assert "under another name" in found[0].reason


def test_another_journals_segment_is_damage(opened: Any, path: Path, tmp_path: Path) -> None:
    """Records with another id than the segment's header are not given out as records."""
    engine = opened()
    fill(engine, 1, 3)
    engine.close()
    content = bytearray(segments(path)[0].read_bytes())
    other = bytearray(content)
    for offset in range(RECORDS_OFFSET, len(other) - 8):
        if other[offset : offset + 4] == b"STJ1":
            other[offset + 32] ^= 1
    segments(path)[0].write_bytes(other)
    assert seqs(opened(create=False, read_only=True)) == []
    segments(path)[0].write_bytes(content)
    assert seqs(opened(create=False, read_only=True)) == [1, 2, 3]


def test_after_damage_new_records_go_into_a_fresh_segment(opened: Any, path: Path) -> None:
    """So that the damaged one can be released whole."""
    engine = opened()
    fill(engine, 1, 4)
    engine.close()
    with segments(path)[0].open("r+b") as file:
        file.seek(RECORDS_OFFSET + 9000)
        file.write(b"damage")
    engine = opened()
    assert len(gaps(engine)) == 1
    engine.truncate(4)
    fill(engine, 5, 1)
    assert len(segments(path)) == 2
    engine.release(4)
    assert len(segments(path)) == 1
    assert seqs(engine) == [5]
    assert gaps(engine) == []


def test_a_symbolic_link_is_not_followed(opened: Any, path: Path, tmp_path: Path) -> None:
    """Neither for the lock nor for a segment."""
    engine = opened()
    fill(engine, 1, 1)
    engine.close()
    shutil.move(segments(path)[0], tmp_path / "elsewhere")
    (path / "seg-00000001.wal").symlink_to(tmp_path / "elsewhere")
    assert [gap.where for gap in gaps(opened(create=False, read_only=True))] == ["seg-00000001.wal"]
    (path / "LOCK").unlink()
    (path / "LOCK").symlink_to(tmp_path / "lock")
    with pytest.raises(JournalError):
        opened()


# --- Failures ---------------------------------------------------------------------------------


def test_without_a_spare_half_a_segment_is_kept_for_endings(
    opened: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No space for a spare: new requests are refused from half a segment on, endings go on to its
    end, and both go on once there is space."""
    engine = opened()
    fill(engine, 1, 1, 800)
    made = []

    def no_space(*_: object) -> int:
        made.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    engine._spare.wait()
    engine._spare.close()
    monkeypatch.setattr("stellane_journal_file.spare.make_zeroed", no_space)
    engine._spare.start()
    seq = 2
    while 2 * (engine._offset + 848) <= SEGMENT_BYTES_MIN:
        engine.append([make_record(seq, bytes(800))], seq)
        seq += 1
    with pytest.raises(JournalFull, match="No space left"):
        engine.append([make_record(seq, bytes(800))], seq)
    assert 25_000 < engine._offset <= SEGMENT_BYTES_MIN // 2
    while engine._offset + 72 <= SEGMENT_BYTES_MIN:
        engine.append([make_record(seq, b"done")], seq, reserve=True)
        seq += 1
    with pytest.raises(JournalFull):
        engine.append([make_record(seq, bytes(800))], seq, reserve=True)
    assert len(made) <= 3, "a spare was tried far more often than once in RETRY_S"
    monkeypatch.undo()
    monkeypatch.setattr("stellane_journal_file.spare.RETRY_S", 0.0)
    engine.append([make_record(seq, bytes(800))], seq)
    assert seqs(engine) == list(range(1, seq + 1))
    assert len(segments(path)) == 2


def test_a_release_is_space_that_is_tried_at_once(opened: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after RETRY_S: the request that waits for it would be refused."""
    engine = opened()
    seq = 1
    while len(engine._segments) < 2 or 2 * engine._offset <= SEGMENT_BYTES_MIN:
        engine.append([make_record(seq, bytes(800))], seq)
        seq += 1

    def no_space(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    engine._spare.wait()
    engine._spare.close()
    monkeypatch.setattr("stellane_journal_file.spare.RETRY_S", 1000.0)
    with monkeypatch.context() as full:
        full.setattr("stellane_journal_file.spare.make_zeroed", no_space)
        engine._spare.start()
        with pytest.raises(JournalFull):
            engine.append([make_record(seq, bytes(800))], seq)
    with pytest.raises(JournalFull):
        engine.append([make_record(seq, bytes(800))], seq)
    engine.release(engine._segments[1].base_seq - 1)
    engine.append([make_record(seq, bytes(800))], seq)
    assert len(segments(path)) == 1


def test_a_short_write_for_lack_of_space_leaves_nothing(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a batch was written when the space ended: it is wiped, JournalFull, and the engine goes on."""
    engine = opened()
    fill(engine, 1, 2, 80)
    real = os.pwrite
    calls = []

    def short(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, data[:100], offset)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(JournalFull):
        engine.append(make_records(3, 2), 3)
    monkeypatch.undo()
    assert len(calls) == 3
    assert seqs(engine) == [1, 2]
    assert gaps(engine) == []
    fill(engine, 3, 1)
    assert seqs(engine) == [1, 2, 3]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_write_refused_whole_for_lack_of_space_changes_nothing(
    opened: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """JournalFull as long as it lasts; then the engine goes on with the same sequence number."""
    engine = opened()
    fill(engine, 1, 2, 80)

    def full(*_: object) -> int:
        raise OSError(number, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for reserve in (False, True):
        with pytest.raises(JournalFull):
            engine.append(make_records(3, 2), 3, reserve=reserve)
    monkeypatch.undo()
    assert seqs(engine) == [1, 2]
    fill(engine, 3, 1)
    assert engine.sync() == 3
    engine.close()
    engine = opened()
    assert seqs(engine) == [1, 2, 3]
    assert gaps(engine) == []


@pytest.mark.parametrize("wiped", [-1, 40])
def test_half_a_batch_that_cannot_be_wiped_poisons(opened: Any, monkeypatch: pytest.MonkeyPatch, wiped: int) -> None:
    """The wipe fails for lack of space too, or is cut short: what is left may not be written over."""
    engine = opened()
    fill(engine, 1, 2, 80)
    real = os.pwrite
    calls = []

    def short(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(descriptor, data[:100], offset)
        if len(calls) == 3 and wiped >= 0:
            return real(descriptor, data[:wiped], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", short)
    with pytest.raises(JournalPoisoned):
        engine.append(make_records(3, 2), 3)
    monkeypatch.undo()
    with pytest.raises(JournalPoisoned):
        fill(engine, 3, 1)


def test_a_failed_sync_in_the_background_poisons(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full segment that could not be synced may not be called synced later."""
    engine = opened()
    fill(engine, 1, 1)

    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    fill(engine, 2, 10)
    engine._spare.wait()
    monkeypatch.undo()
    with pytest.raises(JournalPoisoned):
        engine.sync()
    with pytest.raises(JournalPoisoned):
        fill(engine, 12, 1)


def test_a_forked_child_has_nothing_of_the_journal(opened: Any, path: Path) -> None:
    """No descriptor, no right to append, and its closing takes nothing from the parent."""
    engine = opened()
    fill(engine, 1, 8)
    engine._spare.wait()
    with warnings.catch_warnings():
        # From 3.12 on Python warns of a fork beside threads, which this process may have had before.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            held = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
            assert [file for file in held if file.is_relative_to(path)] == []
            with pytest.raises(JournalError, match="not open"):
                fill(engine, 9, 1)
            engine.close()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (path / "spare.tmp").exists()
    with pytest.raises(JournalLocked):
        opened()
    fill(engine, 9, 10)
    assert seqs(engine) == list(range(1, 19))


def test_a_reader_takes_no_records(opened: Any) -> None:
    """The error says why."""
    opened().append(make_records(1, 1), 1)
    with pytest.raises(JournalError, match="reading only"):
        opened(create=False, read_only=True).append(make_records(2, 1), 2)


# --- The plugin -------------------------------------------------------------------------------


def test_the_least_segment_size_is_enforced() -> None:
    """In the options and in the engine."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"segment_bytes": SEGMENT_BYTES_MIN - 1}, Options)
    with pytest.raises(ValueError, match=str(SEGMENT_BYTES_MIN)):
        FileJournal(SEGMENT_BYTES_MIN - 1)
    engine = stellane_create_journal(msgspec.convert({"segment_bytes": SEGMENT_BYTES_MIN}, Options))
    assert engine.name == "file"


def test_the_probe_tries() -> None:
    """It writes and reads a record."""
    assert stellane_probe(Options()).usable
