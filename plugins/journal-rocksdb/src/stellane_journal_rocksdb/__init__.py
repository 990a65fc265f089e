"""A journal engine on RocksDB."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec

from stellane.abc import JournalEngine, Probe
from stellane.errors import ConfigError, JournalCorrupt, JournalError
from stellane.hookspecs import hookimpl
from stellane.recovery.record import RecordType, encode
from stellane_journal_rocksdb.engine import (
    FREE_BYTES_MIN,
    WRITE_BUFFER_BYTES,
    WRITE_BUFFER_BYTES_MIN,
    RocksDbJournal,
)

__all__ = ["Options", "RocksDbJournal"]

FREE_BUFFERS_MIN = 2
"""Write buffers that must fit into what is kept free: one in its log, one on its way into a table."""

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
    facts = {"write_buffer_bytes": str(options.write_buffer_bytes)}
    try:
        with tempfile.TemporaryDirectory(prefix="stellane-probe-") as directory:
            engine = RocksDbJournal(WRITE_BUFFER_BYTES_MIN, free_bytes_min=0)
            engine.open(Path(directory))
            try:
                engine.append([raw], 1)
                engine.sync()
                usable = list(engine.scan()) == [(1, raw)]
            finally:
                engine.close()
    except JournalCorrupt:
        raise
    except (OSError, JournalError) as error:
        # A temporary directory that is full or read-only says nothing of the journal's own, and a worker must be
        # able to start again on a full disk: its other requests need no journal.
        return Probe(usable=True, facts={**facts, "tried": f"no: {error}"})
    reason = "" if usable else "a record did not come back from the temporary database"
    return Probe(usable=usable, reason=reason, facts=facts)


@hookimpl
def stellane_create_journal(options: Options) -> JournalEngine:
    """Make a RocksDB engine. Raises ConfigError when the space kept free would not do."""
    if options.free_bytes_min < (least := FREE_BUFFERS_MIN * options.write_buffer_bytes):
        raise ConfigError(
            f"journal.rocksdb.free_bytes_min = {options.free_bytes_min}: RocksDB writes its buffer as a table while it "
            f"fills the next one, and a disk that is full then ends the journal. It is at least {FREE_BUFFERS_MIN} * "
            f"write_buffer_bytes = {least}."
        )
    return RocksDbJournal(options.write_buffer_bytes, options.free_bytes_min)
