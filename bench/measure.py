"""Interleaved rounds of measurements, and their medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.build import BUILD, compile_program
from bench.cpu import CpuReading, busy_seconds, read_cpu, read_written_bytes
from bench.load import LoadError, LoadResult, run_c_generator, run_wrk
from bench.rows import Row
from bench.servers import ServerError, serving

CPU_S_MIN = 0.3
"""A window in which the server used less CPU time is refused: time is counted in ticks of 0.01 s."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How each measurement is made. `wrk` is the program's path, or "" for our own generator."""

    rounds: int
    seconds: float
    connections: int
    server_cpu: int
    load_cpu: int
    wrk: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One window of load on one server."""

    row: str
    round: int
    requests: int
    elapsed_s: float
    cpu_s: float
    cpu_us_per_request: float
    requests_per_s: float
    p50_us: float
    p99_us: float
    busy: float
    """The part of the window in which the server used its CPU; near 1 means the server is the limit."""
    foreign: float
    """The part of the window in which something else used the server's CPU."""
    foreign_load: float | None
    """The same for the generator's CPU; None when the generator does not tell what it used itself."""
    written_bytes_per_request: float
    response_head: str


@dataclass(frozen=True, slots=True)
class Summary:
    """Medians over the rounds, and the extremes of the CPU figure."""

    row: Row
    rounds: int
    cpu_us: float
    cpu_us_min: float
    cpu_us_max: float
    requests_per_s: float
    p50_us: float
    p99_us: float
    busy: float
    foreign_max: float
    """The worst round of `Measurement.foreign` and `foreign_load`."""


class _Window:
    """Reads the counters of the server and of both CPUs at both ends of the measured window."""

    def __init__(self, pid: int, settings: Settings, *, reaped: bool) -> None:
        self._pid = pid
        self._reaped = reaped
        self._cpus = (settings.server_cpu, settings.load_cpu)
        self._before: tuple[float, list[float], int, CpuReading] | None = None
        self.wall_s = self.cpu_s = self.server_cpu_busy_s = self.load_cpu_busy_s = 0.0
        self.written_bytes = 0

    def _read(self) -> tuple[float, list[float], int, CpuReading]:
        busy_s = [busy_seconds(cpu) for cpu in self._cpus]
        return time.monotonic(), busy_s, read_written_bytes(self._pid), read_cpu(self._pid, reaped=self._reaped)

    def open(self) -> None:
        self._before = self._read()

    def close(self) -> None:
        assert self._before is not None
        wall, busy_s, written, cpu = self._read()
        self.wall_s = wall - self._before[0]
        self.server_cpu_busy_s, self.load_cpu_busy_s = (
            now - then for now, then in zip(busy_s, self._before[1], strict=True)
        )
        self.written_bytes = written - self._before[2]
        self.cpu_s = cpu.since(self._before[3])


def measure(row: Row, settings: Settings, round_number: int) -> Measurement:
    """Start the row's server, load it, stop it. Raises ServerError and LoadError; never a doubtful figure."""
    with serving(row, settings.server_cpu) as server:
        window = _Window(server.pid, settings, reaped=row.reaps)
        try:
            load = _load(row, settings, server.port, window)
        except LoadError as error:
            # Seen by `serving` as the server's failure, so that its output is shown too.
            raise ServerError(f"under load: {error}") from error
        if window.cpu_s < CPU_S_MIN:
            raise ServerError(
                f"it used only {window.cpu_s:.2f} s of CPU time, too little to measure: "
                f"raise --seconds or --connections"
            )
        written = window.written_bytes / load.requests
        if written < row.written_bytes_min or (row.written_bytes_max is not None and written > row.written_bytes_max):
            raise ServerError(
                f"it wrote {written:.0f} bytes a request, and its row allows {row.written_bytes_min} "
                f"to {row.written_bytes_max}: the journal is not where the row says"
            )
        return Measurement(
            row=row.name,
            round=round_number,
            requests=load.requests,
            elapsed_s=load.elapsed_s,
            cpu_s=window.cpu_s,
            cpu_us_per_request=window.cpu_s / load.requests * 1e6,
            requests_per_s=load.requests_per_s,
            p50_us=load.p50_us,
            p99_us=load.p99_us,
            busy=window.cpu_s / window.wall_s,
            foreign=max(0.0, (window.server_cpu_busy_s - window.cpu_s) / window.wall_s),
            foreign_load=_foreign_load(window, load),
            written_bytes_per_request=written,
            response_head=server.response_head,
        )


def _foreign_load(window: _Window, load: LoadResult) -> float | None:
    if load.generator_cpu_s is None:
        return None
    return max(0.0, (window.load_cpu_busy_s - load.generator_cpu_s) / window.wall_s)


def _load(row: Row, settings: Settings, port: int, window: _Window) -> LoadResult:
    if row.load is not None:
        return row.load(
            port,
            connections=settings.connections,
            seconds=settings.seconds,
            cpu=settings.load_cpu,
            at_start=window.open,
            at_end=window.close,
        )
    if settings.wrk:
        return run_wrk(
            settings.wrk,
            port=port,
            connections=settings.connections,
            seconds=settings.seconds,
            cpu=settings.load_cpu,
            at_start=window.open,
            at_end=window.close,
        )
    return run_c_generator(
        BUILD / "load",
        port=port,
        request=row.request,
        connections=settings.connections,
        seconds=settings.seconds,
        cpu=settings.load_cpu,
        at_start=window.open,
        at_end=window.close,
    )


def order_of_round(rows: Sequence[Row], round_number: int) -> list[Row]:
    """The rows, rotated, so that no server always runs after the same pause or the same neighbour first."""
    shift = round_number % len(rows)
    return [*rows[shift:], *rows[:shift]]


def run_rounds(
    rows: Sequence[Row], settings: Settings, progress: Callable[[Measurement], None], *, first: int = 0
) -> list[Measurement]:
    """Every row once a round, `settings.rounds` times; the number of the first round is `first`."""
    measurements = []
    for round_number in range(first, first + settings.rounds):
        for row in order_of_round(rows, round_number):
            measurement = measure(row, settings, round_number)
            progress(measurement)
            measurements.append(measurement)
    return measurements


def summarize(rows: Sequence[Row], measurements: Sequence[Measurement]) -> list[Summary]:
    """One Summary a row, in the order of `rows`."""
    summaries = []
    for row in rows:
        of_row = [m for m in measurements if m.row == row.name]
        cpu = [m.cpu_us_per_request for m in of_row]
        summaries.append(
            Summary(
                row=row,
                rounds=len(of_row),
                cpu_us=statistics.median(cpu),
                cpu_us_min=min(cpu),
                cpu_us_max=max(cpu),
                requests_per_s=statistics.median(m.requests_per_s for m in of_row),
                p50_us=statistics.median(m.p50_us for m in of_row),
                p99_us=statistics.median(m.p99_us for m in of_row),
                busy=statistics.median(m.busy for m in of_row),
                foreign_max=max(max(m.foreign, m.foreign_load or 0.0) for m in of_row),
            )
        )
    return summaries


def prepare(rows: Sequence[Row], settings: Settings) -> None:
    """Compile the C programs that will be run. Raises BuildError."""
    names = {name for row in rows for name in row.programs}
    for name in sorted(names if settings.wrk else names | {"load"}):
        compile_program(name)
