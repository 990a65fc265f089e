"""An undamaged journal, what a damaged copy of it must still hold, and many copies opened at a time.

The oracle is exact: of the original records those that the report does not name are folded
into a ledger, and the opened journal must hold just these entries, with the same requests,
states and attempts. So nothing may be missing that is not named, and nothing changed.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from stellane.abc import EntryState, JournalEngine
from stellane.recovery.checker import ScanReport
from stellane.recovery.journal import Journal
from stellane.recovery.ledger import FINISHED, Ledger
from stellane.recovery.payload import decode_payload
from stellane.recovery.record import Record, decode
from stellane.testing.journal_records import make_request
from stellane_journal_rocksdb import RocksDbJournal

SEED = 20_261_123


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


def in_parts(check: Callable[..., list[Any]], original: Original, directory: Path, damage: Sequence[Any]) -> list[Any]:
    """`check(original, directory, some of the damage)` in one process more than there are CPUs, for each
    opening waits for threads and for the disk. What they return, as one list; raises what any of them raises."""
    processes = (os.cpu_count() or 1) + 1
    context = multiprocessing.get_context("spawn")  # this process has threads, which a fork would leave behind
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        futures = [
            pool.submit(check, original, directory / f"part-{number}", damage[number::processes])
            for number in range(processes)
        ]
        return [item for future in futures for item in future.result()]
