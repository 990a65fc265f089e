"""The spine: admission, eager starts, isolation between requests, stopping."""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Coroutine
from typing import Any

import pytest

from stellane.abc import Exchange
from stellane.builtin.fifo_scheduler import FifoScheduler
from stellane.config import Config
from stellane.recovery.context import Attempt, RecoveryContext
from stellane.runtime.application import Application
from stellane.runtime.spine import RETRY_AFTER_S, Spine
from stellane.testing.exchange import MemoryExchange

EAGER = sys.version_info >= (3, 12)
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="start-up")


class App(Application):
    """Runs one coroutine function for every request."""

    kind = "native"

    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def configure(self, config: Config) -> None:
        raise NotImplementedError

    async def startup(self) -> None:
        raise NotImplementedError

    async def shutdown(self) -> None:
        raise NotImplementedError

    async def handle(self, exchange: Exchange) -> None:
        await self._handler(exchange)

    async def recover(self, exchange: Exchange, recovery: RecoveryContext) -> None:
        raise NotImplementedError

    async def dead_letter(self, exchange: Exchange, attempts: list[Attempt]) -> None:
        raise NotImplementedError

    def journal_wish(self, method: str, path: bytes) -> bool | None:
        raise NotImplementedError

    def has_recovery_hook(self, method: str, path: bytes) -> bool:
        raise NotImplementedError


def make(handler: Any, *, tasks_max: int = 10) -> Spine:
    loop = asyncio.get_running_loop()
    return Spine(App(handler), FifoScheduler(tasks_max), loop=loop, tasks_max=tasks_max)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.mark.skipif(not EAGER, reason="not run: eager tasks need CPython 3.12")
def test_a_handler_that_never_waits_is_finished_when_begin_returns() -> None:
    """No turn of the loop, and in a real task: asyncio.timeout and current_task work."""
    tasks: list[Any] = []

    async def handler(exchange: Exchange) -> None:
        async with asyncio.timeout(5):
            tasks.append(asyncio.current_task())
            exchange.respond(200, [], b"ok")

    async def main() -> None:
        spine = make(handler)
        exchange = MemoryExchange()
        spine.begin(exchange)
        assert exchange.status == 200
        assert spine.statistics().running == 0
        assert isinstance(tasks[0], asyncio.Task)
        assert asyncio.current_task() is not tasks[0]

    run(main())


def test_each_request_has_a_context_of_its_own() -> None:
    """What one request sets is invisible to the next; what start-up set is visible to all."""
    seen: list[str] = []

    async def handler(exchange: Exchange) -> None:
        seen.append(variable.get())
        variable.set("request")
        await asyncio.sleep(0)
        seen.append(variable.get())
        exchange.respond(200, [], b"")

    async def main() -> None:
        variable.set("lifespan")
        spine = make(handler)
        variable.set("later")
        for _ in range(2):
            spine.begin(MemoryExchange())
            await spine.wait_idle()
        assert variable.get() == "later"

    run(main())
    assert seen == ["lifespan", "request"] * 2


def test_admission_runs_some_queues_some_and_refuses_the_rest() -> None:
    """tasks_max run, as many wait and start in order, one more is told 503 with Retry-After."""
    release = asyncio.Event()
    started: list[bytes] = []

    async def handler(exchange: Exchange) -> None:
        started.append(exchange.path)
        await release.wait()
        exchange.respond(200, [], b"")

    async def main() -> None:
        spine = make(handler, tasks_max=2)
        exchanges = [MemoryExchange("GET", f"/{number}") for number in range(5)]
        for exchange in exchanges:
            spine.begin(exchange)
        await asyncio.sleep(0)
        statistics = spine.statistics()
        assert (statistics.running, statistics.waiting, statistics.refused_total) == (2, 2, 1)
        assert exchanges[4].status == 503
        assert dict(exchanges[4].response_headers)[b"retry-after"] == b"%d" % RETRY_AFTER_S
        release.set()
        await spine.wait_idle()
        assert started == [b"/0", b"/1", b"/2", b"/3"]
        assert [exchange.status for exchange in exchanges] == [200, 200, 200, 200, 503]
        assert spine.statistics().started_total == 4

    run(main())


def test_a_request_whose_client_left_the_queue_is_not_started() -> None:
    """Work for nobody is not begun."""
    release = asyncio.Event()
    started: list[bytes] = []

    async def handler(exchange: Exchange) -> None:
        started.append(exchange.path)
        await release.wait()
        exchange.respond(200, [], b"")

    async def main() -> None:
        spine = make(handler, tasks_max=1)
        first, second = MemoryExchange("GET", "/first"), MemoryExchange("GET", "/second")
        spine.begin(first)
        spine.begin(second)
        second.disconnect()
        release.set()
        await spine.wait_idle()
        assert started == [b"/first"]
        assert second.aborted, "its connection would stay open for ever"
        assert spine.statistics().waiting == 0

    run(main())


def test_a_client_that_only_closed_its_sending_side_gets_its_answer_from_the_queue() -> None:
    """As `nc -N` does: nothing more comes from it, and it waits."""

    class HalfClosed(MemoryExchange):
        disconnected = True
        gone = False

    release = asyncio.Event()

    async def handler(exchange: Exchange) -> None:
        await release.wait()
        exchange.respond(200, [], b"")

    async def main() -> None:
        spine = make(handler, tasks_max=1)
        waiting = HalfClosed("GET", "/second")
        spine.begin(MemoryExchange("GET", "/first"))
        spine.begin(waiting)
        release.set()
        await spine.wait_idle()
        assert waiting.status == 200

    run(main())


def test_an_error_of_the_application_object_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and its place is free again; whether it came at once or later."""

    async def handler(exchange: Exchange) -> None:
        if exchange.path == b"/later":
            await asyncio.sleep(0)
        if exchange.path != b"/fine":
            raise RuntimeError("on purpose")
        exchange.respond(200, [], b"")

    async def main() -> None:
        spine = make(handler, tasks_max=1)
        fine = MemoryExchange("GET", "/fine")
        for exchange in (MemoryExchange("GET", "/now"), MemoryExchange("GET", "/later")):
            spine.begin(exchange)
            await spine.wait_idle()
            assert exchange.status == 500
        spine.begin(fine)
        await spine.wait_idle()
        assert fine.status == 200
        assert spine.statistics().running == 0

    run(main())
    assert caplog.text.count("request task failed") == 2


def test_an_error_after_the_head_of_the_answer_cuts_the_connection() -> None:
    """A second head can not follow, and an answer that stops short must not look whole."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        await exchange.send(b"half")
        raise RuntimeError("on purpose")

    async def main() -> None:
        spine = make(handler)
        exchange = MemoryExchange()
        spine.begin(exchange)
        await spine.wait_idle()
        assert exchange.aborted

    run(main())


@pytest.mark.parametrize("later", [False, True])
def test_a_cancellation_that_the_handler_lets_out_is_its_error(later: bool) -> None:
    """It waited for something that was cancelled; nobody cancelled the request, so its client is told."""

    async def handler(exchange: Exchange) -> None:
        gone = asyncio.get_running_loop().create_future()
        if later:
            await asyncio.sleep(0)
        gone.cancel()
        await gone

    async def main() -> None:
        spine = make(handler)
        exchange = MemoryExchange()
        spine.begin(exchange)
        await spine.wait_idle()
        assert exchange.status == 500
        assert spine.statistics().running == 0

    run(main())


def test_cancel_ends_what_runs_and_forgets_what_waits() -> None:
    """After the graceful timeout: running handlers see CancelledError, waiting clients are cut."""
    cancelled: list[bytes] = []

    async def handler(exchange: Exchange) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(exchange.path)
            raise

    async def main() -> None:
        spine = make(handler, tasks_max=1)
        running, waiting = MemoryExchange("GET", "/running"), MemoryExchange("GET", "/waiting")
        spine.begin(running)
        spine.begin(waiting)
        await asyncio.sleep(0)
        spine.cancel()
        await asyncio.wait_for(spine.wait_idle(), 5)
        assert cancelled == [b"/running"]
        assert running.aborted, "no answer: a journaled one is replayed, and its client must not be told otherwise"
        assert waiting.aborted
        assert spine.statistics().waiting == 0

    run(main())
