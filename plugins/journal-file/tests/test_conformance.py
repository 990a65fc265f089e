"""The file engine keeps the contract of journal engines."""

from __future__ import annotations

from stellane.testing.journal import JournalEngineConformance
from stellane_journal_file import FileJournal


class TestFileJournal(JournalEngineConformance):
    """With segments of 256 KiB: smaller than its largest records, so that both kinds of segment occur."""

    def make_engine(self) -> FileJournal:
        return FileJournal(segment_bytes=262_144)
