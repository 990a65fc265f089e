"""The ledger: which requests a journal knows and where each one stands, folded from its records."""

from __future__ import annotations

import msgspec

from stellane.abc.recovery import EntryState
from stellane.recovery.context import Attempt
from stellane.recovery.payload import (
    AttemptCutOff,
    AttemptEnded,
    AttemptStarted,
    Ending,
    JournaledRequest,
    Payload,
    Responding,
    Snapshot,
)
from stellane.recovery.record import Record, RecordType, record_bytes

FINISHED = frozenset({EntryState.DONE, EntryState.FAILED})
"""States whose entries need not be kept; dead and orphan ones wait for a person."""

_ENDINGS = {
    RecordType.DONE: EntryState.DONE,
    RecordType.FAIL: EntryState.FAILED,
    RecordType.DEAD: EntryState.DEAD,
    RecordType.ORPHAN: EntryState.ORPHAN,
}


class LedgerEntry(msgspec.Struct, eq=False):
    """One journaled request. `entry_id` is the seq of its BEGIN and stays for its whole life."""

    entry_id: int
    request: JournaledRequest
    epoch: int
    """The epoch of the writer that last began or replayed it."""
    record_bytes: int
    """What a snapshot of it costs, about."""
    state: EntryState = EntryState.RUNNING
    attempts: list[Attempt] = []
    response_started: bool = False
    status: int = 0
    """HTTP status of the answer, 0 when there was none."""
    delivered: bool = False
    """The client took the whole answer."""
    reason: str = ""
    """Why it failed, was given up or left."""

    @property
    def first_received_ns(self) -> int:
        """When the request first came, wall-clock nanoseconds since the epoch."""
        return self.request.received_ns

    def to_snapshot(self) -> Snapshot:
        """All of it, for a SNAP record."""
        return Snapshot(
            self.entry_id,
            self.request,
            self.state,
            self.epoch,
            self.attempts,
            self.response_started,
            self.status,
            self.reason,
        )

    def start_attempt(self, started: AttemptStarted, epoch: int) -> None:
        """A replay begins."""
        attempt = Attempt(number=started.number, started_ns=started.started_ns, crash=started.crash)
        self.attempts.append(attempt)
        self.state = EntryState.RECOVERING
        self.epoch = epoch

    def end_attempt(self, error: str) -> None:
        """The replay that runs has failed; the request waits again."""
        last = self.attempts[-1]
        self.attempts[-1] = Attempt(number=last.number, started_ns=last.started_ns, error=error, crash=last.crash)
        self.state = EntryState.PENDING

    def take_attempt_back(self) -> None:
        """The replay that runs was cut off by the stop of its worker, which says nothing about the request."""
        del self.attempts[-1]
        self.state = EntryState.PENDING


class Ledger:
    """The entries by id. A writer's ledger forgets what has finished, a reader's keeps it."""

    def __init__(self, *, keep_finished: bool) -> None:
        self.entries: dict[int, LedgerEntry] = {}
        self.live_bytes = 0
        """Bytes of the entries a snapshot would hold, about."""
        self._keep_finished = keep_finished

    def apply(self, record: Record, payload: Payload) -> None:
        """Fold one record. A record of an entry whose BEGIN is gone changes nothing."""
        if isinstance(payload, JournaledRequest):
            self.add(LedgerEntry(record.seq, payload, record.epoch, record_bytes(len(record.payload))))
            return
        if isinstance(payload, Snapshot):
            self._restore(payload, record_bytes(len(record.payload)))
            return
        if not isinstance(payload, AttemptStarted | AttemptEnded | AttemptCutOff | Responding | Ending):
            return
        entry = self.entries.get(payload.entry_id)
        if entry is None:
            return
        if isinstance(payload, AttemptStarted):
            entry.start_attempt(payload, record.epoch)
        elif isinstance(payload, AttemptEnded):
            if entry.attempts:
                entry.end_attempt(payload.error)
        elif isinstance(payload, AttemptCutOff):
            if entry.attempts and entry.attempts[-1].number == payload.number:
                entry.take_attempt_back()
        elif isinstance(payload, Responding):
            entry.response_started = True
            entry.status = payload.status
        else:
            self.end(entry, _ENDINGS[record.type], payload)

    def add(self, entry: LedgerEntry) -> None:
        """Take in a new entry."""
        self.entries[entry.entry_id] = entry
        self.live_bytes += entry.record_bytes

    def end(self, entry: LedgerEntry, state: EntryState, ending: Ending) -> None:
        """Give an entry its end."""
        entry.state = state
        entry.status = ending.status or entry.status
        entry.delivered = ending.delivered
        entry.reason = ending.reason
        if state in FINISHED:
            self.live_bytes -= entry.record_bytes
            if not self._keep_finished:
                self.entries.pop(entry.entry_id, None)

    def suspend(self, before_epoch: int) -> None:
        """Whatever a writer before `before_epoch` left without an end is now pending."""
        for entry in self.entries.values():
            if entry.epoch < before_epoch and entry.state in (EntryState.RUNNING, EntryState.RECOVERING):
                entry.state = EntryState.PENDING

    def _restore(self, snapshot: Snapshot, size: int) -> None:
        known = self.entries.get(snapshot.entry_id)
        if known is not None:
            self.live_bytes -= known.record_bytes
        entry = LedgerEntry(snapshot.entry_id, snapshot.request, snapshot.epoch, size)
        entry.state = snapshot.state
        entry.attempts = list(snapshot.attempts)
        entry.response_started = snapshot.response_started
        entry.status = snapshot.status
        entry.reason = snapshot.reason
        self.add(entry)
