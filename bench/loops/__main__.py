"""The command `python -m bench.loops`. See README.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape

from bench.build import BuildError
from bench.http import choose_cpus
from bench.loops import memory
from bench.loops.bars import Outcome, all_held, check_bars, check_idle, check_memory, check_system_calls
from bench.loops.counting import Count, count_all, find_witness
from bench.loops.memory import IdleMemory
from bench.loops.modes import SECTIONS, ModeMeasurement, ModeSection, measure_section, summarize_modes
from bench.loops.report import (
    count_table,
    cpu_by_loop,
    loop_of,
    memory_table,
    modes_table,
    workload_table,
    write_json,
)
from bench.loops.tls import make_certificate
from bench.loops.workloads import ECHO, WORKLOADS, Workload, rows_of
from bench.measure import Measurement, Settings, Summary, prepare, run_rounds, summarize
from bench.report import ROUNDS_MIN, machine_facts, warnings
from bench.rows import Row, select_rows
from bench.servers import NotRunError, ServerError, check_installed, serving

SYSTEM_CALLS, IDLE_MEMORY = "system-calls", "idle-memory"
SYSTEM_CALLS_LOADS = {SYSTEM_CALLS: ECHO.connections, **{f"{SYSTEM_CALLS}-{n}": n for n in (1, 8, 256)}}
"""Connections in a closed loop, by section; the bar is on the first."""
CLOSE_ROUNDS = 2
"""A workload with a ratio close to its bar, on either side, is measured for so many times the rounds again."""

console = Console(width=None if sys.stdout.isatty() else 130)


@dataclass(slots=True)
class Run:
    """What a run has found so far."""

    settings: Settings
    measurements: list[Measurement] = field(default_factory=list)
    summaries: dict[str, list[Summary]] = field(default_factory=dict)
    counts: list[Count] = field(default_factory=list)
    memory: list[IdleMemory] = field(default_factory=list)
    modes: list[ModeMeasurement] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    """Reasons, by row."""

    def runnable(self, rows: Sequence[Row]) -> list[Row]:
        """Start every row once, so that it has shown what it is before anything is measured.

        Rows that cannot be run here are noted with the reason. Raises ServerError for all other failures.
        """
        found = []
        for row in rows:
            try:
                check_installed(row)
                with serving(row, self.settings.server_cpu):
                    found.append(row)
            except NotRunError as error:
                self.not_run[row.name] = str(error)
                _say(f"not run  {row.name}: {error}")
        return found

    def measure(self, workload: Workload, rows: Sequence[Row]) -> None:
        """The rounds of one workload, and its table."""
        settings = replace(self.settings, connections=workload.connections)
        runnable = self.runnable(rows)
        if not runnable:
            return
        measurements = run_rounds(runnable, settings, _show)
        summaries = summarize(runnable, measurements)
        close = [o.sentence() for o in check_bars({workload.name: cpu_by_loop(summaries)}) if o.close]
        if close:
            _say(f"too close to call, {CLOSE_ROUNDS} x as many rounds more: {'; '.join(close)}")
            more = replace(settings, rounds=CLOSE_ROUNDS * settings.rounds)
            measurements += run_rounds(runnable, more, _show, first=settings.rounds)
            summaries = summarize(runnable, measurements)
        self.measurements += measurements
        self.summaries[workload.name] = summaries
        missing = {loop_of(row): self.not_run[row.name] for row in rows if row.name in self.not_run}
        console.print(workload_table(workload, summaries, missing))

    def count(self, rows: Sequence[Row], connections: int) -> None:
        """System calls a request on so many connections."""
        witness = find_witness()
        if witness is None:
            reason = "neither perf (with the right to count raw_syscalls) nor strace is installed"
            self.not_run |= {row.name: reason for row in rows}
            _say(f"not run  {SYSTEM_CALLS}: {reason}")
            return
        counts = count_all(self.runnable(rows), replace(ECHO, connections=connections), self.settings, witness)
        self.counts += counts
        load = f"{ECHO.title}, closed loop, connections: {connections}"
        console.print(count_table(load, counts, witness.program))

    def idle(self, rows: Sequence[Row]) -> None:
        """Memory of idle connections."""
        try:
            self.memory = memory.measure_all(self.runnable(rows), self.settings)
        except NotRunError as error:
            self.not_run |= {row.name: str(error) for row in rows}
            _say(f"not run  {IDLE_MEMORY}: {error}")
            return
        console.print(memory_table(self.memory, memory.CONNECTIONS))

    def compare(self, section: ModeSection, rows: Sequence[Row]) -> None:
        """A mode on and off."""
        runnable = self.runnable(rows)
        if not runnable:
            return
        measurements = measure_section(section, runnable, self.settings)
        self.modes += measurements
        title = f"{section.name}: {section.workload.title}"
        console.print(modes_table(title, summarize_modes(runnable, measurements)))

    def outcomes(self, rows: Sequence[Row]) -> list[Outcome]:
        """The bars of every section that was asked for."""
        asked = {row.name.rpartition("/")[0] for row in rows}
        cpu = {w.name: cpu_by_loop(self.summaries.get(w.name, [])) for w in WORKLOADS if w.name in asked}
        found = check_bars(cpu)
        if SYSTEM_CALLS in asked:
            counted = {loop_of(c.row): c.witnessed for c in self.counts if c.row.name.startswith(f"{SYSTEM_CALLS}/")}
            found += check_system_calls(counted, SYSTEM_CALLS)
        if IDLE_MEMORY in asked:
            found += check_memory({loop_of(m.row): m.bytes_per_connection for m in self.memory}, IDLE_MEMORY)
        spinning = SECTIONS[0].name
        if spinning in asked:
            idle: dict[str, float] = {}
            for m in (m for m in self.modes if m.row.startswith(f"{spinning}/")):
                loop = m.row.rpartition("/")[2]
                idle[loop] = max(m.idle_cpu, idle.get(loop, 0.0))
            found += check_idle(idle, spinning)
        return found


def _say(line: str) -> None:
    console.print(escape(line), highlight=False, soft_wrap=True)


def _show(measurement: Measurement) -> None:
    _say(
        f"round {measurement.round + 1}  {measurement.row:36} {measurement.cpu_us_per_request:10.3f} µs CPU each  "
        f"{measurement.requests_per_s:12,.0f} a second"
    )


def all_rows() -> list[Row]:
    """Every row there is."""
    workloads = [row for workload in WORKLOADS for row in rows_of(workload)]
    counted = [row for name in SYSTEM_CALLS_LOADS for row in rows_of(ECHO, name)]
    modes = [row for section in SECTIONS for row in section.rows()]
    return workloads + counted + rows_of(ECHO, IDLE_MEMORY) + modes


def _run(run: Run, rows: Sequence[Row]) -> None:
    """Everything that was asked for, section by section. Raises ClickException with the reason, naming the row."""

    def section(name: str) -> list[Row]:
        return [row for row in rows if row.name.startswith(f"{name}/")]

    try:
        prepare(rows, run.settings)
        make_certificate()
        for workload in WORKLOADS:
            if chosen := section(workload.name):
                run.measure(workload, chosen)
        for name, connections in SYSTEM_CALLS_LOADS.items():
            if chosen := section(name):
                run.count(chosen, connections)
        if chosen := section(IDLE_MEMORY):
            run.idle(chosen)
        for mode in SECTIONS:
            if chosen := section(mode.name):
                run.compare(mode, chosen)
    except (BuildError, ServerError) as error:
        raise click.ClickException(str(error)) from error


@click.command(context_settings={"max_content_width": 110})
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS_MIN, show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Length of one measurement."
)
@click.option("--only", "patterns", multiple=True, metavar="PATTERN", help="Run only these rows, e.g. 'echo-*/uvloop'.")
@click.option("--list", "list_rows", is_flag=True, help="Print the names of all rows and exit.")
@click.option("--server-cpu", type=int, help="CPU of the servers  [default: the first]")
@click.option("--load-cpu", type=int, help="CPU of the load generator  [default: the next]")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write all figures here.")
@click.option("--check", is_flag=True, help="Exit with status 1 when a bar is missed, or could not be run.")
def main(
    *,
    rounds: int,
    seconds: float,
    patterns: tuple[str, ...],
    list_rows: bool,
    server_cpu: int | None,
    load_cpu: int | None,
    json_path: Path | None,
    check: bool,
) -> None:
    """Measure event loops: CPU time an operation, operations per second, system calls, memory."""
    if check and rounds < ROUNDS_MIN:
        raise click.UsageError(f"--check needs --rounds {ROUNDS_MIN} or more")
    try:
        rows = select_rows(all_rows(), patterns)
    except LookupError as error:
        raise click.UsageError(str(error.args[0])) from error
    if list_rows:
        for row in rows:
            click.echo(row.name)
        return
    server, other = choose_cpus(server_cpu, load_cpu)
    run = Run(Settings(rounds, seconds, ECHO.connections, server, other))
    _run(run, rows)
    facts = machine_facts([row for row in rows if row.name not in run.not_run], run.settings)
    for name, value in facts.items():
        _say(f"{name:24} {value}")
    summaries = [summary for of_workload in run.summaries.values() for summary in of_workload]
    for line in warnings(summaries) if summaries else []:
        _say(f"note: {line}")
    outcomes = run.outcomes(rows)
    for outcome in outcomes:
        _say(outcome.sentence())
    if json_path is not None:
        write_json(
            json_path,
            facts=facts,
            measurements=run.measurements,
            counts=run.counts,
            memory=run.memory,
            modes=run.modes,
            not_run=run.not_run,
            outcomes=outcomes,
        )
    if check and not all_held(outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
