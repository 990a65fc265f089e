"""Decides what the bytes of a journal prove: kept, torn in the last write, or corrupt.

Every record carries `durable_seq`, the highest seq that had been acknowledged when it was
encoded. Let H be the largest one seen. A lost record with seq > H was in the last write: a
torn tail, which a crash explains, and nothing acknowledged is known to be missing. A lost
record with seq <= H had been acknowledged: corruption, which only damage explains. Valid
records after corruption are kept; valid records after a tear were part of the torn write and
are dropped with it. (Alagappan et al., FAST'18, on telling a crash from corruption.)

At the default durability a record is acknowledged by the write itself, so damage to the very
last write looks torn until the next record (a MARK at the latest) has acknowledged it. Both
kinds are reported, and their bytes are kept.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stellane.abc.journal import Gap
from stellane.recovery.payload import Mark, Payload, SnapshotEnd, decode_payload
from stellane.recovery.record import Record, RecordDamageError, RecordType, decode


@dataclass(slots=True)
class Damage:
    """Bytes that should have been records and are not, or records that are missing.

    `lost_first` to `lost_last` are the sequence numbers lost (both inclusive); `lost_last` <
    `lost_first` when no record is missing. `raw` are the damaged bytes, `where` their place.
    """

    lost_first: int
    lost_last: int
    where: str
    reason: str
    raw: list[bytes] = field(default_factory=list, repr=False)
    files: list[Path] = field(default_factory=list)

    @property
    def records_lost(self) -> int:
        """How many acknowledged records are gone."""
        return max(0, self.lost_last - self.lost_first + 1)

    def __str__(self) -> str:
        if self.lost_last > self.lost_first:
            lost = f"records {self.lost_first} to {self.lost_last} are lost"
        elif self.lost_last == self.lost_first:
            lost = f"record {self.lost_first} is lost"
        else:
            lost = "no record is lost"
        return f"{self.where}: {self.reason}; {lost}"


@dataclass(slots=True)
class TornTail:
    """The last write, cut short: everything from `first_seq` on is not part of the journal.

    `dropped` are the sequence numbers of intact records of that same write.
    """

    first_seq: int
    where: str
    reason: str
    dropped: list[int] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list, repr=False)
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        count = sum(map(len, self.raw))
        return f"{self.where}: {self.reason}; the last write, from record {self.first_seq} on, is torn ({count} bytes)"


@dataclass(slots=True)
class ScanReport:
    """What a scan of a journal found. `corruption` is empty in a healthy journal."""

    records: int = 0
    first_seq: int = 0
    last_seq: int = 0
    acknowledged_seq: int = 0
    """H: the highest seq known to have been acknowledged."""
    last_epoch: int = 0
    clean: bool = False
    """The last record is CLEAN: the writer closed the journal."""
    torn: TornTail | None = None
    corruption: list[Damage] = field(default_factory=list)
    foreign: int = 0
    """Records of another journal among the damage."""

    @property
    def lost(self) -> list[tuple[int, int]]:
        """Ranges of acknowledged records that are gone, both ends inclusive."""
        return [(item.lost_first, item.lost_last) for item in self.corruption if item.records_lost]

    def is_lost(self, seq: int) -> bool:
        """Whether this report names record `seq` as lost or torn."""
        if self.torn is not None and seq >= self.torn.first_seq:
            return True
        return any(first <= seq <= last for first, last in self.lost)

    @property
    def quarantined(self) -> list[Path]:
        """Files that hold copies of damaged bytes."""
        torn = self.torn.files if self.torn is not None else []
        return [path for item in self.corruption for path in item.files] + torn


@dataclass(frozen=True, slots=True)
class _Note:
    where: str
    reason: str
    raw: bytes
    first_seq: int = 0
    acknowledged_seq: int = 0


@dataclass(frozen=True, slots=True)
class _Kept:
    record: Record
    payload: Payload
    raw: bytes


class Checker:
    """Feed it what an engine's scan yields, in order, then `finish`.

    `accept` is called once for every record that stands, in order of seq. Memory: only the
    records after an unexplained loss are held back.
    """

    def __init__(self, journal_id: int, accept: Callable[[Record, Payload], None]) -> None:
        self._journal_id = journal_id
        self._accept = accept
        self._report = ScanReport()
        self._notes: list[_Note] = []
        self._held: deque[_Kept | Damage] = deque()
        self._seen: Record | None = None
        self._last: Record | None = None
        self._released = 0
        self._start = 1

    @property
    def last_record(self) -> Record | None:
        """The last record that stands; after `finish`."""
        return self._last

    def feed(self, item: tuple[int, bytes] | Gap) -> None:
        """Take the next record or gap. Raises RecordVersionError for a record of a newer format."""
        if isinstance(item, Gap):
            self._notes.append(_Note(item.where, item.reason, item.raw, item.first_seq, item.acknowledged_seq))
            return
        seq, raw = item
        kept = self._examine(seq, raw)
        if kept is None:
            return
        self._place(kept)
        self._seen = kept.record
        self._raise_acknowledged(kept.record.durable_seq)

    def finish(self) -> ScanReport:
        """Decide about what is left at the end, and return the report."""
        report = self._report
        if self._notes:
            first = self._seen.seq + 1 if self._seen is not None else 1
            known = max(note.acknowledged_seq for note in self._notes)
            self._held.append(self._damage(first, known))
            self._raise_acknowledged(known)
        if self._held:
            report.torn = self._tear()
        if self._start > self._released + 1:
            reason = "the journal begins later than its last snapshot allows"
            report.corruption.insert(0, Damage(self._released + 1, self._start - 1, "start of the journal", reason))
        if self._last is not None:
            report.last_seq = self._last.seq
            report.last_epoch = max(report.last_epoch, self._last.epoch)
            report.clean = self._last.type is RecordType.CLEAN and report.torn is None
        return report

    def _examine(self, seq: int, raw: bytes) -> _Kept | None:
        where = f"record {seq}"
        try:
            record = decode(raw)
            if record.journal_id != self._journal_id:
                self._report.foreign += 1
                raise RecordDamageError(f"it belongs to journal {record.journal_id:016x}")
            if record.seq != seq:
                raise RecordDamageError(f"its header says record {record.seq}")
            if self._seen is not None and record.seq <= self._seen.seq:
                raise RecordDamageError(f"it comes after record {self._seen.seq}")
            if self._seen is not None and record.epoch < self._seen.epoch:
                raise RecordDamageError(f"its writer of epoch {record.epoch} had been replaced")
            return _Kept(record, decode_payload(record.type, record.payload), raw)
        except (RecordDamageError, msgspec.DecodeError) as error:
            self._notes.append(_Note(where, str(error), raw))
            return None

    def _place(self, kept: _Kept) -> None:
        record, seen = kept.record, self._seen
        expected = seen.seq + 1 if seen is not None else self._first_expected(record)
        if self._notes or record.seq > expected:
            damage = self._damage(expected, record.seq - 1)
            if damage.records_lost:
                self._held.append(damage)
            else:
                self._report.corruption.append(damage)
        elif seen is not None and record.prev_crc != seen.crc:
            reason = f"record {record.seq} does not follow the record {seen.seq} that is here"
            self._report.corruption.append(Damage(record.seq, record.seq - 1, f"record {record.seq}", reason))
        self._held.append(kept)

    def _first_expected(self, record: Record) -> int:
        """The seq the journal should begin with, given its first valid record.

        What is missing before it may have been released, unless the engine says that it had kept
        it, or the record is of the very first write (nothing was acknowledged before it).
        """
        known = next((note.first_seq for note in self._notes if note.first_seq), 0)
        self._start = min(known or record.seq, 1 if record.durable_seq == 0 else record.seq)
        return self._start

    def _damage(self, first: int, last: int) -> Damage:
        notes, self._notes = self._notes, []
        where = notes[0].where if notes else f"after record {first - 1}"
        reason = notes[0].reason if notes else "records are missing"
        return Damage(first, last, where, reason, [note.raw for note in notes if note.raw])

    def _raise_acknowledged(self, seq: int) -> None:
        report = self._report
        report.acknowledged_seq = max(report.acknowledged_seq, seq)
        held = self._held
        while held:
            item = held[0]
            if isinstance(item, Damage):
                if item.lost_first > report.acknowledged_seq:
                    return
                report.corruption.append(item)
            else:
                self._keep(item)
            held.popleft()

    def _keep(self, kept: _Kept) -> None:
        record, payload = kept.record, kept.payload
        report = self._report
        report.records += 1
        report.first_seq = report.first_seq or record.seq
        self._last = record
        if isinstance(payload, SnapshotEnd):
            self._released = max(self._released, payload.first_seq - 1)
        elif isinstance(payload, Mark):
            self._released = max(self._released, payload.released)
        self._accept(record, payload)

    def _tear(self) -> TornTail:
        loss = self._held.popleft()
        assert isinstance(loss, Damage)
        torn = TornTail(loss.lost_first, loss.where, loss.reason, raw=list(loss.raw))
        for item in self._held:
            if isinstance(item, Damage):
                torn.raw.extend(item.raw)
            else:
                torn.dropped.append(item.record.seq)
                torn.raw.append(item.raw)
                # A dropped writer's epoch must not be used again: its attempts may have run.
                self._report.last_epoch = max(self._report.last_epoch, item.record.epoch)
        self._held.clear()
        return torn
