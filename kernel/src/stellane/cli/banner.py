"""What a start says: where it listens, what was chosen and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import importlib_metadata as metadata
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_banner(addresses: Sequence[str], facts: Sequence[dict[str, Any]], *, supervised: bool) -> None:
    """Print the start-up banner to standard error. `facts` are those of each worker, by slot."""
    first = facts[0]
    pending = sum(worker["pending"] for worker in facts)
    table = Table.grid(padding=(0, 2))
    rows = {
        "listening": ", ".join(addresses),
        "application": f"{first['target']} ({first['application']})",
        "backend": f"{first['backend']} ({first['loop']}); {first['backend_why']}",
        "workers": _workers(first, len(facts)) if supervised else "1, in this process",
        "codec": first["codec"],
        "journal": _journal(first, pending),
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    # A terminal's width is for people; elsewhere each fact stays on one line for programs to find.
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 1000)
    console.print(Text(f"stellane {metadata.version('stellane-kernel')}", style="bold"))
    console.print(table)


def _workers(facts: dict[str, Any], count: int) -> str:
    sharing = f"; dispatch {facts['dispatch']}" if facts["dispatch"] != "shared" else ""
    return f"{count} process{'es' if count > 1 else ''}{sharing}"


def _journal(facts: dict[str, Any], pending: int) -> str:
    if facts["journal"] == "off":
        return "off: an accepted request is lost when its worker dies; see [recovery] enabled"
    waiting = f"; {pending} to recover" if pending else ""
    return f"{facts['journal']}, durability {facts['durability']}, in {facts['journal_path']}{waiting}"
