"""A journal of the kernel's own plain engine, opened again and again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stellane.recovery.journal import Journal
from stellane.testing.plain_journal import PlainJournal


@pytest.fixture
def opened() -> Iterator[list[Journal]]:
    """Journals to close, as a crash does, when the test has ended."""
    journals: list[Journal] = []
    yield journals
    for journal in journals:
        journal.close(clean=False)


@pytest.fixture
def open_journal(tmp_path: Path, opened: list[Journal]) -> Any:
    """Open the test's journal; the one opened before ends as in a crash."""

    def do(engine: PlainJournal | None = None, **options: Any) -> Journal:
        for journal in opened:
            journal.close(clean=False)
        journal = Journal.open(tmp_path / "w0", engine_name="plain", engine=engine or PlainJournal(), **options)
        opened.append(journal)
        return journal

    return do
