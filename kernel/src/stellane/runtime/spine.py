"""The life of a request in one worker, top to bottom.

1. accept     the protocol has a connection                              (protocol plugin)
2. parse      a request head is complete: `begin` is called              (protocol plugin)
3. admit      at most `tasks_max` run at once, as many again wait        `begin`
4. journal    BEGIN is on record before the handler exists               `_journaled`
5. schedule   who waits starts in the scheduler's order                  `_start_waiting`
6. run        a real task, started eagerly, in a context of its own      `begin`
7. respond    RESP before the first byte, DONE after the last            `_journaled`
8. account    counters; observation that is off costs nothing            `_finished`

After a crash a request read from the journal enters at step 6, through `start`.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stellane.abc import Entry, Exchange, Scheduler
from stellane.errors import (
    BodyTooLarge,
    ClientDisconnected,
    JournalError,
    JournalFull,
    LocalProtocolError,
    QueueFull,
    RemoteProtocolError,
)
from stellane.logging import get_logger
from stellane.runtime.application import Application

if TYPE_CHECKING:
    from stellane.recovery.recorder import Recorder

RETRY_AFTER_S = 1
"""What a refused client is told to wait, seconds."""

_Task = asyncio.Task
_EAGER = sys.version_info >= (3, 12)
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_log = get_logger("stellane.spine")


@dataclass(frozen=True, slots=True)
class SpineStatistics:
    """A snapshot of one worker's requests."""

    running: int
    waiting: int
    started_total: int
    refused_total: int


class Spine:
    """Runs requests. Belongs to the loop's thread."""

    def __init__(
        self,
        application: Application,
        scheduler: Scheduler,
        *,
        loop: asyncio.AbstractEventLoop,
        tasks_max: int,
        recorder: Recorder | None = None,
    ) -> None:
        self._application = application
        self._handle = application.handle
        self._scheduler = scheduler
        self._loop = loop
        self._tasks_max = tasks_max
        self._recorder = recorder
        # Every request starts from what start-up and the lifespan left, never from another request.
        self._context = contextvars.copy_context()
        self._tasks: dict[asyncio.Task[None], Exchange | None] = {}
        self._running = 0
        self._waiting = 0
        self._started_total = 0
        self._refused_total = 0
        self._idle: asyncio.Future[None] | None = None
        self.cancelled = False
        """`cancel` was called: a task that is cancelled may be so because of it."""

    def begin(self, exchange: Exchange) -> None:
        """Admit a request: start it, let it wait, or answer 503. Called by the protocol."""
        if self._running >= self._tasks_max:
            self._wait_or_refuse(exchange)
            return
        if self._recorder is None or not self._recorder.wants(exchange):
            work = self._handle(exchange)
        else:
            work = self._journaled(exchange, self._recorder)
        self._started_total += 1
        if _EAGER:
            # A handler that never suspends is finished when this returns, with no turn of the loop.
            task = _Task(work, loop=self._loop, context=self._context.copy(), eager_start=True)  # type: ignore[call-arg]
            if task.done():
                _answer_for(task, exchange)
                return
        else:
            task = self._loop.create_task(work, context=self._context.copy())
        self._track(task, exchange)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the replay of a recovered request beside the others, under the same count."""
        self._started_total += 1
        self._track(self._loop.create_task(work, context=self._context.copy()), None)

    def _track(self, task: asyncio.Task[None], exchange: Exchange | None) -> None:
        self._running += 1
        self._tasks[task] = exchange
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running -= 1
        _answer_for(task, self._tasks.pop(task))
        if self._waiting:
            self._start_waiting()
        if self._idle is not None and not self._running and not self._idle.done():
            self._idle.set_result(None)

    def _wait_or_refuse(self, exchange: Exchange) -> None:
        try:
            self._scheduler.submit(Entry(exchange))
            self._waiting += 1
        except QueueFull:
            self._refused_total += 1
            _refuse(exchange, 503, b"server is busy: runtime.max_tasks_per_loop requests run and as many wait\n")

    def _start_waiting(self) -> None:
        while self._running < self._tasks_max and (entry := self._scheduler.next()) is not None:
            self._waiting -= 1
            if entry.work.gone:
                entry.work.abort()
            else:
                self.begin(entry.work)

    async def _journaled(self, exchange: Exchange, recorder: Recorder) -> None:
        try:
            recorded = await recorder.record(exchange)
        except ClientDisconnected:
            return  # it was never accepted: its body had not arrived
        except BodyTooLarge as error:
            _refuse(exchange, 413, f"{error}\n".encode())
            return
        except RemoteProtocolError as error:
            _refuse(exchange, error.status, f"{error}\n".encode())
            return
        except JournalError as error:
            self._refused_total += 1
            _log.error("request refused: the journal does not take it", error=str(error))
            # Only a full disk proves that nothing was kept; after another fault the next start may find the request.
            fate = b"was not run" if isinstance(error, JournalFull) else b"was not run; it may be after a restart"
            _refuse(exchange, 503, b"the request could not be journaled and %b\n" % fate)
            return
        except ValueError as error:
            _log.warning("request refused: it does not fit into a record of the journal", error=str(error))
            _refuse(exchange, 431, b"the request's head is too large to be journaled; the request was not run\n")
            return
        try:
            await self._handle(recorded)
        except BaseException as error:
            if _is_being_cancelled():
                raise  # no end on record: it is pending, and the next start replays it
            recorded.handler_raised(error)
            raise
        # A handler may make an error of its own, or its 500, of the cancellation: that is no end of its work either.
        if recorded.succeeded or not _is_being_cancelled():
            recorded.handler_returned()

    async def wait_idle(self) -> None:
        """Return when no request runs or waits."""
        while self._running:
            self._idle = self._loop.create_future()
            await self._idle

    def cancel(self) -> None:
        """Cancel every request that still runs, and forget those that wait."""
        self.cancelled = True
        while (entry := self._scheduler.next()) is not None:
            self._waiting -= 1
            entry.work.abort()
        for task in list(self._tasks):
            task.cancel("the worker is stopping")

    def statistics(self) -> SpineStatistics:
        """A snapshot; cheap."""
        return SpineStatistics(
            running=self._running,
            waiting=len(self._scheduler),
            started_total=self._started_total,
            refused_total=self._refused_total,
        )


def _refuse(exchange: Exchange, status: int, body: bytes) -> None:
    headers = [_TEXT, (b"connection", b"close")]
    if status == 503:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    try:
        exchange.respond(status, headers, body)
    except LocalProtocolError:
        exchange.abort()


def _is_being_cancelled() -> bool:
    """Whether somebody cancels this task. A handler may also let out the cancellation of something it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _answer_for(task: asyncio.Task[None], exchange: Exchange | None) -> None:
    """See to it that no request ends without an answer or an end of its connection.

    Applications turn what handlers raise into answers; what gets here is a fault of ours or theirs.
    """
    if task.cancelled():
        if exchange is None or exchange.response_ended:
            return
        _log.warning("a request was cancelled before it was answered", method=exchange.method)
    elif (error := task.exception()) is not None:
        _log.error("request task failed", exc_info=error)
    else:
        return
    if exchange is None or exchange.response_ended:
        return
    if exchange.response_started or task.cancelling():
        exchange.abort()
    else:
        _refuse(exchange, 500, b"the request failed\n")
