"""A damaged journal opens, says what it lost, and drops nothing else.

The oracle is exact: of the original records those that the report does not name are folded
into a ledger, and the opened journal must hold just these entries, with the same requests,
states and attempts. So nothing may be missing that is not named, and nothing changed.
"""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stellane.abc import EntryState, JournalEngine
from stellane.errors import JournalError
from stellane.recovery.checker import ScanReport
from stellane.recovery.journal import Journal
from stellane.recovery.ledger import FINISHED, Ledger
from stellane.recovery.payload import decode_payload
from stellane.recovery.record import Record, decode
from stellane.testing.journal_records import make_request
from stellane_journal_file import FileJournal
from stellane_journal_rocksdb import RocksDbJournal

SEED = 20_261_123
FLIPS = 2000
CUT_BYTES = 4096
ROCKSDB_FLIPS = 200
SEGMENT_HEADER_BYTES = 1024


@dataclass(frozen=True, eq=False)
class Original:
    """An undamaged journal, as a crash left it.

    `history` are all records ever written, `present` the seqs that the undamaged journal still
    has. Damage to the record of a release may bring released ones back; that is no harm.
    """

    path: Path
    history: dict[int, Record]
    present: frozenset[int]
    make_engine: Callable[[], JournalEngine]

    def kept(self, report: ScanReport) -> tuple[int, ...]:
        """The sequence numbers that must have been accepted, given what `report` names."""
        kept = tuple(seq for seq in self.history if seq >= report.first_seq and not report.is_lost(seq))
        missing = [seq for seq in self.present.difference(kept) if not report.is_lost(seq)]
        assert missing == [], "records are missing and not named"
        return kept

    @functools.lru_cache(maxsize=1000)  # noqa: B019 - there are two of these, made once
    def ledger_of(self, kept: tuple[int, ...]) -> dict[int, tuple[Any, ...]]:
        """What these records amount to after a crash."""
        ledger = Ledger(keep_finished=False)
        for seq in kept:
            record = self.history[seq]
            ledger.apply(record, decode_payload(record.type, record.payload))
        ledger.suspend(max(record.epoch for record in self.history.values()) + 1)
        return {entry.entry_id: facts(entry) for entry in ledger.entries.values()}

    def open(self, path: Path) -> Journal:
        """Open a (damaged) copy for writing."""
        engine = self.make_engine()
        return Journal.open(path, engine_name=engine.name, engine=engine)

    def check(self, path: Path, *, use: bool = False) -> ScanReport:
        """Open a damaged copy and hold it against the oracle; with `use` also go on with it."""
        journal = self.open(path)
        try:
            report = journal.report
            kept = self.kept(report)
            assert report.records == len(kept)
            assert {entry.entry_id: facts(entry) for entry in journal.entries()} == self.ledger_of(kept)
            for file in report.quarantined:
                assert file.stat().st_size > 0
            if not use:
                return report
            added = journal.begin(make_request(9999)).entry_id
            expected = [entry.entry_id for entry in journal.entries()]
            assert added in expected
        finally:
            journal.close(clean=False)
        journal = self.open(path)
        try:
            assert journal.report.torn is None
            assert journal.report.corruption == []
            assert [entry.entry_id for entry in journal.entries()] == expected
        finally:
            journal.close(clean=False)
        return report


def facts(entry: Any) -> tuple[Any, ...]:
    """What must survive of an entry."""
    assert entry.state not in FINISHED
    attempts = tuple(msgspec.structs.astuple(attempt) for attempt in entry.attempts)
    return (entry.entry_id, msgspec.structs.astuple(entry.request), entry.state, attempts, entry.response_started)


def fill(journal: Journal, requests: int) -> None:
    """Requests of every fate, a snapshot in the middle, marks as an idle worker writes them."""
    dice = random.Random(SEED)
    for number in range(1, requests + 1):
        entry = journal.begin(make_request(number, body=dice.randbytes(dice.randrange(700))))
        fate = dice.randrange(8)
        if fate < 3:
            journal.responding(entry, 200)
            journal.done(entry, 200, delivered=True)
        elif fate == 3:
            journal.failed(entry, 500, "ValueError")
        elif fate == 4:
            journal.attempt(entry, "killed by signal 9")
            journal.attempt_failed(entry, "TimeoutError")
            journal.dead(entry, "too many attempts")
        elif fate == 5:
            journal.orphan(entry, "POST without a hook")
        elif fate == 6:
            journal.attempt(entry, "killed by signal 11")
        if number % 4 == 0:
            journal.mark()
        if number == requests // 4:
            journal.snapshot()
    journal.mark()


def build(path: Path, make_engine: Callable[[], JournalEngine], requests: int = 120) -> Original:
    """Write the journal, take its files as a crash leaves them, and keep all that was written."""
    engine = make_engine()
    live = path.with_name("live")
    journal = Journal.open(live, engine_name=engine.name, engine=engine)
    history: dict[int, Record] = {}
    append = engine.append

    def recording(records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        append(records, first_seq, reserve=reserve)
        history.update((first_seq + number, decode(raw)) for number, raw in enumerate(records))

    journal._engine_append = recording
    fill(journal, requests)
    states = {entry.state for entry in journal.entries()}
    assert states >= {EntryState.RUNNING, EntryState.RECOVERING, EntryState.DEAD, EntryState.ORPHAN}
    settle(engine)
    # Copied before it is closed: closing RocksDB would move everything from its log into tables.
    shutil.copytree(live, path)
    journal.close(clean=False)
    engine = make_engine()
    engine.open(path / "engine", create=False, read_only=True)
    present = set()
    for item in engine.scan():
        assert isinstance(item, tuple)
        assert decode(item[1]) == history[item[0]]
        present.add(item[0])
    engine.close()
    return Original(path, history, frozenset(present), make_engine)


def settle(engine: JournalEngine) -> None:
    """Wait until RocksDB moves nothing in the background, so that its files can be copied."""
    if not isinstance(engine, RocksDbJournal):
        return
    deadline = time.monotonic() + 10.0
    names = ("mem-table-flush-pending", "num-running-flushes", "compaction-pending", "num-running-compactions")
    while any(engine._database.property_int_value(f"rocksdb.{name}") for name in names):
        assert time.monotonic() < deadline, "RocksDB does not come to rest"
        time.sleep(0.01)


def copies(original: Original, directory: Path) -> Iterator[Path]:
    """Fresh copies of the original, one after another in the same place."""
    while True:
        shutil.copytree(original.path, directory)
        yield directory
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def file_journal(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """A journal of several 64 KiB segments."""
    original = build(tmp_path_factory.mktemp("file") / "w0", lambda: FileJournal(segment_bytes=65_536))
    assert len(segments(original.path)) >= 2
    return original


@pytest.fixture(scope="module")
def short_file_journal(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """A journal with little more than the 4 KiB that are cut."""
    return build(tmp_path_factory.mktemp("short") / "w0", lambda: FileJournal(segment_bytes=65_536), requests=40)


@pytest.fixture(scope="module")
def rocksdb_journal(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """A journal with its newest records in RocksDB's log and older ones in tables."""

    def make_engine() -> JournalEngine:
        return RocksDbJournal(write_buffer_bytes=65_536, free_bytes_min=0)

    return build(tmp_path_factory.mktemp("rocksdb") / "w0", make_engine)


def segments(path: Path) -> list[Path]:
    """The segment files of a file journal."""
    return sorted((path / "engine").glob("seg-*.wal"))


def used_bytes(path: Path) -> int:
    """Where the last record in a segment ends."""
    used = len(path.read_bytes().rstrip(b"\0"))
    return used + -used % 8


@pytest.mark.slow
def test_cut_at_every_byte_of_the_last_4_kib(short_file_journal: Original, tmp_path: Path) -> None:
    """The last segment cut to any length inside its last 4 KiB: the torn tail is removed and named,
    and everything before the cut is there."""
    end = used_bytes(segments(short_file_journal.path)[-1])
    for offset, path in zip(range(end - CUT_BYTES, end), copies(short_file_journal, tmp_path / "w0"), strict=False):
        last = segments(path)[-1]
        with last.open("r+b") as file:
            file.truncate(offset)
        report = short_file_journal.check(path, use=offset % 64 == 0)
        assert report.torn is not None, f"cut at byte {offset} was not noticed"
        assert report.corruption == [], f"cut at byte {offset} was taken for corruption"
        assert report.is_lost(max(short_file_journal.present))


@pytest.mark.slow
def test_zeros_from_any_byte_on(short_file_journal: Original, tmp_path: Path) -> None:
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
    for offset, path in zip(range(end - CUT_BYTES, end, 8), copies(short_file_journal, tmp_path / "w0"), strict=False):
        segments(path)[-1].write_bytes(content[:offset].ljust(len(content), b"\0"))
        if offset in boundaries:
            journal = short_file_journal.open(path)
            assert journal.report.torn is None
            assert journal.report.corruption == []
            journal.close(clean=False)
        else:
            report = short_file_journal.check(path)
            assert report.torn is not None


@pytest.mark.slow
def test_random_bit_flips(file_journal: Original, tmp_path: Path) -> None:
    """Each of 2,000 flipped bits in the segment files is noticed, and what it cost is named."""
    dice = random.Random(SEED)
    print(f"seed {SEED}")
    found = {"torn": 0, "records lost": 0, "no record lost": 0}
    newest = max(record.durable_seq for record in file_journal.history.values())
    for number, path in zip(range(FLIPS), copies(file_journal, tmp_path / "w0"), strict=False):
        file = dice.choice(segments(path))
        content = bytearray(file.read_bytes())
        # Mostly where records are, now and then in the unused rest.
        span = len(content) if number % 10 == 0 else used_bytes(file)
        offset, bit = dice.randrange(span), dice.randrange(8)
        content[offset] ^= 1 << bit
        file.write_bytes(content)
        report = file_journal.check(path, use=number % 40 == 0)
        where = f"bit {bit} of byte {offset} of {file.name} (seed {SEED}, flip {number})"
        assert report.torn is not None or report.corruption, f"{where} was not noticed"
        lost = [seq for first, last in report.lost for seq in range(first, last + 1)]
        assert len(lost) <= 1, f"{where}: one bit cost {len(lost)} records"
        if report.torn is not None:
            assert report.torn.first_seq > newest, f"{where} was taken for a torn write"
        found["torn" if report.torn else "records lost" if lost else "no record lost"] += 1
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
