"""The journal over time: snapshots keep what is alive, damage is reported, kept aside and left behind."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stellane.abc import EntryState
from stellane.errors import JournalError, JournalFull
from stellane.recovery import directory, quarantine
from stellane.recovery import journal as journal_module
from stellane.recovery.journal import Journal
from stellane.recovery.record import walk
from stellane.testing.journal_records import make_request
from stellane.testing.plain_journal import PlainJournal


def states(journal: Journal) -> dict[int, EntryState]:
    """Where each entry stands."""
    return {entry.entry_id: entry.state for entry in journal.entries()}


# --- Snapshots --------------------------------------------------------------------------------


def test_snapshots_keep_every_live_entry_and_bound_the_file(open_journal: Any, tmp_path: Path) -> None:
    """Through hundreds of snapshots no entry, state or attempt is lost, and the file stays small."""
    journal = open_journal(snapshot_bytes=2000)
    expected = {}
    largest = 0
    for number in range(600):
        entry = journal.begin(make_request(number, body=b"x" * (number % 300)))
        if number % 40 == 0:
            journal.attempt(entry, "killed by signal 9")
        if number % 60 == 1:
            journal.dead(entry, f"dead {number}")
        elif number % 60 == 2:
            journal.orphan(entry, f"orphan {number}")
        elif number % 40:
            journal.responding(entry, 200)
            journal.done(entry, 200, delivered=True)
            continue
        expected[entry.entry_id] = (entry.request, entry.state, len(entry.attempts), entry.reason)
        largest = max(largest, (tmp_path / "w0" / "engine" / "records").stat().st_size)
    statistics = journal.statistics()
    assert statistics.snapshots_total > 20
    assert largest < 3 * statistics.live_bytes + 20_000
    journal.flush()
    found = {
        entry.entry_id: (entry.request, entry.state, len(entry.attempts), entry.reason)
        for entry in open_journal().entries()
    }
    lost_state = {EntryState.RECOVERING: EntryState.PENDING, EntryState.RUNNING: EntryState.PENDING}
    assert found == {
        key: (request, lost_state.get(state, state), attempts, reason)
        for key, (request, state, attempts, reason) in expected.items()
    }


def test_a_crash_anywhere_in_a_snapshot_is_harmless(
    open_journal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each step of a snapshot the files give the same entries."""
    monkeypatch.setattr("stellane.recovery.journal.SNAPSHOT_BATCH_BYTES", 300)
    copies: list[Path] = []

    class Copying(PlainJournal):
        copying = False

        def copy(self) -> None:
            if self.copying:
                copies.append(tmp_path / f"copy-{len(copies)}")
                shutil.copytree(tmp_path / "w0", copies[-1])

        def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
            super().append(records, first_seq, reserve=reserve)
            self.copy()

        def release(self, upto_seq: int) -> None:
            super().release(upto_seq)
            self.copy()

    engine = Copying()
    journal = open_journal(engine)
    for number in range(10):
        entry = journal.begin(make_request(number, body=b"x" * 100))
        if number % 3 == 0:
            journal.done(entry, 200, delivered=True)
        elif number % 3 == 1:
            journal.attempt(entry)
    journal.flush()
    engine.copying = True
    journal.snapshot()
    engine.copying = False
    expected = [(entry.entry_id, entry.request, entry.attempts) for entry in journal.entries()]
    assert len(copies) > 6
    for copy in copies:
        opened = Journal.open(copy, engine_name="plain", engine=PlainJournal())
        assert [(entry.entry_id, entry.request, entry.attempts) for entry in opened.pending()] == expected
        assert opened.report.corruption == []
        opened.close()


def test_a_journal_of_nothing_but_live_entries_is_not_rewritten_all_the_time(open_journal: Any) -> None:
    """A snapshot waits until twice the live bytes have been written since the last one."""
    journal = open_journal(snapshot_bytes=1000)
    for number in range(500):
        journal.begin(make_request(number))
    assert journal.statistics().snapshots_total <= 12


@pytest.mark.parametrize("seed", range(8))
def test_after_every_step_the_file_tells_what_memory_knows(open_journal: Any, tmp_path: Path, seed: int) -> None:
    """With a snapshot due at every step, whatever the step: a snapshot never comes between a record
    and its place in the ledger."""
    dice = random.Random(seed)
    journal = open_journal(snapshot_bytes=1)
    for number in range(80):
        live = [entry for entry in journal.entries() if entry.state in (EntryState.RUNNING, EntryState.PENDING)]
        entry = dice.choice(live) if live and dice.random() < 0.7 else journal.begin(make_request(number))
        step = dice.randrange(6)
        if step == 0:
            journal.responding(entry, 200)
        elif step == 1:
            journal.attempt(entry, "killed by signal 9")
            journal.attempt_failed(entry, "TimeoutError")
        elif step == 2:
            journal.dead(entry, "gave up") if number % 9 == 0 else journal.failed(entry, 500)
        elif step == 3:
            journal.mark()
        else:
            journal.done(entry, 200, delivered=True)
        journal.flush()
        reader = Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal(), read_only=True)
        found = [entry for entry in reader.entries() if entry.state not in (EntryState.DONE, EntryState.FAILED)]
        reader.close()
        assert [(e.entry_id, e.request, e.state, e.attempts, e.response_started) for e in found] == [
            (e.entry_id, e.request, e.state, e.attempts, e.response_started) for e in journal.entries()
        ]
    assert journal.statistics().snapshots_total > 10


def test_damage_to_the_end_of_a_snapshot_is_not_taken_for_a_torn_write(open_journal: Any, tmp_path: Path) -> None:
    """The older records are gone by then, so the snapshot is acknowledged before they go."""
    journal = open_journal()
    entries = [journal.begin(make_request(number)).entry_id for number in range(3)]
    journal.snapshot()
    journal.close(clean=False)
    damage(tmp_path, 7)
    journal = open_journal()
    assert journal.report.torn is None
    assert journal.report.lost == [(7, 7)]
    assert [entry.entry_id for entry in journal.pending()] == entries


# --- Damage -----------------------------------------------------------------------------------


def damage(tmp_path: Path, seq: int) -> bytes:
    """Flip a bit in the record `seq` of the plain journal's file; the record's damaged bytes."""
    file = tmp_path / "w0" / "engine" / "records"
    content = bytearray(file.read_bytes())
    for found in walk(bytes(content)):
        if found.seq == seq:
            content[found.offset + 60] ^= 1
            file.write_bytes(content)
            return bytes(content[found.offset : found.offset + len(found.raw)])
    raise AssertionError(f"there is no record {seq}")


def test_a_torn_tail_is_removed_and_kept_aside(open_journal: Any, tmp_path: Path) -> None:
    """The last record cut short: reported, copied to quarantine, and the journal goes on."""
    journal = open_journal()
    kept, torn = journal.begin(make_request(1)), journal.begin(make_request(2))
    journal.close(clean=False)
    file = tmp_path / "w0" / "engine" / "records"
    os.truncate(file, file.stat().st_size - 8)
    remains = file.read_bytes()[-100:]
    journal = open_journal()
    report = journal.report
    assert report.corruption == []
    assert report.torn is not None
    assert report.torn.first_seq == torn.entry_id
    assert b"".join(path.read_bytes() for path in report.quarantined if path.suffix == ".bin").endswith(remains)
    added = journal.begin(make_request(3))
    journal = open_journal()
    assert (journal.report.torn, journal.report.corruption) == (None, [])
    assert list(states(journal)) == [kept.entry_id, added.entry_id]


def test_a_torn_tail_releases_what_had_ended_and_nothing_else(open_journal: Any, tmp_path: Path) -> None:
    """Live requests are written anew; who counts requests afterwards finds why some are gone in the quarantine."""
    journal = open_journal()
    ended, live = journal.begin(make_request(1)), journal.begin(make_request(2))
    journal.done(ended, 200, delivered=True)
    journal.begin(make_request(3))
    journal.close(clean=False)
    file = tmp_path / "w0" / "engine" / "records"
    os.truncate(file, file.stat().st_size - 8)
    open_journal()
    assert list(states(open_journal())) == [live.entry_id]
    assert list((tmp_path / "w0" / "quarantine").iterdir())


def test_corruption_is_reported_kept_aside_and_left_behind(open_journal: Any, tmp_path: Path) -> None:
    """A damaged record in the middle: later ones are kept, the loss is named, the raw bytes are in
    quarantine, and the next opening finds a whole journal."""
    journal = open_journal()
    first, lost, last = (journal.begin(make_request(number)) for number in range(3))
    journal.dead(first, "gave up")
    journal.close(clean=False)
    raw = damage(tmp_path, lost.entry_id)
    journal = open_journal()
    report = journal.report
    assert report.lost == [(lost.entry_id, lost.entry_id)]
    assert report.torn is None
    assert raw in [path.read_bytes() for path in report.quarantined]
    assert states(journal) == {first.entry_id: EntryState.DEAD, last.entry_id: EntryState.PENDING}
    journal = open_journal()
    assert (journal.report.torn, journal.report.corruption) == (None, [])
    assert states(journal) == {first.entry_id: EntryState.DEAD, last.entry_id: EntryState.PENDING}


def test_after_a_mark_damage_to_the_newest_record_is_corruption(open_journal: Any, tmp_path: Path) -> None:
    """Without the mark it looks torn; with it it is known to have been acknowledged."""
    for mark in (False, True):
        journal = open_journal()
        entry = journal.begin(make_request(1))
        if mark:
            journal.mark()
        journal.close(clean=False)
        damage(tmp_path, entry.entry_id)
        report = open_journal().report
        assert (report.torn is None) is mark
        assert (report.lost == [(entry.entry_id, entry.entry_id)]) is mark


def test_a_torn_writers_epoch_is_not_used_again(open_journal: Any, tmp_path: Path) -> None:
    """Its attempts may have run with fencing tokens of that epoch."""
    journal = open_journal()
    journal.begin(make_request(1))
    journal = open_journal()
    assert journal.epoch == 2
    (entry,) = journal.pending()
    journal.done(entry, 200, delivered=True)
    second = journal.begin(make_request(2)).entry_id
    journal.close(clean=False)
    damage(tmp_path, second - 1)
    journal = open_journal()
    assert journal.report.torn is not None
    assert journal.epoch == 3


class FullDisk:
    """Takes the copies of damaged bytes in part, and then no more, for the next `full` of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = 1000
        self.whole = 0
        """Copies that it still takes."""
        self.tries = 0
        self._write = directory.write_new
        monkeypatch.setattr(directory, "write_new", self.write_new)

    def write_new(self, path: Path, content: bytes) -> None:
        self.tries += 1
        if self.full and not self.whole:
            self.full -= 1
            self._write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.whole -= 1
        self._write(path, content)


@pytest.mark.parametrize("taken", [0, 1, 2, 3])
def test_without_space_for_copies_damage_stays_and_the_journal_opens(
    open_journal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """What is pending is known, nothing is written behind the damage, and with space everything is made good."""
    journal = open_journal()
    first, lost, second, torn = (journal.begin(make_request(number)) for number in range(4))
    journal.close(clean=False)
    raw = {damage(tmp_path, lost.entry_id), damage(tmp_path, torn.entry_id)}
    file = tmp_path / "w0" / "engine" / "records"
    before = file.read_bytes()
    monkeypatch.setattr(quarantine, "RETRY_S", 0.0)
    disk = FullDisk(monkeypatch)
    disk.whole = taken
    journal = open_journal()
    assert [entry.entry_id for entry in journal.pending()] == [first.entry_id, second.entry_id]
    for refused in (lambda: journal.begin(make_request(5)), lambda: journal.attempt(journal.pending()[0])):
        with pytest.raises(JournalFull):
            refused()
    assert file.read_bytes() == before
    monkeypatch.setattr(journal_module, "ROOM_BYTES_MIN", 0)
    disk.full = 1  # so that it is made good by the snapshot that was to make room
    added = journal.begin(make_request(6))
    assert journal.statistics().snapshots_total == 1
    # No try that failed has left a part, and what was kept before is not kept again.
    kept = [path.read_bytes() for path in (tmp_path / "w0" / "quarantine").glob("*.bin")]
    assert sorted(kept) == sorted(raw)
    journal = open_journal()
    assert (journal.report.torn, journal.report.corruption) == (None, [])
    assert list(states(journal)) == [first.entry_id, second.entry_id, added.entry_id]


def test_closing_without_space_for_copies_leaves_the_damage_to_the_next_opening(
    open_journal: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a closed journal stays closed. A full disk is not tried for each request."""
    journal = open_journal()
    entry = journal.begin(make_request(1))
    journal.close(clean=False)
    raw = damage(tmp_path, entry.entry_id)
    disk = FullDisk(monkeypatch)
    monkeypatch.setattr(quarantine, "RETRY_S", 60.0)
    journal = open_journal()
    for refused in [lambda: journal.begin(make_request(2))] * 10 + [journal.close]:
        with pytest.raises(JournalFull):
            refused()
    assert disk.tries == 1
    disk.full = 0
    with pytest.raises(JournalError, match="closed"):
        journal.begin(make_request(3))
    journal = open_journal()
    assert raw in [path.read_bytes() for path in journal.report.quarantined]


def test_a_bad_quarantine_stops_the_repair(open_journal: Any, tmp_path: Path) -> None:
    """Nothing is removed while its copy cannot be made."""
    journal = open_journal()
    journal.begin(make_request(1))
    entry = journal.begin(make_request(2))
    journal.close(clean=False)
    damage(tmp_path, entry.entry_id)
    before = (tmp_path / "w0" / "engine" / "records").read_bytes()
    (tmp_path / "w0" / "quarantine").rmdir()
    (tmp_path / "w0" / "quarantine").write_bytes(b"in the way")
    with pytest.raises(JournalError):
        open_journal()
    assert (tmp_path / "w0" / "engine" / "records").read_bytes() == before
