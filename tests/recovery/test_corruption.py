"""A damaged journal opens, says what it lost, and drops nothing else."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.recovery.damage import SEED, Original, build, copies, in_parts

from stellane.errors import JournalError
from stellane_journal_file import FileJournal
from stellane_journal_rocksdb import RocksDbJournal

FLIPS = 2000
CUT_BYTES = 4096
ROCKSDB_FLIPS = 200
SEGMENT_HEADER_BYTES = 1024
SMALL_SEGMENTS = functools.partial(FileJournal, segment_bytes=65_536)
MEMORY = Path("/dev/shm")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: the damage is made here, so nothing has to reach a disk."""
    if not MEMORY.is_dir():
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="stellane-", dir=MEMORY))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def file_journal(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """A journal of several 64 KiB segments."""
    original = build(tmp_path_factory.mktemp("file") / "w0", SMALL_SEGMENTS)
    assert len(segments(original.path)) >= 2
    return original


@pytest.fixture(scope="module")
def short_file_journal(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """A journal with little more than the 4 KiB that are cut."""
    return build(tmp_path_factory.mktemp("short") / "w0", SMALL_SEGMENTS, requests=40)


@pytest.fixture(scope="module")
def rocksdb_journal(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """A journal with its newest records in RocksDB's log and older ones in tables."""
    make_engine = functools.partial(RocksDbJournal, write_buffer_bytes=65_536, free_bytes_min=0)
    return build(tmp_path_factory.mktemp("rocksdb") / "w0", make_engine)


def segments(path: Path) -> list[Path]:
    """The segment files of a file journal."""
    return sorted((path / "engine").glob("seg-*.wal"))


def used_bytes(path: Path) -> int:
    """Where the last record in a segment ends."""
    used = len(path.read_bytes().rstrip(b"\0"))
    return used + -used % 8


def check_cuts(original: Original, directory: Path, offsets: Sequence[int]) -> list[int]:
    """The last segment cut at each offset; the offsets that were tried."""
    for offset, path in zip(offsets, copies(original, directory), strict=False):
        with segments(path)[-1].open("r+b") as file:
            file.truncate(offset)
        report = original.check(path, use=offset % 64 == 0)
        assert report.torn is not None, f"cut at byte {offset} was not noticed"
        assert report.corruption == [], f"cut at byte {offset} was taken for corruption"
        assert report.is_lost(max(original.present)), f"cut at byte {offset}: the newest record is not named"
    return list(offsets)


@pytest.mark.slow
def test_cut_at_every_byte_of_the_last_4_kib(short_file_journal: Original, memory: Path) -> None:
    """The last segment cut to any length inside its last 4 KiB: the torn tail is removed and named,
    and everything before the cut is there."""
    end = used_bytes(segments(short_file_journal.path)[-1])
    offsets = range(end - CUT_BYTES, end)
    assert sorted(in_parts(check_cuts, short_file_journal, memory, offsets)) == list(offsets)


@pytest.mark.slow
def test_zeros_from_any_byte_on(short_file_journal: Original, memory: Path) -> None:
    """Zeros from some byte to the end, as lost pages leave them: a record cut inside is torn and
    named. Only zeros that begin exactly between two records look like a journal that ended there."""
    last = segments(short_file_journal.path)[-1]
    content = last.read_bytes()
    end = used_bytes(last)
    boundaries = {0}
    offset = SEGMENT_HEADER_BYTES
    while offset < end:
        offset += 48 + -(-int.from_bytes(content[offset + 8 : offset + 12], "little") // 8) * 8
        boundaries.add(offset)
    for offset, path in zip(range(end - CUT_BYTES, end, 8), copies(short_file_journal, memory / "w0"), strict=False):
        segments(path)[-1].write_bytes(content[:offset].ljust(len(content), b"\0"))
        if offset in boundaries:
            journal = short_file_journal.open(path)
            assert journal.report.torn is None
            assert journal.report.corruption == []
            journal.close(clean=False)
        else:
            report = short_file_journal.check(path)
            assert report.torn is not None


class Flip(NamedTuple):
    """One bit of one segment file."""

    number: int
    file: str
    offset: int
    bit: int

    def __str__(self) -> str:
        return f"bit {self.bit} of byte {self.offset} of {self.file} (seed {SEED}, flip {self.number})"


def draw_flips(original: Original) -> list[Flip]:
    """FLIPS of them, mostly where records are, now and then in the unused rest."""
    dice = random.Random(SEED)
    spans = {file.name: (used_bytes(file), file.stat().st_size) for file in segments(original.path)}
    flips = []
    for number in range(FLIPS):
        name = dice.choice(sorted(spans))
        offset = dice.randrange(spans[name][number % 10 == 0])
        flips.append(Flip(number, name, offset, dice.randrange(8)))
    return flips


def check_flips(original: Original, directory: Path, flips: Sequence[Flip]) -> list[str]:
    """Each flip alone; what it cost."""
    newest = max(record.durable_seq for record in original.history.values())
    costs = []
    for flip, path in zip(flips, copies(original, directory), strict=False):
        file = path / "engine" / flip.file
        content = bytearray(file.read_bytes())
        content[flip.offset] ^= 1 << flip.bit
        file.write_bytes(content)
        report = original.check(path, use=flip.number % 40 == 0)
        assert report.torn is not None or report.corruption, f"{flip} was not noticed"
        lost = [seq for first, last in report.lost for seq in range(first, last + 1)]
        assert len(lost) <= 1, f"{flip}: one bit cost {len(lost)} records"
        if report.torn is not None:
            assert report.torn.first_seq > newest, f"{flip} was taken for a torn write"
        costs.append("torn" if report.torn else "records lost" if lost else "no record lost")
    return costs


@pytest.mark.slow
def test_random_bit_flips(file_journal: Original, memory: Path) -> None:
    """Each of 2,000 flipped bits in the segment files is noticed, and what it cost is named."""
    found = Counter(in_parts(check_flips, file_journal, memory, draw_flips(file_journal)))
    assert found.total() == FLIPS
    assert found["records lost"] > FLIPS // 2, found


@pytest.mark.slow
def test_a_missing_segment_is_corruption(file_journal: Original, tmp_path: Path) -> None:
    """Without its first segment a journal names every record that was in it."""
    path = next(copies(file_journal, tmp_path / "w0"))
    segments(path)[0].unlink()
    report = file_journal.check(path, use=True)
    assert report.torn is None
    assert report.lost[0][0] <= min(file_journal.present)


@pytest.mark.slow
def test_rocksdb_bit_flips(rocksdb_journal: Original, tmp_path: Path) -> None:
    """A flipped bit in RocksDB's files: the journal opens and names what is lost, or is refused
    with a JournalError."""
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    found = {"refused": 0, "reported": 0, "harmless": 0}
    for _, path in zip(range(ROCKSDB_FLIPS), copies(rocksdb_journal, tmp_path / "w0"), strict=False):
        data = sorted(file for file in (path / "engine" / "db").iterdir() if file.suffix in (".log", ".sst"))
        file = dice.choices(data, [file.stat().st_size for file in data])[0]
        content = bytearray(file.read_bytes())
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
        try:
            report = rocksdb_journal.check(path)
        except JournalError:
            found["refused"] += 1
        else:
            found["reported" if report.corruption or report.torn else "harmless"] += 1
    assert found["reported"] > ROCKSDB_FLIPS // 2, found


@pytest.mark.slow
def test_rocksdb_log_cut_at_its_end(rocksdb_journal: Original, tmp_path: Path) -> None:
    """RocksDB drops a cut end of its log in silence; the engine's own high-water mark names it."""
    logs = [log for log in (rocksdb_journal.path / "engine" / "db").glob("*.log") if log.stat().st_size]
    newest = max(logs, key=lambda log: int(log.stem))
    size = newest.stat().st_size
    cuts = range(max(0, size - CUT_BYTES), size, 61)
    for offset, path in zip(cuts, copies(rocksdb_journal, tmp_path / "w0"), strict=False):
        with (path / "engine" / "db" / newest.name).open("r+b") as file:
            file.truncate(offset)
        report = rocksdb_journal.check(path, use=offset % 5 == 0)
        assert report.is_lost(max(rocksdb_journal.present))
