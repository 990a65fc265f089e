"""An end for code that may block for ever."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

AGAIN_S = 0.5
"""A loop that survived the first alarm, in its clean-up for example, gets another one this often."""
TASKS_SHOWN_MAX = 30
"""How many of the tasks that were waiting a failure names."""


class Hang(KeyboardInterrupt):
    """Raised in the main thread. A KeyboardInterrupt, because loops and tasks let only those through."""


@contextlib.contextmanager
def watchdog(deadline_s: float) -> Iterator[None]:
    """Fail the test when the block takes longer than `deadline_s`. In the main thread only."""

    waiting: list[str] = []

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
        if not waiting:
            waiting.extend(_what_waits())
        raise Hang

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, deadline_s, AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Hang:
        pytest.fail("\n".join([f"not finished after {deadline_s} s", *waiting]))
    finally:
        signal.signal(signal.SIGALRM, previous)


def _what_waits() -> list[str]:
    """What the loop of this thread counted, and where each of its tasks stands."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return ["no event loop was running"]
    counted = getattr(loop, "statistics", None)
    lines = [str(counted())] if counted is not None else []
    for task in list(asyncio.all_tasks(loop))[:TASKS_SHOWN_MAX]:
        stack = task.get_stack()
        place = f"{stack[-1].f_code.co_filename}:{stack[-1].f_lineno}" if stack else "not started"
        lines.append(f"{task.get_name()} in {task.get_coro()!r} at {place}")
    return lines
