"""Tables of a run, and its JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bench.loops.bars import BARE_C, Outcome
from bench.loops.counting import Count
from bench.loops.loops import UVLOOP
from bench.loops.memory import IdleMemory
from bench.loops.modes import ModeMeasurement, ModeSummary
from bench.loops.workloads import BARE, Workload
from bench.measure import Measurement, Summary
from bench.rows import Row


def loop_of(row: Row) -> str:
    """The loop or C server of a row, from its name."""
    return row.name.rpartition("/")[2]


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=True)
    return table


def _ratio(value: float, peer: float | None) -> str:
    return f"{value / peer:.3f}" if peer else "-"


def cpu_by_loop(summaries: Sequence[Summary]) -> dict[str, float]:
    """Median CPU time an operation, µs."""
    return {loop_of(summary.row): summary.cpu_us for summary in summaries}


def workload_table(workload: Workload, summaries: Sequence[Summary], not_run: Mapping[str, str]) -> Table:
    """One workload: CPU time an operation with its ratios, and the operations per second."""
    cpu = cpu_by_loop(summaries)
    rate = {loop_of(s.row): s.requests_per_s for s in summaries}
    bare = min((cpu[name] for name in BARE if name in cpu), default=None)
    table = _table(workload.title, "", "CPU µs", "min-max", f"x {UVLOOP}", f"x {BARE_C}", "a second", "x", "busy")
    for s in summaries:
        table.add_row(
            s.row.title,
            f"{s.cpu_us:.3f}",
            f"{s.cpu_us_min:.3f}-{s.cpu_us_max:.3f}",
            _ratio(s.cpu_us, cpu.get(UVLOOP)),
            _ratio(s.cpu_us, bare),
            f"{s.requests_per_s:,.0f}",
            _ratio(s.requests_per_s, rate.get(UVLOOP)),
            f"{s.busy:.0%}",
        )
    for name in not_run:
        table.add_row(name, "not run", "", "", "", "", "", "")
    return table


def count_table(title: str, counts: Sequence[Count], witness: str) -> Table:
    """System calls a request."""
    table = _table(f"system calls a request: {title}", "", f"by {witness}", "by its own statistics", "requests", "busy")
    for c in counts:
        own = "-" if c.own is None else f"{c.own:.3f}"
        table.add_row(c.row.title, f"{c.witnessed:.3f}", own, f"{c.requests:,}", f"{c.busy:.0%}")
    return table


def memory_table(found: Sequence[IdleMemory], connections: int) -> Table:
    """Resident memory a connection."""
    by_loop = {loop_of(m.row): m.bytes_per_connection for m in found}
    table = _table(f"memory of {connections:,} idle connections", "", "KiB each", f"x {UVLOOP}", "MiB without")
    for m in found:
        table.add_row(
            m.row.title,
            f"{m.bytes_per_connection / 1024:.2f}",
            _ratio(m.bytes_per_connection, by_loop.get(UVLOOP)),
            f"{m.empty_bytes / (1 << 20):.1f}",
        )
    return table


def modes_table(title: str, summaries: Sequence[ModeSummary]) -> Table:
    """A mode on and off: latency, CPU time and system calls a request, and CPU time without any."""
    columns = ("p50 µs", "x off", "p99 µs", "CPU µs", "x off", "a second", "calls", "idle CPU", "others", "at work")
    table = _table(title, "", *columns)
    for s in summaries:
        table.add_row(
            s.row.title,
            f"{s.p50_us:.1f}",
            "-" if s.p50_ratio is None else f"{s.p50_ratio:.2f}",
            f"{s.p99_us:.1f}",
            f"{s.cpu_us:.3f}",
            "-" if s.cpu_ratio is None else f"{s.cpu_ratio:.2f}",
            f"{s.requests_per_s:,.0f}",
            f"{s.system_calls:.3f}",
            f"{s.idle_cpu_max:.1%}",
            f"{s.others_cpus:.2f}",
            f"{s.at_work} of {s.rounds}" if "+" in s.row.name else "-",
        )
    return table


def write_json(
    path: Path,
    *,
    facts: Mapping[str, str],
    measurements: Sequence[Measurement],
    counts: Sequence[Count],
    memory: Sequence[IdleMemory],
    modes: Sequence[ModeMeasurement],
    not_run: Mapping[str, str],
    outcomes: Sequence[Outcome],
) -> None:
    """Everything that was measured, and what it was judged to be."""
    document = {
        "facts": dict(facts),
        "measurements": [asdict(m) for m in measurements],
        "system_calls": [
            {"row": c.row.name, "requests": c.requests, "witnessed": c.witnessed, "own": c.own, "busy": c.busy}
            for c in counts
        ],
        "idle_memory": [
            {"row": m.row.name, "bytes_per_connection": m.bytes_per_connection, "empty_bytes": m.empty_bytes}
            for m in memory
        ],
        "modes": [asdict(m) for m in modes],
        "not_run": dict(not_run),
        "bars": [asdict(o) | {"held": o.held} for o in outcomes],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
