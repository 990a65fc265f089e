"""Keeping the evidence: damaged bytes are copied aside and reported before anything is removed."""

from __future__ import annotations

import time

import msgspec

from stellane.errors import JournalError, JournalFull
from stellane.logging import get_logger
from stellane.recovery.checker import Damage, ScanReport, TornTail
from stellane.recovery.directory import JournalDirectory

RETRY_S = 1.0
"""After a copy that found no space the next is tried this much later at the earliest, seconds."""

_log = get_logger("stellane.journal")


class QuarantineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What lies beside the copied bytes, as JSON."""

    kind: str
    """"corruption" or "torn"."""
    found_ns: int
    epoch: int
    where: str
    reason: str
    lost_first: int
    lost_last: int
    """Acknowledged records lost, both ends inclusive; lost_last < lost_first when none is."""
    dropped: list[int]
    """Intact records that were part of a torn write."""
    files: list[str]


class FoundDamage:
    """Damage that is still in its place, until its bytes have been copied aside."""

    def __init__(self, directory: JournalDirectory, report: ScanReport, epoch: int) -> None:
        self._directory = directory
        self._report = report
        self._epoch = epoch
        self._try_at = 0.0

    def copy_aside(self) -> None:
        """Copy it to quarantine/. Raises JournalFull and JournalError; each refused request calls this, and a full disk
        is tried once in RETRY_S."""
        if time.monotonic() < self._try_at:
            path = self._directory.path
            raise JournalFull(f"{path}: no space to keep a copy of damaged journal bytes", path=path)
        self._try_at = time.monotonic() + RETRY_S
        quarantine_damage(self._directory, self._report, self._epoch)


def quarantine_damage(directory: JournalDirectory, report: ScanReport, epoch: int) -> None:
    """Copy every damaged stretch to quarantine/, write a report beside it, and log it.

    Fills `files` of each Damage and TornTail. Raises JournalFull or JournalError when a copy
    cannot be made: nothing may be removed then. What was kept already is passed over by the next call.
    """
    stamp = f"{epoch:08d}-{time.time_ns()}"
    for number, damage in enumerate(report.corruption):
        if damage.files:
            continue
        _keep(directory, f"corruption-{stamp}-{number}", damage, epoch)
        _log.error(
            "journal corruption: acknowledged records are damaged",
            journal=str(directory.path),
            where=damage.where,
            reason=damage.reason,
            records_lost=damage.records_lost,
            lost_first=damage.lost_first,
            lost_last=damage.lost_last,
            quarantine=[str(path) for path in damage.files],
        )
    if report.torn is not None:
        _keep(directory, f"torn-{stamp}", report.torn, epoch)
        _log.warning(
            "journal: the last write was torn and has been removed",
            journal=str(directory.path),
            where=report.torn.where,
            first_seq=report.torn.first_seq,
            quarantine=[str(path) for path in report.torn.files],
        )


def _keep(directory: JournalDirectory, stem: str, item: Damage | TornTail, epoch: int) -> None:
    files = [directory.quarantine(f"{stem}.bin", b"".join(item.raw))] if any(item.raw) else []
    torn = isinstance(item, TornTail)
    content = QuarantineReport(
        kind="torn" if torn else "corruption",
        found_ns=time.time_ns(),
        epoch=epoch,
        where=item.where,
        reason=item.reason,
        lost_first=item.first_seq if isinstance(item, TornTail) else item.lost_first,
        lost_last=0 if isinstance(item, TornTail) else item.lost_last,
        dropped=item.dropped if isinstance(item, TornTail) else [],
        files=[path.name for path in files],
    )
    try:
        files.append(directory.quarantine(f"{stem}.json", msgspec.json.format(msgspec.json.encode(content))))
    except JournalError:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    item.files.extend(files)
