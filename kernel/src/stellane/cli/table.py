"""Tables on standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_COLUMNS = 10_000
"""Width when standard output is not a terminal: whoever reads a pipe wants whole lines."""


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """Print `rows` under `heads`; on a terminal long cells are folded, never cut."""
    table = Table(box=None, pad_edge=False)
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        # Text, because rich would read "[backend]" in a plain string as a style
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS).print(table)
