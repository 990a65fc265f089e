"""An end for code that may block for ever."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

AGAIN_S = 0.5
"""A loop that survived the first alarm, in its clean-up for example, gets another one this often."""


class Hang(KeyboardInterrupt):
    """Raised in the main thread. A KeyboardInterrupt, because loops and tasks let only those through."""


@contextlib.contextmanager
def watchdog(deadline_s: float) -> Iterator[None]:
    """Fail the test when the block takes longer than `deadline_s`. In the main thread only."""

    def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a signal handler's signature
        raise Hang

    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, deadline_s, AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Hang:
        pytest.fail(f"not finished after {deadline_s} s")
    finally:
        signal.signal(signal.SIGALRM, previous)
