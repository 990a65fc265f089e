"""LoopBackend: everything a backend needs besides its loop.

A plugin subclasses it and returns a loop from `new_event_loop`. The life of a backend is
new, running, closing, closed, and never back: `run` may be called once.
"""

from __future__ import annotations

import abc
import asyncio
import contextvars
import enum
import sys
import threading
from collections.abc import Coroutine
from typing import Any

from stellane.abc.backend import Backend, BackendStatistics, Priority
from stellane.builtin.scheduled import ScheduledFuture

CANCEL_ROUNDS_MAX = 100
"""How often the closing of a loop cancels tasks that cancelled tasks have started meanwhile."""


class _State(enum.Enum):
    NEW = "not running yet"
    RUNNING = "running"
    CLOSING = "stopping"
    CLOSED = "closed"


_Waiting = tuple[Coroutine[Any, Any, Any], Priority, str | None, contextvars.Context, ScheduledFuture]


class LoopBackend(Backend):
    """A backend around any asyncio loop. Subclasses define `new_event_loop` and `capabilities`."""

    priority_variable: contextvars.ContextVar[int] | None = None
    """By what the loop orders callbacks: lower is more urgent, and unset, or 0, is NORMAL. None: it does not."""

    def __init__(self) -> None:
        # Reentrant: a Python signal handler may call `stop` while this very thread is in `schedule`.
        self._lock = threading.RLock()
        self._state = _State.NEW
        self._stop_requested = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread_id: int | None = None
        self._waiting: list[_Waiting] = []
        self._scheduled_total = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop_class = ""

    @abc.abstractmethod
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A fresh loop, not yet running."""

    def run(self) -> None:
        """Run the loop in this thread until `stop`; then cancel what is left and close the loop.

        An exception that leaves the loop itself (KeyboardInterrupt, SystemExit) leaves `run` as
        well, after the same clean-up. Raises RuntimeError when it is already running, has been
        closed, or when this thread is already inside another loop.
        """
        with self._lock:
            loop = self._begin()
        if loop is None:
            return
        try:
            loop.run_forever()
        finally:
            with self._lock:
                self._state = _State.CLOSING
            try:
                _finish(loop)
            finally:
                with self._lock:
                    self._state = _State.CLOSED
                    self._loop = self._thread_id = None

    def stop(self) -> None:
        """Ask the loop to stop: after the turn it is in. Any thread, and from signal handlers."""
        with self._lock:
            self._stop_requested = True
            if self._state is _State.RUNNING:
                assert self._loop is not None
                self._loop.call_soon_threadsafe(self._loop.stop)

    def schedule(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        priority: Priority = Priority.NORMAL,
        key: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Future[Any]:
        """Start `coro` as a task; see `Backend.schedule`.

        On CPython 3.12 and later the coroutine runs up to its first real wait at once: before
        `schedule` returns on the loop's own thread, in its turn when it comes from another one.
        Coroutines of one thread start in the order in which that thread scheduled them.
        """
        if not asyncio.iscoroutine(coro):
            raise TypeError(f"schedule takes a coroutine object, not {type(coro).__name__}")
        if self._thread_id == threading.get_ident() and self._state is _State.RUNNING:
            return self._keep(self.start_task(coro, priority, key, context))
        handle = ScheduledFuture()
        # A task runs in a copy of its maker's context, and the maker is this thread, not the loop's.
        context = context or contextvars.copy_context()
        with self._lock:
            if self._state is _State.NEW:
                self._waiting.append((coro, priority, key, context, handle))
            elif self._state is _State.RUNNING:
                assert self._loop is not None
                waiting = (coro, priority, key, context, handle)
                self._loop.call_soon_threadsafe(self._start_waiting, *waiting, context=self._starting(priority))
            else:
                coro.close()
                raise RuntimeError(f"cannot schedule a coroutine: the backend is {self._state.value}")
        return handle  # type: ignore[return-value] # future-like, as the contract says

    def is_running(self) -> bool:
        """Whether `run` is executing, its clean-up included."""
        return self._state in (_State.RUNNING, _State.CLOSING)

    def statistics(self) -> BackendStatistics:
        """A snapshot. `tasks` are the unfinished tasks of the loop, `loop_class` is "" before `run`."""
        loop = self._loop
        return BackendStatistics(
            loop_class=self._loop_class,
            running=self.is_running(),
            tasks=len(self._waiting) if loop is None else len(asyncio.all_tasks(loop)),
            scheduled_total=self._scheduled_total,
        )

    def start_task(
        self,
        coro: Coroutine[Any, Any, Any],
        priority: Priority,
        key: str | None,  # noqa: ARG002 - for backends of several loops
        context: contextvars.Context | None,
    ) -> asyncio.Task[Any]:
        """Make the task of a scheduled coroutine. On the loop's thread, while it runs.

        An ordinary asyncio loop runs callbacks first in, first out, so `priority` has no effect
        there. A loop that orders them by a context variable (`priority_variable`) finds it there.
        """
        loop = self._loop
        assert loop is not None
        self._scheduled_total += 1
        if self.priority_variable is not None:
            context = contextvars.copy_context() if context is None else context
            if not _is_entered(context):  # else it is the caller's own, and so is the priority in it
                context.run(self.priority_variable.set, priority - Priority.NORMAL)
        if (
            sys.version_info >= (3, 12)
            and loop.is_running()
            and loop.get_task_factory() is None
            and not _is_entered(context)
        ):
            return asyncio.Task(coro, loop=loop, context=context, eager_start=True)
        return loop.create_task(coro, context=context)

    def _keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        """Hold the task until it ends.

        A loop refers to its tasks weakly. One that waits for what only itself refers to, such as the answer of a
        stream on CPython 3.11, would be collected as garbage in the middle of its work.
        """
        if not task.done():
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return task

    def _begin(self) -> asyncio.AbstractEventLoop | None:
        """Enter the running state; None when there is nothing to run because `stop` came first."""
        if self._state is not _State.NEW:
            raise RuntimeError(f"cannot run the backend: it is {self._state.value}")
        _refuse_inside_another_loop()
        if self._stop_requested:
            self._state = _State.CLOSED
            for coro, _, _, _, handle in self._waiting:
                coro.close()
                handle.cancel()
            self._waiting.clear()
            return None
        loop = self._loop = self.new_event_loop()
        self._loop_class = f"{type(loop).__module__}.{type(loop).__qualname__}"
        self._thread_id = threading.get_ident()
        self._state = _State.RUNNING
        for waiting in self._waiting:
            loop.call_soon(self._start_waiting, *waiting, context=self._starting(waiting[1]))
        self._waiting.clear()
        return loop

    def _starting(self, priority: Priority) -> contextvars.Context | None:
        """The context in which a coroutine of that priority is started; None when none is needed."""
        if self.priority_variable is None:
            return None
        context = contextvars.Context()
        context.run(self.priority_variable.set, priority - Priority.NORMAL)
        return context

    def _start_waiting(
        self,
        coro: Coroutine[Any, Any, Any],
        priority: Priority,
        key: str | None,
        context: contextvars.Context,
        handle: ScheduledFuture,
    ) -> None:
        if handle.cancelled() or self._state is not _State.RUNNING:
            # Not running: it was accepted in the turn that stopped the loop, and its turn is the clean-up.
            coro.close()
            handle.cancel()
            return
        try:
            task = self._keep(self.start_task(coro, priority, key, context))
        except BaseException as error:
            coro.close()
            handle.fail(error)
            raise
        handle.follow(task)


def _refuse_inside_another_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("cannot run the backend: another event loop is running in this thread")


def _is_entered(context: contextvars.Context | None) -> bool:
    # An eager start enters the context now; one that is already entered, here the caller's own,
    # has to wait for the loop's next turn.
    if context is None:
        return False
    try:
        context.run(_nothing)
    except RuntimeError:
        return True
    return False


def _nothing() -> None:
    return None


def _finish(loop: asyncio.AbstractEventLoop) -> None:
    """What asyncio.Runner does at its end, except that tasks started by cancelled tasks end too."""
    try:
        for _ in range(CANCEL_ROUNDS_MAX):
            tasks = asyncio.all_tasks(loop)
            if not tasks:
                break
            loop.run_until_complete(_cancel(loop, tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def _cancel(loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            message = "a task failed while it was cancelled at the end of the loop"
            loop.call_exception_handler({"message": message, "exception": error, "task": task})
