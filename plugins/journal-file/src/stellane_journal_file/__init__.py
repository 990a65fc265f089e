"""A segmented file journal engine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import msgspec

from stellane.abc import JournalEngine, Probe
from stellane.errors import JournalError
from stellane.hookspecs import hookimpl
from stellane.recovery.record import RecordType, encode
from stellane_journal_file.engine import SEGMENT_BYTES, SEGMENT_BYTES_MIN, FileJournal

__all__ = ["FileJournal", "Options"]

stellane_api_level = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """[journal.file]."""

    segment_bytes: Annotated[int, msgspec.Meta(ge=SEGMENT_BYTES_MIN, le=1_073_741_824)] = SEGMENT_BYTES
    """Size of one segment file, allocated in advance, bytes."""


stellane_options = Options


@hookimpl
def stellane_probe(options: Options) -> Probe:
    """Write a record and read it back."""
    raw, _ = encode(RecordType.MARK, 1, 0, 0, 1, 0, b"")
    facts = {"segment_bytes": str(options.segment_bytes)}
    try:
        with tempfile.TemporaryDirectory(prefix="stellane-probe-") as directory:
            engine = FileJournal(SEGMENT_BYTES_MIN)
            engine.open(Path(directory))
            try:
                engine.append([raw], 1)
                engine.sync()
                usable = list(engine.scan()) == [(1, raw)]
            finally:
                engine.close()
    except (OSError, JournalError) as error:
        # A temporary directory that is full or read-only says nothing of the journal's own, and a worker must be
        # able to start again on a full disk: its other requests need no journal.
        return Probe(usable=True, facts={**facts, "tried": f"no: {error}"})
    reason = "" if usable else "a record did not come back from the temporary directory"
    return Probe(usable=usable, reason=reason, facts=facts)


@hookimpl
def stellane_create_journal(options: Options) -> JournalEngine:
    """Make a file engine."""
    return FileJournal(options.segment_bytes)
