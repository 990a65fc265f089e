"""The handle that a thread gets for a coroutine it scheduled on somebody else's loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
from typing import Any

logger = logging.getLogger("stellane.backend")


class ScheduledFuture(concurrent.futures.Future[Any]):
    """A `concurrent.futures.Future` that follows a task.

    Cancelling it cancels the task. An exception that nobody asked for with `result` or
    `exception` is logged when the handle is dropped, as asyncio does for its own tasks: the
    task's exception counts as retrieved once it has been copied here, so asyncio stays silent.
    """

    def __init__(self) -> None:
        super().__init__()
        self._exception_unseen = False

    def follow(self, task: asyncio.Task[Any]) -> None:
        """Take over the outcome of `task`. On the loop's thread."""
        loop = task.get_loop()

        def cancel_task(handle: concurrent.futures.Future[Any]) -> None:
            if handle.cancelled():
                with contextlib.suppress(RuntimeError):  # the loop is closed, and the task with it
                    loop.call_soon_threadsafe(task.cancel)

        task.add_done_callback(self._copy)
        self.add_done_callback(cancel_task)

    def fail(self, error: BaseException) -> None:
        """End with `error`, unless it was cancelled meanwhile."""
        if self.set_running_or_notify_cancel():
            self._exception_unseen = True
            self.set_exception(error)

    def result(self, timeout: float | None = None) -> Any:
        self._exception_unseen = False
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._exception_unseen = False
        return super().exception(timeout)

    def _copy(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self.cancel()
            self.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.fail(error)
        elif self.set_running_or_notify_cancel():
            self.set_result(task.result())

    def __del__(self) -> None:
        if self._exception_unseen:
            error = super().exception(timeout=0)
            logger.error("a scheduled coroutine failed and nobody asked for its outcome", exc_info=error)
