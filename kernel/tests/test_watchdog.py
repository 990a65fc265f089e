"""The end of what would hang: the failure says what was waiting."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest

from stellane.testing.watchdog import watchdog


def test_a_hang_fails_and_names_the_tasks_that_waited() -> None:
    """The name of the task, its coroutine and the line it stands at."""

    async def never() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        await asyncio.create_task(never(), name="the one that waits")

    with pytest.raises(pytest.fail.Exception) as caught, watchdog(0.1):
        asyncio.run(main())
    text = str(caught.value)
    assert "not finished after 0.1 s" in text
    assert "the one that waits" in text
    assert f"{__file__}:{never.__code__.co_firstlineno + 1}" in text


def test_a_hang_without_a_loop_fails_too() -> None:
    """Plain code that blocks."""
    with pytest.raises(pytest.fail.Exception, match="no event loop was running"), watchdog(0.1):
        threading.Event().wait()


def test_who_is_in_time_is_left_alone() -> None:
    """No alarm is left behind."""
    before = signal.getsignal(signal.SIGALRM)
    with watchdog(20):
        asyncio.run(asyncio.sleep(0))
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
