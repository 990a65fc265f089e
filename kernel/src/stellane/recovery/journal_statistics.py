"""What can be told of a journal at a moment."""

from __future__ import annotations

from dataclasses import dataclass

from stellane.abc.journal import EngineStatistics


@dataclass(frozen=True, slots=True)
class JournalStatistics:
    """A snapshot of one journal."""

    entries: dict[str, int]
    """Entries kept, by state."""
    live_bytes: int
    records_total: int
    """Records written since it was opened."""
    snapshots_total: int
    epoch: int
    poisoned: bool
    engine: EngineStatistics
