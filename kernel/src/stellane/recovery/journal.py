"""The request journal: what is recorded of each request, over any storage engine.

Durability `process`: a record is acknowledged when the engine's `append` has returned, that
is, when the page cache has it. It then survives the death of every process, not a power cut.

The first failed write poisons the journal for good, whatever the engine thinks of it: what
the disk holds is unknown from then on (PostgreSQL learnt this as "fsyncgate", 2018).
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

import msgspec

from stellane.abc.journal import Durability, Gap, JournalEngine
from stellane.abc.recovery import EntryState
from stellane.errors import JournalCorrupt, JournalError, JournalFull, JournalPoisoned, JournalUnsupported
from stellane.logging import get_logger
from stellane.recovery.checker import Checker, ScanReport
from stellane.recovery.directory import JournalDirectory, open_directory
from stellane.recovery.journal_statistics import JournalStatistics
from stellane.recovery.ledger import Ledger, LedgerEntry
from stellane.recovery.payload import (
    TRACESTATE_BYTES_MAX,
    AttemptCutOff,
    AttemptEnded,
    AttemptStarted,
    Clean,
    Ending,
    JournaledRequest,
    Mark,
    Responding,
    SnapshotEnd,
    encode_payload,
    reason_text,
)
from stellane.recovery.quarantine import FoundDamage
from stellane.recovery.record import OVERHEAD_BYTES_MAX, RecordType, RecordVersionError, encode, record_bytes
from stellane.recovery.redact import Redactor

__all__ = ["Journal", "JournalStatistics", "JournaledRequest", "LedgerEntry"]

LAZY_RECORDS_MAX = 256
"""Endings held back at most; one more writes them all."""
SNAPSHOT_BATCH_BYTES = 1_048_576
"""A snapshot is appended in batches of about this size."""
RESERVED_SNAPSHOT_BYTES_MAX = 65_536
"""The largest snapshot that may take from the space kept for the ends of requests, when the disk is full."""
ROOM_BYTES_MIN = 1_048_576
"""It is only taken when at least this much may go because of it."""

_log = get_logger("stellane.journal")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_BEGIN = int(RecordType.BEGIN)
_RESP = int(RecordType.RESP)
_DONE = int(RecordType.DONE)


class Journal:
    """One opened journal. Every method belongs to one thread; make it with `open`."""

    def __init__(
        self,
        directory: JournalDirectory,
        engine: JournalEngine,
        *,
        snapshot_bytes: int,
        body_bytes_max: int,
        redact_headers: Iterable[str],
        read_only: bool,
    ) -> None:
        self.path = directory.path
        self.report = ScanReport()
        """What the scan at opening found."""
        self.poisoned: BaseException | None = None
        """The error that ended this journal, or None."""
        self.on_poisoned: Callable[[BaseException], object] = lambda _error: None
        """Told of that error, once, in the middle of the call that met it."""
        self.read_only = read_only
        self.closed = False
        self.epoch = 1
        self._directory = directory
        self._engine = engine
        self._ledger = Ledger(keep_finished=read_only)
        self._redact_headers = tuple(redact_headers)
        self._body_bytes_max = body_bytes_max
        self._snapshot_bytes = snapshot_bytes
        self._bytes_since_snapshot = 0
        self._found_bytes = 0
        self._next_seq = 1
        self._prev_crc = 0
        self._marked_seq = 0
        self._lazy: list[tuple[int, bytes]] = []
        self._opened_seq = 1
        self._snapshots_total = 0
        self._refused = read_only
        self._damage: FoundDamage | None = None
        """What had to stay where it was found."""
        self._journal_id = directory.journal_id
        self._engine_append = engine.append

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        engine_name: str,
        engine: JournalEngine,
        durability: str = Durability.PROCESS,
        snapshot_bytes: int = 16_777_216,
        body_bytes_max: int = 1_048_576,
        redact_headers: Iterable[str] = (),
        read_only: bool = False,
        create: bool = True,
    ) -> Journal:
        """Open the journal in `directory`, check every record and prepare it for writing.

        A torn tail is removed and damage is left behind, both after their bytes were copied to
        quarantine/; `report` says what was found. Without space for the copies both stay, and every
        record is refused with JournalFull until there is some. A reader changes nothing.
        Raises JournalError, also for a writer when a part of it cannot be read, and its kinds:
        JournalLocked, JournalUnsupported (another engine, format or durability, or longer bodies than
        the engine keeps), JournalCorrupt (not a journal), JournalFull.
        """
        if durability != Durability.PROCESS or durability not in engine.capabilities.durability:
            raise JournalUnsupported(f'{directory}: durability "{durability}" is not built yet', path=directory)
        limit = engine.capabilities.record_bytes_max
        if not read_only and record_bytes(OVERHEAD_BYTES_MAX + body_bytes_max) > limit:
            raise JournalUnsupported(
                f"{directory}: the engine {engine_name} keeps records of at most {limit} bytes, and with "
                f"recovery.body_bytes_max = {body_bytes_max} they may be longer: it must be at most "
                f"{limit - record_bytes(OVERHEAD_BYTES_MAX)}",
                path=directory,
            )
        place = open_directory(directory, engine_name, create=create, read_only=read_only)
        journal = cls(
            place,
            engine,
            snapshot_bytes=snapshot_bytes,
            body_bytes_max=body_bytes_max,
            redact_headers=redact_headers,
            read_only=read_only,
        )
        engine.open(place.engine_path, create=create, read_only=read_only)
        try:
            journal._scan()
        except BaseException:
            engine.close()
            raise
        return journal

    # --- What happens to a request ------------------------------------------------------------

    def begin(self, request: JournaledRequest) -> LedgerEntry:
        """Record a request. When this returns the handler may start.

        A body over `body_bytes_max` and a tracestate over TRACESTATE_BYTES_MAX are left out.
        On a full disk what has ended is released first, if that may help. Raises JournalFull (nothing
        was kept; answer 503), JournalPoisoned, and ValueError when the head alone is over OVERHEAD_BYTES_MAX.
        """
        if len(request.body) > self._body_bytes_max:
            size = request.body_bytes or len(request.body)
            request = msgspec.structs.replace(request, body=b"", body_omitted=True, body_bytes=size)
        if request.tracestate is not None and len(request.tracestate) > TRACESTATE_BYTES_MAX:
            request = msgspec.structs.replace(request, tracestate=None)
        payload = encode_payload(request)
        if len(payload) - len(request.body) > OVERHEAD_BYTES_MAX:
            raise ValueError(
                f"the head of this request takes {len(payload) - len(request.body)} bytes in the journal, "
                f"more than {OVERHEAD_BYTES_MAX}"
            )
        try:
            seq = self._append(_BEGIN, payload)
        except JournalFull:
            if not self._may_make_room():
                raise
            self.snapshot(reserve=True)
            seq = self._append(_BEGIN, payload)
        entry = LedgerEntry(seq, request, self.epoch, record_bytes(len(payload)))
        self._ledger.add(entry)
        return entry

    def responding(self, entry: LedgerEntry, status: int) -> None:
        """The first response byte is about to leave; on record when this returns."""
        entry.response_started = True
        entry.status = status
        self._append(_RESP, encode_payload(Responding(entry.entry_id, status)))

    def done(self, entry: LedgerEntry, status: int, delivered: bool) -> None:
        """The request is answered. Lazy: on record with the next append or `flush`; never raises.

        `delivered` says whether the client took the whole answer.
        """
        ending = Ending(entry.entry_id, status, delivered)
        self._ledger.end(entry, EntryState.DONE, ending)
        self._write_later(_DONE, ending)

    def failed(self, entry: LedgerEntry, status: int, error: str = "") -> None:
        """The handler raised and `status` was sent: the end of this request. Lazy like `done`."""
        ending = Ending(entry.entry_id, status, reason=reason_text(error))
        self._ledger.end(entry, EntryState.FAILED, ending)
        self._write_later(RecordType.FAIL, ending)

    def attempt(self, entry: LedgerEntry, crash: str = "") -> int:
        """Record that a replay is about to run; on record when this returns. The attempt's number, from 1."""
        started = AttemptStarted(entry.entry_id, len(entry.attempts) + 1, time.time_ns(), crash)
        self._append(RecordType.ATTEMPT, encode_payload(started))
        entry.start_attempt(started, self.epoch)
        return started.number

    def attempt_failed(self, entry: LedgerEntry, error: str) -> None:
        """The replay that runs raised `error`; the request is pending again."""
        ended = AttemptEnded(entry.entry_id, len(entry.attempts), reason_text(error))
        self._append(RecordType.ATTEMPT_FAILED, encode_payload(ended))
        entry.end_attempt(ended.error)

    def attempt_cut_off(self, entry: LedgerEntry) -> None:
        """The stop of this worker ended the replay that runs: it does not count, and the request is pending again."""
        self._append(RecordType.ATTEMPT_CUT_OFF, encode_payload(AttemptCutOff(entry.entry_id, len(entry.attempts))))
        entry.take_attempt_back()

    def dead(self, entry: LedgerEntry, reason: str) -> None:
        """Give the request up; it is kept as a dead letter."""
        self._end(RecordType.DEAD, entry, EntryState.DEAD, reason)

    def orphan(self, entry: LedgerEntry, reason: str) -> None:
        """Leave the request: it may not be replayed, and stays visible."""
        self._end(RecordType.ORPHAN, entry, EntryState.ORPHAN, reason)

    # --- The journal itself ---------------------------------------------------------------------

    def flush(self) -> None:
        """Write the endings held back. Raises JournalFull (they stay held back), JournalPoisoned."""
        if self._lazy:
            self._append_all([])
        elif self._refused and self.poisoned is not None:
            self._refuse()

    def mark(self) -> None:
        """Acknowledge what was written: from here on damage to it is told from a torn write."""
        self.flush()
        if self._marked_seq < self._next_seq - 1:
            self._append(RecordType.MARK, encode_payload(Mark()))
            self._marked_seq = self._next_seq - 1

    def entries(self, state: EntryState | None = None) -> list[LedgerEntry]:
        """The entries kept, by entry id. Only a reader keeps those that are done or failed."""
        found = (entry for entry in self._ledger.entries.values() if state is None or entry.state is state)
        return sorted(found, key=lambda entry: entry.entry_id)

    def pending(self) -> list[LedgerEntry]:
        """Requests that wait for a decision or for another attempt, by entry id."""
        return self.entries(EntryState.PENDING)

    def redactor(self) -> Redactor:
        """Takes secrets out of a request before `begin`, under this journal's own key."""
        return Redactor(self._directory.secret, self._redact_headers)

    def statistics(self) -> JournalStatistics:
        """A snapshot."""
        counts: dict[str, int] = {}
        for entry in self._ledger.entries.values():
            counts[str(entry.state)] = counts.get(str(entry.state), 0) + 1
        return JournalStatistics(
            entries=counts,
            live_bytes=self._ledger.live_bytes,
            records_total=self._next_seq - self._opened_seq,
            snapshots_total=self._snapshots_total,
            epoch=self.epoch,
            poisoned=self.poisoned is not None,
            engine=self._engine.statistics(),
        )

    def snapshot(self, *, reserve: bool = False) -> None:
        """Write every live entry anew and release what came before.

        With `reserve` it may use the space kept for the ends of requests. A crash in the middle is
        harmless: until SNAP_END and the MARK after it stand, the older records are all still there,
        and entries are known by id. Raises JournalFull, JournalPoisoned.
        """
        try:
            self._write_snapshot(reserve)
        finally:
            self._bytes_since_snapshot = self._found_bytes = 0

    def close(self, clean: bool = True) -> None:
        """Close it; with `clean`, CLEAN is the last record and everything is synced. Idempotent."""
        if self.closed:
            return
        try:
            if clean and not self.read_only and self.poisoned is None:
                self.flush()
                self._append(RecordType.CLEAN, encode_payload(Clean()))
                self._guard(self._engine.sync)
        finally:
            self.closed = self._refused = True
            self._damage = None
            self._engine.close()

    # --- Inside ---------------------------------------------------------------------------------

    def _end(self, type_: int, entry: LedgerEntry, state: EntryState, reason: str) -> None:
        ending = Ending(entry.entry_id, reason=reason_text(reason))
        self._append(type_, encode_payload(ending))
        self._ledger.end(entry, state, ending)

    def _write_later(self, type_: int, ending: Ending) -> None:
        if not self._refused:
            self._lazy.append((type_, encode_payload(ending)))
            if len(self._lazy) > LAZY_RECORDS_MAX:
                # The request has its answer: a full disk or a poisoned journal is news for the
                # next request, and losing an ending only means one more replay.
                with contextlib.suppress(JournalError):
                    self.flush()

    def _append(self, type_: int, payload: bytes) -> int:
        """Write the endings held back and one record; its seq."""
        # Before the record, never after it: a snapshot between a BEGIN and its ledger entry
        # would release the one without having written the other.
        if self._bytes_since_snapshot > self._snapshot_bytes:
            self._snapshot_when_due()
        if self._lazy:
            try:
                return self._append_all([(type_, payload)], reserve=type_ != _BEGIN)
            except JournalFull:
                # The endings must not wait for space that only a new request lacks.
                if type_ == _BEGIN:
                    self.flush()
                raise
        if self._refused:
            self._mend()
        seq = self._next_seq
        raw, crc = encode(type_, seq, seq - 1, self._journal_id, self.epoch, self._prev_crc, payload)
        try:
            self._engine_append((raw,), seq, reserve=type_ != _BEGIN)
        except BaseException as error:
            self._append_failed(error)
        self._next_seq = seq + 1
        self._prev_crc = crc
        self._bytes_since_snapshot += len(raw)
        return seq

    def _append_all(self, batch: list[tuple[int, bytes]], *, reserve: bool = True) -> int:
        """Write the endings held back and `batch`, all or nothing; the seq of the last record."""
        if self._refused:
            self._mend()
        first = seq = self._next_seq
        crc = self._prev_crc
        records: list[bytes] = []
        for type_, payload in self._lazy + batch:
            raw, crc = encode(type_, seq, first - 1, self._journal_id, self.epoch, crc, payload)
            records.append(raw)
            seq += 1
        try:
            self._engine_append(records, first, reserve=reserve)
        except BaseException as error:
            self._append_failed(error)
        self._next_seq = seq
        self._prev_crc = crc
        self._lazy.clear()
        self._bytes_since_snapshot += sum(map(len, records))
        return seq - 1

    def _append_failed(self, error: BaseException) -> NoReturn:
        if isinstance(error, JournalFull):
            raise error
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            raise JournalFull(f"{self.path}: {error.strerror}", path=self.path) from error
        self._poison(error)

    def _snapshot_when_due(self) -> None:
        if self._bytes_since_snapshot <= 2 * self._ledger.live_bytes:
            return
        try:
            self.snapshot()
        except JournalFull:
            # Nothing is lost: the older records stay. It is tried again snapshot_bytes later.
            _log.warning("journal: no space for a snapshot", journal=str(self.path))

    def _may_make_room(self) -> bool:
        """Whether a snapshot out of the reserve is small, and a lot may be released because of it.

        After one that freed nothing this is False until as much was written again, so the reserve
        does not go away bit by bit, request after refused request.
        """
        released = self._bytes_since_snapshot + self._found_bytes
        return self._ledger.live_bytes <= RESERVED_SNAPSHOT_BYTES_MAX and released >= ROOM_BYTES_MIN

    def _write_snapshot(self, reserve: bool) -> None:
        if self._damage is not None:
            self._mend()  # ends with a snapshot, and would write it into the middle of one that has begun
            return
        self.flush()
        first_seq = self._next_seq
        entries = self.entries()
        batch: list[tuple[int, bytes]] = []
        size = 0
        for entry in entries:
            payload = encode_payload(entry.to_snapshot())
            batch.append((RecordType.SNAP, payload))
            size += len(payload)
            if size >= SNAPSHOT_BATCH_BYTES:
                self._append_all(batch, reserve=reserve)
                batch, size = [], 0
        batch.append((RecordType.SNAP_END, encode_payload(SnapshotEnd(first_seq, len(entries)))))
        self._append_all(batch, reserve=reserve)
        # Acknowledged before anything is removed; otherwise damage to SNAP_END would look torn.
        self._append_all([(RecordType.MARK, encode_payload(Mark(released=first_seq - 1)))])
        self._marked_seq = self._next_seq - 1
        self._snapshots_total += 1
        self._guard(lambda: self._engine.release(first_seq - 1))

    def _guard(self, call: Callable[[], object]) -> None:
        """Run an engine call other than append; whatever it raises poisons."""
        try:
            call()
        except BaseException as error:
            self._poison(error)

    def _poison(self, error: BaseException) -> NoReturn:
        self.poisoned = error
        self._refused = True
        self._lazy.clear()
        self.on_poisoned(error)
        if isinstance(error, JournalPoisoned) or not isinstance(error, Exception):
            raise error
        raise JournalPoisoned(
            f"{self.path}: writing failed ({type(error).__name__}: {error}); "
            "the journal accepts nothing more until the server is started again",
            path=self.path,
        ) from error

    def _refuse(self) -> NoReturn:
        if self.poisoned is not None:
            raise JournalPoisoned(f"{self.path}: an earlier write failed: {self.poisoned}", path=self.path)
        state = "closed" if self.closed else "open for reading only"
        raise JournalError(f"{self.path}: the journal is {state}", path=self.path)

    def _scan(self) -> None:
        checker = Checker(self._directory.journal_id, self._ledger.apply)
        try:
            for item in self._engine.scan():
                if isinstance(item, Gap) and item.unread and not self.read_only:
                    # Not damage: to go on without these records would release or remove them.
                    text = (
                        f"{self.path}: {item.where} {item.reason}; what it holds may be whole, and nothing was changed"
                    )
                    raise JournalError(text, path=self.path)
                checker.feed(item)
        except RecordVersionError as error:
            text = f"{self.path}: {error}; it was written by a newer version of Stellane"
            raise JournalUnsupported(text, path=self.path) from error
        report = checker.finish()
        self.report = report
        if report.foreign and not report.records:
            text = f"{self.path}: every record belongs to another journal than meta.json says"
            raise JournalCorrupt(text, path=self.path)
        if self.read_only:
            self.epoch = report.last_epoch
            # Behind CLEAN nothing runs any more, whatever its writer cut short, nor where a writer was killed. Asked
            # after the scan: a writer that came since has nothing on record here.
            over = report.clean or self._engine.in_use() is False
            self._ledger.suspend(self.epoch + 1 if over else self.epoch)
            return
        self.epoch = report.last_epoch + 1
        last = checker.last_record
        if last is not None:
            self._opened_seq = self._next_seq = last.seq + 1
            self._prev_crc = last.crc
        self._ledger.suspend(self.epoch)
        self._found_bytes = self._engine.statistics().bytes
        if report.torn is None and not report.corruption:
            return
        self._damage = FoundDamage(self._directory, report, self.epoch)
        self._refused = True
        try:
            self._mend()
        except JournalFull as error:
            # Nothing is written behind it either: a torn write with records behind it would look like corruption.
            _log.error("journal: damage stays in place; nothing is journaled until there is space", error=str(error))

    def _mend(self) -> None:
        """Leave found damage behind; without any, say why nothing is written. JournalFull: nothing has changed."""
        if self._damage is None:
            self._refuse()
        self._damage.copy_aside()
        self._damage = None
        self._refused = False
        self._guard(lambda: self._engine.truncate(self._next_seq - 1))
        # The damage must not be met again: all that is live moves past it, the rest is released.
        try:
            self.snapshot()
        except JournalFull:
            _log.warning("journal: no space for a snapshot; the damage stays in place", journal=str(self.path))
