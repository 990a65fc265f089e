"""Opening and closing a journal: one writer, readers that change nothing, and what is refused from the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stellane.abc import Durability, EngineCapabilities, EntryState
from stellane.errors import JournalError, JournalLocked, JournalUnsupported
from stellane.recovery.journal import Journal
from stellane.recovery.record import OVERHEAD_BYTES_MAX, record_bytes
from stellane.testing.journal_records import make_request
from stellane.testing.plain_journal import PlainJournal


def test_epochs_grow_with_every_writer(open_journal: Any) -> None:
    """A writer that wrote something is followed by one of a higher epoch."""
    epochs = []
    for _ in range(3):
        journal = open_journal()
        journal.begin(make_request(1))
        epochs.append(journal.epoch)
    assert epochs == [1, 2, 3]


def test_clean_is_told_from_a_crash(open_journal: Any) -> None:
    """close leaves CLEAN as the last record; a crash does not."""
    journal = open_journal()
    journal.done(journal.begin(make_request(1)), 200, delivered=True)
    journal.close()
    journal.close()
    journal = open_journal()
    assert journal.report.clean
    assert journal.entries() == []
    journal.begin(make_request(2))
    assert not open_journal().report.clean


def test_a_closed_journal_takes_nothing(open_journal: Any) -> None:
    """A JournalError, not a lost request."""
    journal = open_journal()
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.begin(make_request(1))


def test_a_second_writer_is_refused(open_journal: Any, tmp_path: Path) -> None:
    """Two servers on one journal: JournalLocked, and the first is not disturbed."""
    journal = open_journal()
    with pytest.raises(JournalLocked):
        Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal())
    journal.begin(make_request(1))


def test_a_reader_changes_nothing(open_journal: Any, tmp_path: Path) -> None:
    """It sees every entry, finished ones too, beside the writer, and every file stays as it was."""
    journal = open_journal()
    first, second = journal.begin(make_request(1)), journal.begin(make_request(2))
    journal.done(first, 200, delivered=True)
    journal.flush()

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    reader = Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal(), read_only=True)
    states = {entry.entry_id: entry.state for entry in reader.entries()}
    assert states == {first.entry_id: EntryState.DONE, second.entry_id: EntryState.RUNNING}
    with pytest.raises(JournalError, match="reading only"):
        reader.begin(make_request(3))
    reader.close()
    assert files() == before
    journal.begin(make_request(4))


def test_a_reader_does_not_make_a_journal(tmp_path: Path) -> None:
    """Neither read_only nor create=False leaves anything behind."""
    for options in ({"read_only": True}, {"create": False}):
        with pytest.raises(JournalError, match="no journal here"):
            Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal(), **options)
    assert list(tmp_path.iterdir()) == []


def test_power_is_not_built_yet(tmp_path: Path) -> None:
    """A durability that cannot be kept is refused, not promised."""
    with pytest.raises(JournalUnsupported, match="not built yet"):
        Journal.open(tmp_path / "w0", engine_name="plain", engine=PlainJournal(), durability="power")


def test_longer_bodies_than_the_engine_keeps_are_refused(tmp_path: Path) -> None:
    """When the journal is opened, with the limit, and not when the first of them comes."""

    class Short(PlainJournal):
        capabilities = EngineCapabilities(
            durability=frozenset({Durability.PROCESS}), record_bytes_max=record_bytes(OVERHEAD_BYTES_MAX + 1000)
        )

    def opened(body_bytes_max: int, **options: Any) -> Journal:
        return Journal.open(
            tmp_path / "w0", engine_name="plain", engine=Short(), body_bytes_max=body_bytes_max, **options
        )

    with pytest.raises(JournalUnsupported, match=r"body_bytes_max = 2000 .* at most 1000"):
        opened(2000)
    assert list(tmp_path.iterdir()) == []
    opened(1000).close()
    opened(2000, read_only=True).close()  # who only reads writes no record
