"""The journal: what is recorded of a request, what a crash leaves of it, and what it refuses."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stellane.abc import EntryState
from stellane.errors import JournalFull, JournalPoisoned
from stellane.recovery.journal import (
    LAZY_RECORDS_MAX,
    RESERVED_SNAPSHOT_BYTES_MAX,
    ROOM_BYTES_MIN,
    SNAPSHOT_BATCH_BYTES,
    Journal,
    LedgerEntry,
)
from stellane.recovery.payload import TRACESTATE_BYTES_MAX
from stellane.recovery.record import OVERHEAD_BYTES_MAX, RecordType, decode, walk
from stellane.testing.journal_records import make_request
from stellane.testing.plain_journal import PlainJournal


def types_on_disk(path: Path) -> list[RecordType]:
    """The types of the records in the file of a plain journal."""
    return [decode(found.raw).type for found in walk((path / "w0" / "engine" / "records").read_bytes())]


def states(journal: Journal) -> dict[int, EntryState]:
    """Where each entry stands."""
    return {entry.entry_id: entry.state for entry in journal.entries()}


class FailingEngine(PlainJournal):
    """Raises `error` from append once it is set, and counts the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.calls = 0

    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        super().append(records, first_seq, reserve=reserve)


class FullEngine(PlainJournal):
    """Has space for the ends of requests only, while `full`."""

    full = False

    def check_space(self) -> None:
        if self.full:
            raise JournalFull("no space", path=self.path)


# --- What happens to a request ----------------------------------------------------------------


def test_begin_is_on_record_when_it_returns(open_journal: Any, tmp_path: Path) -> None:
    """The whole request is in the file before the handler can exist."""
    journal = open_journal()
    request = make_request(1, body=b"x" * 1000)
    entry = journal.begin(request)
    assert entry.state is EntryState.RUNNING
    assert types_on_disk(tmp_path) == [RecordType.BEGIN]
    journal = open_journal()
    (found,) = journal.pending()
    assert (found.entry_id, found.request) == (entry.entry_id, request)
    assert found.first_received_ns == request.received_ns


def test_a_reader_calls_nothing_running_behind_a_clean_end(open_journal: Any, tmp_path: Path) -> None:
    """A stop that cut a request short leaves it pending; while the writer lives, or if it died, nobody can tell."""
    journal = open_journal()
    entry = journal.begin(make_request(1))

    def read() -> EntryState:
        reader = Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal(), read_only=True)
        state = states(reader)[entry.entry_id]
        reader.close()
        return state

    assert read() is EntryState.RUNNING
    journal.close()
    assert read() is EntryState.PENDING


def test_what_a_crash_leaves(open_journal: Any) -> None:
    """Requests without an end are pending; ends are kept; attempts and a started response are known."""
    journal = open_journal()
    entries: list[LedgerEntry] = [journal.begin(make_request(number)) for number in range(8)]
    running, responding, done, failed, replaying, retried, dead, orphan = entries
    journal.responding(responding, 201)
    journal.done(done, 200, delivered=True)
    journal.failed(failed, 500, "ValueError")
    assert journal.attempt(replaying, "killed by signal 9") == 1
    assert journal.attempt(retried) == 1
    journal.attempt_failed(retried, "TimeoutError")
    assert retried.state is EntryState.PENDING
    assert journal.attempt(retried) == 2
    journal.dead(dead, "gave up")
    journal.orphan(orphan, "may not be replayed")
    journal.flush()
    before = states(journal)
    assert before[replaying.entry_id] is EntryState.RECOVERING

    journal = open_journal()
    assert [entry.entry_id for entry in journal.pending()] == [
        entry.entry_id for entry in (running, responding, replaying, retried)
    ]
    found = {entry.entry_id: entry for entry in journal.entries()}
    assert done.entry_id not in found
    assert failed.entry_id not in found
    assert found[responding.entry_id].response_started
    assert found[responding.entry_id].status == 201
    assert not found[running.entry_id].response_started
    assert [attempt.crash for attempt in found[replaying.entry_id].attempts] == ["killed by signal 9"]
    assert [attempt.error for attempt in found[retried.entry_id].attempts] == ["TimeoutError", ""]
    assert (found[dead.entry_id].state, found[dead.entry_id].reason) == (EntryState.DEAD, "gave up")
    assert journal.entries(EntryState.ORPHAN) == [found[orphan.entry_id]]
    assert journal.attempt(found[retried.entry_id]) == 3


def test_an_attempt_is_on_record_before_it_runs(open_journal: Any) -> None:
    """A process that dies in its attempt has used it up."""
    journal = open_journal()
    journal.begin(make_request(1))
    for number in (1, 2, 3):
        journal = open_journal()
        (entry,) = journal.pending()
        assert journal.attempt(entry) == number


def test_the_end_is_lazy(open_journal: Any, tmp_path: Path) -> None:
    """done writes nothing by itself; the next append or flush writes it, in order."""
    journal = open_journal()
    first, second = journal.begin(make_request(1)), journal.begin(make_request(2))
    journal.done(first, 200, delivered=True)
    assert types_on_disk(tmp_path) == [RecordType.BEGIN, RecordType.BEGIN]
    journal.responding(second, 200)
    journal.done(second, 200, delivered=False)
    journal.flush()
    written = [RecordType.BEGIN, RecordType.BEGIN, RecordType.DONE, RecordType.RESP, RecordType.DONE]
    assert types_on_disk(tmp_path) == written
    journal.flush()
    assert types_on_disk(tmp_path) == written


def test_a_lost_end_costs_a_replay_and_nothing_else(open_journal: Any) -> None:
    """A crash between the answer and the lazy DONE leaves the request pending."""
    journal = open_journal()
    entry = journal.begin(make_request(1))
    journal.responding(entry, 200)
    journal.done(entry, 200, delivered=True)
    (pending,) = open_journal().pending()
    assert pending.response_started


def test_ends_held_back_are_bounded(open_journal: Any, tmp_path: Path) -> None:
    """More than LAZY_RECORDS_MAX of them are written without a flush."""
    journal = open_journal()
    entries = [journal.begin(make_request(number)) for number in range(LAZY_RECORDS_MAX + 1)]
    for entry in entries[:-1]:
        journal.done(entry, 200, delivered=True)
    assert RecordType.DONE not in types_on_disk(tmp_path)
    journal.done(entries[-1], 200, delivered=True)
    assert types_on_disk(tmp_path).count(RecordType.DONE) == LAZY_RECORDS_MAX + 1


def test_a_large_body_is_left_out_whole(open_journal: Any) -> None:
    """A body of body_bytes_max is kept, one byte more is omitted, never a part of it."""
    journal = open_journal(body_bytes_max=1000)
    kept = journal.begin(make_request(1, body=b"x" * 1000))
    omitted = journal.begin(make_request(2, body=b"x" * 1001))
    assert not kept.request.body_omitted
    assert (omitted.request.body, omitted.request.body_omitted, omitted.request.body_bytes) == (b"", True, 1001)
    found = {entry.entry_id: entry.request for entry in open_journal().entries()}
    assert len(found[kept.entry_id].body) == 1000
    assert found[omitted.entry_id].body_omitted


@pytest.mark.parametrize("reason", ["\ud800 alone", 42, ValueError("an error"), "long " * 1_000_000])
def test_the_words_of_an_application_always_fit_a_record(open_journal: Any, reason: Any) -> None:
    """Errors hold what strangers sent, and hooks give what is no text: a later scan reads the record all the same."""
    journal = open_journal()
    ended, given_up, left, tried = [journal.begin(make_request(number)) for number in range(4)]
    journal.failed(ended, 500, reason)
    journal.dead(given_up, reason)
    journal.orphan(left, reason)
    journal.attempt(tried)
    journal.attempt_failed(tried, reason)
    journal.flush()
    assert journal.statistics().engine.bytes < 100_000
    again = open_journal()
    assert (again.report.corruption, again.report.torn) == ([], None)
    assert [str(entry.state) for entry in again.entries()] == ["dead", "orphan", "pending"]
    assert again.entries()[0].reason == given_up.reason


def test_a_long_tracestate_is_left_out(open_journal: Any) -> None:
    """TRACESTATE_BYTES_MAX characters are kept, one more is dropped with the traceparent staying."""
    journal = open_journal()
    for length, kept in ((TRACESTATE_BYTES_MAX, True), (TRACESTATE_BYTES_MAX + 1, False)):
        request = make_request(1)
        request.tracestate = "x" * length
        entry = journal.begin(request)
        assert (entry.request.tracestate is not None) is kept
        assert entry.request.traceparent


def test_a_huge_head_is_refused(open_journal: Any, tmp_path: Path) -> None:
    """More than OVERHEAD_BYTES_MAX besides the body is a ValueError, and nothing is written."""
    journal = open_journal()
    request = make_request(1)
    request.headers = [(b"x", b"v" * OVERHEAD_BYTES_MAX)]
    with pytest.raises(ValueError, match=str(OVERHEAD_BYTES_MAX)):
        journal.begin(request)
    assert types_on_disk(tmp_path) == []
    journal.begin(make_request(2))


def test_mark_acknowledges_once(open_journal: Any, tmp_path: Path) -> None:
    """One MARK after new records, none when there is nothing new."""
    journal = open_journal()
    journal.begin(make_request(1))
    journal.mark()
    journal.mark()
    assert types_on_disk(tmp_path) == [RecordType.BEGIN, RecordType.MARK]


# --- Failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "input/output error"), RuntimeError("engine bug"), JournalPoisoned("by the engine")]
)
def test_one_failed_write_poisons_for_good(open_journal: Any, error: Exception) -> None:
    """After it the engine is not called again, whatever it would say; ending a request does not raise."""
    engine = FailingEngine()
    journal = open_journal(engine)
    entry = journal.begin(make_request(1))
    engine.error = error
    with pytest.raises(JournalPoisoned):
        journal.begin(make_request(2))
    engine.error = None
    calls = engine.calls
    for call in (
        lambda: journal.begin(make_request(3)),
        lambda: journal.responding(entry, 200),
        lambda: journal.attempt(entry),
        lambda: journal.dead(entry, ""),
        journal.flush,
        journal.mark,
        journal.snapshot,
    ):
        with pytest.raises(JournalPoisoned):
            call()
    journal.done(entry, 200, delivered=True)
    journal.close()
    assert engine.calls == calls
    assert journal.poisoned is error
    assert journal.statistics().poisoned


def test_an_interrupt_in_the_middle_of_a_write_poisons(open_journal: Any) -> None:
    """It is raised as it is, but what the engine kept is unknown."""
    engine = FailingEngine()
    journal = open_journal(engine)
    engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        journal.begin(make_request(1))
    engine.error = None
    with pytest.raises(JournalPoisoned):
        journal.begin(make_request(2))


def test_a_failed_release_poisons(open_journal: Any) -> None:
    """Any engine call that fails is a write that failed."""

    class Unreleasing(PlainJournal):
        def release(self, upto_seq: int) -> None:
            raise OSError(errno.EIO, "input/output error")

    journal = open_journal(Unreleasing())
    with pytest.raises(JournalPoisoned):
        journal.snapshot()
    with pytest.raises(JournalPoisoned):
        journal.begin(make_request(1))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_space_does_not_poison(open_journal: Any, number: int) -> None:
    """An engine that lets ENOSPC or EDQUOT through means full, and the next request may fit."""
    engine = FailingEngine()
    journal = open_journal(engine)
    engine.error = OSError(number, "no space")
    with pytest.raises(JournalFull):
        journal.begin(make_request(1))
    engine.error = None
    assert journal.begin(make_request(2)).entry_id == 1


def test_on_a_full_disk_requests_still_end(open_journal: Any, tmp_path: Path) -> None:
    """A refused BEGIN does not hold up the endings before it, and takes no seq."""
    engine = FullEngine()
    journal = open_journal(engine)
    first, second = journal.begin(make_request(1)), journal.begin(make_request(2))
    engine.full = True
    journal.done(first, 200, delivered=True)
    with pytest.raises(JournalFull):
        journal.begin(make_request(3))
    assert types_on_disk(tmp_path)[-1] is RecordType.DONE
    journal.attempt(second)
    journal.dead(second, "enough")
    engine.full = False
    third = journal.begin(make_request(4))
    assert states(open_journal()) == {second.entry_id: EntryState.DEAD, third.entry_id: EntryState.PENDING}


class FullUntilReleased(FullEngine):
    """Has space again once something was released, if anything `frees`."""

    frees = True

    def release(self, upto_seq: int) -> None:
        super().release(upto_seq)
        self.full = self.full and not self.frees


@pytest.mark.parametrize("reopened", [False, True])
def test_on_a_full_disk_what_has_ended_makes_room(open_journal: Any, reopened: bool) -> None:
    """A small snapshot out of the reserve, and the request that found no space is accepted."""
    engine = FullUntilReleased()
    journal = open_journal(engine)
    kept = journal.begin(make_request(1))
    journal.done(journal.begin(make_request(2, body=bytes(ROOM_BYTES_MIN))), 200, delivered=True)
    journal.flush()
    if reopened:
        engine = FullUntilReleased()
        journal = open_journal(engine)
    engine.full = True
    entry = journal.begin(make_request(3))
    assert journal.statistics().snapshots_total == 1
    assert set(states(open_journal())) == {kept.entry_id, entry.entry_id}


def test_room_is_made_once_when_it_frees_nothing(open_journal: Any, tmp_path: Path) -> None:
    """The reserve does not go request after refused request."""
    engine = FullUntilReleased()
    engine.frees = False
    journal = open_journal(engine)
    journal.done(journal.begin(make_request(1, body=bytes(ROOM_BYTES_MIN))), 200, delivered=True)
    engine.full = True
    written = []
    for number in (2, 3, 4):
        with pytest.raises(JournalFull):
            journal.begin(make_request(number))
        written.append(types_on_disk(tmp_path))
    assert journal.statistics().snapshots_total == 1
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(("live_bytes", "ended_bytes"), [(RESERVED_SNAPSHOT_BYTES_MAX, ROOM_BYTES_MIN), (0, 1000)])
def test_no_room_is_made_at_a_price(open_journal: Any, tmp_path: Path, live_bytes: int, ended_bytes: int) -> None:
    """Not by a large snapshot, and not for little."""
    engine = FullUntilReleased()
    journal = open_journal(engine)
    journal.begin(make_request(1, body=bytes(live_bytes)))
    journal.done(journal.begin(make_request(2, body=bytes(ended_bytes))), 200, delivered=True)
    engine.full = True
    with pytest.raises(JournalFull):
        journal.begin(make_request(3))
    assert types_on_disk(tmp_path) == [RecordType.BEGIN, RecordType.BEGIN, RecordType.DONE]


@pytest.mark.parametrize("body_bytes", [10, SNAPSHOT_BATCH_BYTES])
def test_a_snapshot_leaves_the_space_kept_for_the_ends_of_requests(
    open_journal: Any, tmp_path: Path, body_bytes: int
) -> None:
    """It can wait, and the end of a request cannot: not one of its batches takes from the reserve."""
    engine = FullEngine()
    journal = open_journal(engine)
    first, second = (journal.begin(make_request(number, body=bytes(body_bytes))) for number in (1, 2))
    journal.done(first, 200, delivered=True)
    engine.full = True
    with pytest.raises(JournalFull):
        journal.snapshot()
    journal.responding(second, 200)
    written = [RecordType.BEGIN, RecordType.BEGIN, RecordType.DONE, RecordType.RESP]
    assert types_on_disk(tmp_path) == written
    engine.full = False
    journal.snapshot()
    assert RecordType.SNAP_END in types_on_disk(tmp_path)
    assert states(open_journal()) == {second.entry_id: EntryState.PENDING}
