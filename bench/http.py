"""The benchmark command: `python -m bench.http`, or `python bench/http.py`. See README.md."""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    # Run as a script: this directory is first on the path, where `http` would be this file
    # instead of the standard library's package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import shutil

import click
from rich.console import Console
from rich.markup import escape

from bench.build import BuildError
from bench.measure import Measurement, Settings, Summary, prepare, run_rounds, summarize
from bench.report import (
    ROUNDS_MIN,
    BarResult,
    check_bars,
    http_tables,
    journal_tables,
    machine_facts,
    warnings,
    write_json,
)
from bench.rows import Row, http_rows, journal_rows, select_rows
from bench.servers import ServerError, check_installed

console = Console(width=None if sys.stdout.isatty() else 100)


def choose_cpus(server_cpu: int | None, load_cpu: int | None) -> tuple[int, int]:
    """The CPU of the server and of the load: those asked for, or the first two allowed. Raises ClickException."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise click.ClickException(f"two CPUs are needed, one for the server and one for the load; allowed: {allowed}")
    server = allowed[0] if server_cpu is None else server_cpu
    load = next(cpu for cpu in allowed if cpu != server) if load_cpu is None else load_cpu
    for option, cpu in (("--server-cpu", server), ("--load-cpu", load)):
        if cpu not in allowed:
            raise click.UsageError(f"{option} {cpu} is not among the CPUs this process may use: {allowed}")
    if server == load:
        raise click.UsageError(f"server and load must not share CPU {server}")
    return server, load


def _wrk(load: str, journal: bool) -> str:
    if load != "wrk":
        return ""
    if journal:
        raise click.UsageError("--journal sends bodies, which only the C generator does; leave out --load wrk")
    found = shutil.which("wrk")
    if found is None:
        raise click.UsageError("wrk is not installed (Debian, Ubuntu: apt-get install wrk); --load c needs nothing")
    return found


def _show(measurement: Measurement) -> None:
    console.print(
        f"round {measurement.round + 1}  {measurement.row:26} {measurement.cpu_us_per_request:8.2f} µs CPU a request  "
        f"{measurement.requests_per_s:10,.0f} requests/s",
        highlight=False,
        soft_wrap=True,
    )


def _run(rows: list[Row], settings: Settings) -> tuple[list[Measurement], list[Summary]]:
    """Measure the rows. Raises ClickException with the reason, naming the row."""
    try:
        for row in rows:
            check_installed(row)
        prepare(rows, settings)
        measurements = run_rounds(rows, settings, _show)
    except (BuildError, ServerError) as error:
        raise click.ClickException(str(error)) from error
    return measurements, summarize(rows, measurements)


def finish(bars: list[BarResult], *, check: bool) -> None:
    """Print how the bars came out; with `check`, exit with status 1 when one is missed."""
    for result in bars:
        console.print(escape(result.sentence()), highlight=False, soft_wrap=True)
    if check and not all(result.held for result in bars):
        sys.exit(1)


@click.command(context_settings={"max_content_width": 110})
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS_MIN, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(min=0.5), default=3.0, show_default=True, help="Length of one measurement."
)
@click.option("--connections", type=click.IntRange(1, 4096), default=64, show_default=True)
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="Run only these rows, e.g. 'stellane-*'.")
@click.option("--journal", is_flag=True, help="Also measure a POST that is journaled against one that is not.")
@click.option("--load", type=click.Choice(["c", "wrk"]), default="c", show_default=True, help="Load generator.")
@click.option("--server-cpu", type=int, help="CPU of the servers  [default: the first]")
@click.option("--load-cpu", type=int, help="CPU of the load generator  [default: the next]")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option("--check", is_flag=True, help="Exit with status 1 when a bar is missed.")
def main(
    *,
    rounds: int,
    seconds: float,
    connections: int,
    patterns: tuple[str, ...],
    journal: bool,
    load: str,
    server_cpu: int | None,
    load_cpu: int | None,
    json_path: Path | None,
    check: bool,
) -> None:
    """Measure server CPU time a request, requests per second and latency of HTTP servers on this machine."""
    if check and rounds < ROUNDS_MIN:
        raise click.UsageError(f"--check needs --rounds {ROUNDS_MIN} or more")
    server, other = choose_cpus(server_cpu, load_cpu)
    settings = Settings(rounds, seconds, connections, server, other, _wrk(load, journal))
    try:
        rows = select_rows(http_rows() + (journal_rows() if journal else []), patterns)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from error
    measurements, summaries = _run(rows, settings)
    plain = [summary for summary in summaries if not summary.row.name.startswith("journal-")]
    journaled = [summary for summary in summaries if summary.row.name.startswith("journal-")]
    facts = machine_facts(rows, settings)
    for name, value in facts.items():
        console.print(f"{name:24} {escape(value)}", highlight=False)
    for table in (http_tables(plain) if plain else []) + (journal_tables(journaled) if journaled else []):
        console.print(table)
    for line in warnings(summaries):
        console.print(f"[yellow]note:[/yellow] {escape(line)}", highlight=False, soft_wrap=True)
    try:
        bars = check_bars(plain)
    except LookupError as error:
        if check:
            raise click.ClickException(str(error.args[0])) from error
        bars = []
    if json_path is not None:
        write_json(json_path, facts, measurements, summaries, bars)
    finish(bars, check=check)


if __name__ == "__main__":
    main()
