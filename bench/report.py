"""Tables, machine facts, bars and the JSON file of a run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.build import compiler_version
from bench.measure import Measurement, Settings, Summary
from bench.rows import BARE, JOURNAL_OFF, UVICORN, Row

ROUNDS_MIN = 5
"""Fewer rounds are shown, but are not a result and are never checked against a bar."""

FOREIGN_MAX = 0.05
"""More of either CPU than this going to something else is pointed out under the table."""


@dataclass(frozen=True, slots=True)
class Bar:
    """The best row whose name begins with `rows_prefix` costs at most `ratio_max` x the peer's CPU time a request."""

    name: str
    rows_prefix: str
    peer: str
    ratio_max: float


BARS = (
    Bar("native", "stellane-native-", BARE, 1.8),
    Bar("ASGI", "stellane-asgi-", UVICORN, 0.65),
)


@dataclass(frozen=True, slots=True)
class BarResult:
    """How a bar came out. `row` is the best one."""

    bar: Bar
    row: str
    ratio: float

    @property
    def held(self) -> bool:
        return self.ratio <= self.bar.ratio_max

    def sentence(self) -> str:
        bar = self.bar
        found = f"{bar.name}: {self.row} costs {self.ratio:.2f} x {bar.peer}, the bar is {bar.ratio_max:.2f} x"
        if self.held:
            return f"held   {found}"
        return f"missed {found}: {self.ratio / bar.ratio_max - 1:.1%} too much"


def check_bars(summaries: Sequence[Summary]) -> list[BarResult]:
    """Every bar against the medians. Raises LookupError when a row that a bar needs was not run."""
    cpu = {summary.row.name: summary.cpu_us for summary in summaries}
    results = []
    for bar in BARS:
        candidates = [name for name in cpu if name.startswith(bar.rows_prefix)]
        if bar.peer not in cpu or not candidates:
            raise LookupError(f"the bar for {bar.name} needs the row {bar.peer} and at least one {bar.rows_prefix}*")
        best = min(candidates, key=cpu.__getitem__)
        results.append(BarResult(bar, best, cpu[best] / cpu[bar.peer]))
    return results


def _ratio(value: float, peer: float | None) -> str:
    return f"{value / peer:.2f} x" if peer else "-"


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def tables(title: str, summaries: Sequence[Summary], peers: dict[str, str]) -> list[Table]:
    """Two tables: the server's CPU time, and what a client sees.

    `peers` maps a heading to the name of the row that the ratios under it are to.
    """
    by_name = {summary.row.name: summary for summary in summaries}
    to = {heading: by_name.get(name) for heading, name in peers.items()}
    cpu = _table(f"{title}: server CPU time a request, µs", "server", "median", "min-max", *to)
    rate = _table(f"{title}: requests per second, latency in µs", "server", "requests/s", *to, "p50", "p99", "busy")
    for s in summaries:
        cpu.add_row(
            s.row.title,
            f"{s.cpu_us:.2f}",
            f"{s.cpu_us_min:.2f}-{s.cpu_us_max:.2f}",
            *(_ratio(s.cpu_us, peer.cpu_us if peer else None) for peer in to.values()),
        )
        rate.add_row(
            s.row.title,
            f"{s.requests_per_s:,.0f}",
            *(_ratio(s.requests_per_s, peer.requests_per_s if peer else None) for peer in to.values()),
            f"{s.p50_us:.0f}",
            f"{s.p99_us:.0f}",
            f"{s.busy:.0%}",
        )
    return [cpu, rate]


def http_tables(summaries: Sequence[Summary]) -> list[Table]:
    """The plaintext GET tables."""
    return tables("GET", summaries, {"to bare C": BARE, "to uvicorn": UVICORN})


def journal_tables(summaries: Sequence[Summary]) -> list[Table]:
    """The journal pair."""
    title = f"POST {summaries[0].row.request.body_bytes} bytes, file engine"
    return tables(title, summaries, {"to not journaled": JOURNAL_OFF})


def warnings(summaries: Sequence[Summary]) -> list[str]:
    """What a reader must know before trusting the tables."""
    found = []
    rounds = min(summary.rounds for summary in summaries)
    if rounds < ROUNDS_MIN:
        found.append(f"this is not a result: {rounds} of at least {ROUNDS_MIN} rounds.")
    found.extend(
        f"{s.row.name}: in one round something else used {s.foreign_max:.0%} of a CPU it was measured on."
        for s in summaries
        if s.foreign_max > FOREIGN_MAX
    )
    return found


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"}:
            return value.strip()
    return platform.machine()


def machine_facts(rows: Sequence[Row], settings: Settings) -> dict[str, str]:
    """Where and how the figures came about."""
    distributions = sorted({name for row in rows for name in row.distributions} | _parsers(rows))
    facts = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} CPUs",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": compiler_version(),
        "load": settings.wrk or "bench/bare/load.c",
        "placement": f"server on CPU {settings.server_cpu}, load on CPU {settings.load_cpu}",
        "windows": f"{settings.rounds} rounds of {settings.seconds:g} s, {settings.connections} connections",
    }
    return facts | {name: importlib.metadata.version(name) for name in distributions}


def _parsers(rows: Sequence[Row]) -> set[str]:
    return {"zttp"} if any("/zttp/" in row.maps for row in rows) else set()


def write_json(
    path: Path,
    facts: dict[str, str],
    measurements: Sequence[Measurement],
    summaries: Sequence[Summary],
    bars: Sequence[BarResult],
) -> None:
    """Everything that was measured, and what it was reduced to."""

    def plain(summary: Summary) -> dict[str, Any]:
        return {field.name: getattr(summary, field.name) for field in fields(summary)} | {"row": summary.row.name}

    document = {
        "facts": facts,
        "measurements": [asdict(measurement) for measurement in measurements],
        "summaries": [plain(summary) for summary in summaries],
        "bars": [asdict(result) | {"held": result.held} for result in bars],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
