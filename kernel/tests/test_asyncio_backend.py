"""The built-in backend keeps the contract, and what LoopBackend adds to it."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest

from stellane.abc import Backend
from stellane.builtin import asyncio_backend
from stellane.builtin.asyncio_backend import AsyncioBackend
from stellane.testing.backend import BackendConformance


class TestAsyncioBackend(BackendConformance):
    """The standard library's loop."""

    def make_backend(self) -> AsyncioBackend:
        return AsyncioBackend()


async def fail() -> None:
    raise LookupError("as told")


def run_briefly(backend: Backend) -> None:
    async def stop() -> None:
        await asyncio.sleep(0.01)
        backend.stop()

    backend.schedule(stop())
    backend.run()


def test_a_failure_that_nobody_asks_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The exception of a dropped handle is logged with its traceback, as asyncio does for tasks."""
    backend = AsyncioBackend()
    backend.schedule(fail())
    with caplog.at_level(logging.ERROR, "stellane.backend"):
        run_briefly(backend)
        gc.collect()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)


@pytest.mark.parametrize("ask", ["exception", "result"])
def test_a_failure_that_was_asked_for_is_not_logged(caplog: pytest.LogCaptureFixture, ask: str) -> None:
    """Either way of asking counts."""
    backend = AsyncioBackend()
    handle: Any = backend.schedule(fail())
    run_briefly(backend)
    if ask == "exception":
        assert isinstance(handle.exception(), LookupError)
    else:
        with pytest.raises(LookupError):
            handle.result()
    del handle
    gc.collect()
    assert caplog.records == []


def test_a_task_that_fails_while_it_is_cancelled_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong in the clean-up is told to the loop's exception handler."""

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise LookupError("in the clean-up") from None

    backend = AsyncioBackend()
    handle: Any = backend.schedule(stubborn())
    run_briefly(backend)
    assert isinstance(handle.exception(), LookupError)
    (record,) = caplog.records
    assert "while it was cancelled" in record.getMessage()


def test_run_inside_another_loop_is_refused_and_changes_nothing() -> None:
    """The same backend can run afterwards, elsewhere."""
    backend = AsyncioBackend()

    async def nested() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            backend.run()

    asyncio.run(nested())
    run_briefly(backend)


def test_the_event_loop_policy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend named asyncio is asyncio's own loop even when another library has set a policy."""

    def other() -> asyncio.AbstractEventLoop:
        raise AssertionError("the policy was asked")

    monkeypatch.setattr(asyncio, "new_event_loop", other)
    loop = AsyncioBackend().new_event_loop()
    assert type(loop) is asyncio.SelectorEventLoop
    loop.close()


def test_probe_opens_a_loop() -> None:
    """It says which selector the platform gives."""
    probe = asyncio_backend.stellane_probe(None)
    assert probe.usable
    assert probe.facts["selector"].endswith("Selector")
