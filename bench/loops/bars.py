"""The bars of the loop, and how a run came out against them."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.loops.loops import SPINNING, STELLANE, UVLOOP
from bench.loops.modes import IDLE_CPU_MAX
from bench.loops.workloads import BARE, WORKLOADS

BARE_C = "bare C"
"""As a peer: the cheaper of the C servers of the workload."""

SYSTEM_CALLS_MAX = 1 / 8
"""System calls a request under load, on io_uring."""

CLOSE = 0.05
"""A ratio that is no further than this part of its bar from it is too close to call by a few rounds."""

MEMORY_MAX = 1.0
"""Resident memory of an idle connection, to the peer's."""

Cpu = Mapping[str, Mapping[str, float]]
"""Median CPU time an operation, by workload and by loop."""


@dataclass(frozen=True, slots=True)
class Bar:
    """On the workloads that match, at most `ratio_max` x the peer's CPU time an operation.

    `better`: the better poller has to hold it; else each of them.
    """

    workloads: str
    peer: str
    ratio_max: float
    better: bool = False


BARS = (
    Bar("*", UVLOOP, 1.0),
    Bar("echo-protocol-*", UVLOOP, 0.93, better=True),
    Bar("echo-protocol-*", BARE_C, 1.12, better=True),
    Bar("echo-streams-*", UVLOOP, 0.85),
    Bar("echo-sock-*", UVLOOP, 0.85),
    Bar("call-soon-*", UVLOOP, 0.8),
    Bar("timers", UVLOOP, 0.8),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One bar on one workload and loop. `ratio` is None when something it needs was not run."""

    workload: str
    loop: str
    against: str
    limit: float
    ratio: float | None

    @property
    def held(self) -> bool:
        return self.ratio is not None and self.ratio <= self.limit

    @property
    def close(self) -> bool:
        return self.ratio is not None and abs(self.ratio / self.limit - 1) <= CLOSE

    def sentence(self) -> str:
        if self.ratio is None:
            return f"not run {self.workload}: {self.loop} against {self.against}, bar {self.limit:.3g}"
        verdict = "held   " if self.held else "missed "
        return f"{verdict} {self.workload}: {self.loop} is {self.ratio:.3f} {self.against}, bar {self.limit:.3g}"


def _peer_cpu(cpu: Mapping[str, float], peer: str) -> float | None:
    if peer == BARE_C:
        return min((cpu[name] for name in BARE if name in cpu), default=None)
    return cpu.get(peer)


def _outcome(bar: Bar, workload: str, loop: str, cpu: Mapping[str, float]) -> Outcome:
    peer, own = _peer_cpu(cpu, bar.peer), cpu.get(loop)
    ratio = None if own is None or peer is None else own / peer
    return Outcome(workload, loop, f"x {bar.peer}", bar.ratio_max, ratio)


def check_bars(cpu: Cpu) -> list[Outcome]:
    """Every bar on every workload in `cpu`. What was not run is told, and is not held."""
    outcomes = []
    for workload, loops in ((w.name, {loop.name for loop in w.loops}) for w in WORKLOADS if w.name in cpu):
        for bar in (b for b in BARS if fnmatch.fnmatch(workload, b.workloads)):
            of_loops = [_outcome(bar, workload, loop, cpu[workload]) for loop in STELLANE if loop in loops]
            run = [outcome for outcome in of_loops if outcome.ratio is not None]
            if bar.better:
                outcomes.append(min(run, key=lambda o: o.ratio or 0.0) if run else of_loops[0])
            else:
                outcomes += of_loops
    return outcomes


def check_system_calls(witnessed: Mapping[str, float], workload: str) -> list[Outcome]:
    """The bar on system calls; `witnessed` is calls a request by loop."""
    loop = "stellane-io_uring"
    return [Outcome(workload, loop, "system calls a request", SYSTEM_CALLS_MAX, witnessed.get(loop))]


def check_memory(idle_bytes: Mapping[str, float], workload: str) -> list[Outcome]:
    """The bar on idle connections, for each poller; `idle_bytes` is resident memory a connection by loop."""
    peer = idle_bytes.get(UVLOOP)
    return [
        Outcome(workload, loop, f"x {UVLOOP}", MEMORY_MAX, None if peer is None or own is None else own / peer)
        for loop, own in ((loop, idle_bytes.get(loop)) for loop in STELLANE)
    ]


def check_idle(idle_cpu: Mapping[str, float], workload: str) -> list[Outcome]:
    """The bar on a loop that may spin and has nothing to do; `idle_cpu` is the part of a CPU by loop."""
    return [
        Outcome(workload, loop.name, "of a CPU while idle", IDLE_CPU_MAX, idle_cpu.get(loop.name)) for loop in SPINNING
    ]


def all_held(outcomes: Sequence[Outcome]) -> bool:
    """Whether `--check` may succeed: there are bars, each was run and each held."""
    return bool(outcomes) and all(outcome.held for outcome in outcomes)
