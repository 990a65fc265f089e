"""What a loop says about itself."""

from asyncio import Handle, Task
from dataclasses import dataclass
from types import FrameType


@dataclass(frozen=True)
class LoopStatistics:
    """Counted since the loop was made; callbacks, times and turn lengths since `loop.measure_turns(True)`, else 0."""

    poller: str
    turns: int
    polls: int
    waits: int
    system_calls: int
    events: int
    accepts: int
    receives: int
    sends: int
    rearms: int
    starved: int
    overflows: int
    in_flight: int
    ready: int
    timers: int
    open: int
    callbacks: int
    busy_s: float
    """Time spent in callbacks and I/O, without the waiting."""
    lag_max_s: float
    """The most that a timer was late."""
    turn_us_log2: tuple[int, ...]
    """How many turns took less than 2**i microseconds and were not counted before."""


@dataclass(frozen=True)
class SlowCallback:
    """A callback, or a step of a task, that took longer than the threshold."""

    handle: Handle
    took_s: float
    task: "Task[object] | None"
    stack: list[FrameType]
    """Where the task's coroutine waits now, outermost frame first; empty for a plain callback or a finished task."""
