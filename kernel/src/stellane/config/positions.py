"""On which line of a TOML document each key stands; the parser itself does not say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tomli


def positions(text: str) -> dict[str, int]:
    """Map the dotted path of every table and value of valid TOML `text` to its line, from 1.

    A statement ends at the first line end where the lines since its beginning parse by
    themselves: TOML has no statement whose beginning is complete and valid alone.
    """
    lines: dict[str, int] = {}
    table = ""
    start, pending = 1, ""
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not pending:
            start = number
        pending += line + "\n"
        try:
            statement = tomli.loads(pending)
        except tomli.TOMLDecodeError:
            continue
        is_header = pending.lstrip().startswith("[")
        pending = ""
        for path in _paths(statement, "" if is_header else table):
            lines.setdefault(path, start)
            if is_header:
                table = path
    return lines


def _paths(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        # [[table]]: the header of one more element
        value = value[0]
    if isinstance(value, dict):
        for name, item in value.items():
            inner = f"{path}.{name}" if path else name
            yield inner
            yield from _paths(item, inner)
