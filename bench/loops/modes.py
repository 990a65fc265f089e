"""What Stellane's loop does when it may look before it sleeps, or wait for several events at once."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.cpu import PROC, CpuReading, busy_seconds, read_cpu
from bench.load import LoadError, run_generator
from bench.loops.counting import Told, ask_loop
from bench.loops.loops import BATCHING, SPINNING, Loop, loop_named
from bench.loops.workloads import ECHO, Workload, echo_command, loop_row
from bench.measure import CPU_S_MIN, Settings, order_of_round
from bench.rows import Row
from bench.servers import ServerError, serving

SETTLE_S = 0.1
"""After the last request, before the loop counts as idle."""
IDLE_S = 2.0
IDLE_CPU_MAX = 0.005
"""What an idle loop may use of a CPU: one tick of 0.01 s of the clock that CPU time is counted in."""


@dataclass(frozen=True, slots=True)
class ModeSection:
    """The same load on loops in and out of a mode. `pinned`: the server has a CPU of its own.

    A loop that may use one CPU never looks before it sleeps: what it would burn there is never spare.
    """

    name: str
    workload: Workload
    loops: tuple[Loop, ...]
    pinned: bool

    def rows(self) -> list[Row]:
        workload = replace(self.workload, name=self.name)
        return [loop_row(workload, loop) for loop in self.loops]


SECTIONS = (
    ModeSection(
        "adaptive-polling",
        replace(ECHO, title="one client, 1 KiB and its echo in turn; the server on any CPU", connections=1),
        (loop_named("stellane-epoll"), SPINNING[0], loop_named("stellane-io_uring"), SPINNING[1]),
        pinned=False,
    ),
    ModeSection(
        "batching",
        replace(ECHO, title=f"{ECHO.connections} clients, each with 1 KiB and its echo in turn"),
        (loop_named("stellane-io_uring"), BATCHING),
        pinned=True,
    ),
)


@dataclass(frozen=True, slots=True)
class ModeMeasurement:
    """One window of load on one loop, and the silence after it."""

    row: str
    round: int
    requests: int
    cpu_us: float
    requests_per_s: float
    p50_us: float
    p99_us: float
    system_calls: float
    """A request, by the loop's own statistics."""
    idle_cpu: float
    """The part of a CPU it used while its connections were open and silent."""
    spin_us: float
    """How long it would have looked before it slept, when the load ended; 0: it did not look."""
    wait_events: int
    """How many events it would have waited for; 1: it did not wait for a batch."""
    others_cpus: float
    """CPUs that neither the server nor the client used, but something did, during the load."""


@dataclass(frozen=True, slots=True)
class ModeSummary:
    """Medians over the rounds; `idle_cpu_max` is the worst, `at_work` in how many rounds the mode was in use.

    `p50_ratio` and `cpu_ratio` are medians of ratios to the loop out of the mode in the same round: what else the
    machine did is more alike there than between medians. None for that loop itself, and where it did not run.
    """

    row: Row
    rounds: int
    cpu_us: float
    requests_per_s: float
    p50_us: float
    p99_us: float
    system_calls: float
    idle_cpu_max: float
    at_work: int
    others_cpus: float
    p50_ratio: float | None
    cpu_ratio: float | None


def all_busy_seconds() -> float:
    """Seconds that the CPUs this process may use have not been idle since boot."""
    return sum(busy_seconds(cpu) for cpu in os.sched_getaffinity(0))


def measure_mode(row: Row, section: ModeSection, settings: Settings, round_number: int) -> ModeMeasurement:
    """One window and the silence after it. Raises ServerError."""
    told: list[Told] = []
    used: list[CpuReading] = []
    busy_s: list[float] = []
    workload = section.workload
    with serving(row, settings.server_cpu if section.pinned else None) as server:
        log = PROC / str(server.pid) / "cwd" / "output.txt"

        def at_start() -> None:
            told.append(ask_loop(server.pid, log))
            used.append(read_cpu(server.pid))
            busy_s.append(all_busy_seconds())

        def at_end() -> None:
            busy_s.append(all_busy_seconds())
            used.append(read_cpu(server.pid))
            told.append(ask_loop(server.pid, log))
            for silence_s in (SETTLE_S, IDLE_S):
                time.sleep(silence_s)
                used.append(read_cpu(server.pid))

        command = echo_command(server.port, workload.connections, settings.seconds, workload.message_bytes)
        try:
            load = run_generator(command, cpu=settings.load_cpu, at_start=at_start, at_end=at_end)
        except LoadError as error:
            raise ServerError(f"{row.name}: {error}") from error
    cpu_s = used[1].since(used[0])
    if cpu_s < CPU_S_MIN:
        raise ServerError(f"{row.name} used only {cpu_s:.2f} s of CPU time, too little to measure: raise --seconds")
    first, last = told
    if first.system_calls is None or last.system_calls is None or last.next_wait is None:
        raise ServerError(f"{row.name}: the loop tells neither its system calls nor how it waits")
    return ModeMeasurement(
        row=row.name,
        round=round_number,
        requests=load.requests,
        cpu_us=cpu_s / load.requests * 1e6,
        requests_per_s=load.requests_per_s,
        p50_us=load.p50_us,
        p99_us=load.p99_us,
        system_calls=(last.system_calls - first.system_calls) / load.requests,
        idle_cpu=used[3].since(used[2]) / IDLE_S,
        spin_us=last.next_wait[0] / 1000,
        wait_events=last.next_wait[1],
        others_cpus=max(0.0, busy_s[1] - busy_s[0] - cpu_s - (load.generator_cpu_s or 0.0)) / load.elapsed_s,
    )


def measure_section(section: ModeSection, rows: Sequence[Row], settings: Settings) -> list[ModeMeasurement]:
    """Every row once a round, rotated. Raises ServerError."""
    return [
        measure_mode(row, section, settings, round_number)
        for round_number in range(settings.rounds)
        for row in order_of_round(rows, round_number)
    ]


def paired_with(
    of_row: Sequence[ModeMeasurement], measurements: Sequence[ModeMeasurement]
) -> list[tuple[ModeMeasurement, ModeMeasurement]]:
    """Each measurement of a row in a mode with that of the same round out of it."""
    off = {(m.row, m.round): m for m in measurements if "+" not in m.row}
    pairs = ((m, off.get((m.row.partition("+")[0], m.round))) for m in of_row if "+" in m.row)
    return [(m, other) for m, other in pairs if other is not None]


def summarize_modes(rows: Sequence[Row], measurements: Sequence[ModeMeasurement]) -> list[ModeSummary]:
    """One summary a row, in the order of `rows`."""
    summaries = []
    for row in rows:
        of_row = [m for m in measurements if m.row == row.name]
        pairs = paired_with(of_row, measurements)
        summaries.append(
            ModeSummary(
                row=row,
                rounds=len(of_row),
                cpu_us=statistics.median(m.cpu_us for m in of_row),
                requests_per_s=statistics.median(m.requests_per_s for m in of_row),
                p50_us=statistics.median(m.p50_us for m in of_row),
                p99_us=statistics.median(m.p99_us for m in of_row),
                system_calls=statistics.median(m.system_calls for m in of_row),
                idle_cpu_max=max(m.idle_cpu for m in of_row),
                at_work=sum(m.spin_us > 0 or m.wait_events > 1 for m in of_row),
                others_cpus=statistics.median(m.others_cpus for m in of_row),
                p50_ratio=statistics.median(m.p50_us / off.p50_us for m, off in pairs) if pairs else None,
                cpu_ratio=statistics.median(m.cpu_us / off.cpu_us for m, off in pairs) if pairs else None,
            )
        )
    return summaries
