"""A journal engine on RocksDB."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec

from stellane.abc import JournalEngine, Probe
from stellane.hookspecs import hookimpl
from stellane.recovery.record import RecordType, encode
from stellane_journal_rocksdb.engine import (
    FREE_BYTES_MIN,
    WRITE_BUFFER_BYTES,
    WRITE_BUFFER_BYTES_MIN,
    RocksDbJournal,
)

__all__ = ["Options", "RocksDbJournal"]

stellane_api_level = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """[journal.rocksdb]."""

    write_buffer_bytes: Annotated[int, msgspec.Meta(ge=WRITE_BUFFER_BYTES_MIN)] = WRITE_BUFFER_BYTES
    """Records held in memory, and in the log, before they are written as a table."""
    free_bytes_min: Annotated[int, msgspec.Meta(ge=0)] = FREE_BYTES_MIN
    """New requests are refused while the file system has less than this free."""


stellane_options = Options


@hookimpl
def stellane_probe(options: Options) -> Probe:
    """Open a database, write a record and read it back."""
    raw, _ = encode(RecordType.MARK, 1, 0, 0, 1, 0, b"")
    with tempfile.TemporaryDirectory(prefix="stellane-probe-") as directory:
        engine = RocksDbJournal(WRITE_BUFFER_BYTES_MIN, free_bytes_min=0)
        engine.open(Path(directory))
        try:
            engine.append([raw], 1)
            engine.sync()
            usable = list(engine.scan()) == [(1, raw)]
        finally:
            engine.close()
    reason = "" if usable else "a record did not come back from the temporary database"
    return Probe(usable=usable, reason=reason, facts={"write_buffer_bytes": str(options.write_buffer_bytes)})


@hookimpl
def stellane_create_journal(options: Options) -> JournalEngine:
    """Make a RocksDB engine."""
    return RocksDbJournal(options.write_buffer_bytes, options.free_bytes_min)
