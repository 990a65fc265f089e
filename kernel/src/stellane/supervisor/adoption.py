"""Journals of workers that this run does not have."""

from __future__ import annotations

import re
from pathlib import Path

from stellane.errors import ConfigError

_SLOT_DIRECTORY = re.compile(r"w(0|[1-9][0-9]*)")


def find_adopted_slots(journal_path: Path, slot: int, slots: int) -> list[int]:
    """List the journal slots left by an earlier run with more workers that worker `slot` takes over.

    Those are the s >= slots with s % slots == slot for which the directory `<journal_path>/w<s>`
    exists, ascending. Raises ConfigError when the directory cannot be listed, for then requests
    might be forgotten.
    """
    try:
        names = [entry.name for entry in journal_path.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(
            f'recovery.journal_path = "{journal_path}" cannot be listed: {error.strerror}. '
            "Journals in it may hold unfinished requests; make it readable or name another directory"
        ) from error
    numbers = (int(found[1]) for name in names if (found := _SLOT_DIRECTORY.fullmatch(name)))
    return sorted(number for number in numbers if number >= slots and number % slots == slot)
