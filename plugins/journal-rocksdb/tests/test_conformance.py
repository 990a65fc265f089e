"""The RocksDB engine keeps the contract of journal engines."""

from __future__ import annotations

from stellane.testing.journal import JournalEngineConformance
from stellane_journal_rocksdb import RocksDbJournal


class TestRocksDbJournal(JournalEngineConformance):
    """With small buffers, so that tables are written and dropped."""

    def make_engine(self) -> RocksDbJournal:
        return RocksDbJournal(write_buffer_bytes=262_144, free_bytes_min=8_388_608)
