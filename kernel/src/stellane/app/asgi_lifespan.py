"""The ASGI lifespan protocol (https://asgi.readthedocs.io/en/latest/specs/lifespan.html)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stellane.errors import StellaneError
from stellane.logging import get_logger

if TYPE_CHECKING:
    from stellane.app.asgi import ASGIApp, Message

END_TIMEOUT_S = 1.0
"""How long the app's lifespan coroutine has to return after its last answer, seconds; then it is cancelled."""

_log = get_logger("stellane.asgi")


class LifespanError(StellaneError):
    """The app's start-up or shutdown failed, and it said so."""


class Lifespan:
    """One app's lifespan in one worker. `state` is what it shares with its requests, or None
    for an app that does not speak the protocol."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, Any] | None = None
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[str] | None = None
        """The app's next answer: "" for complete, else the message of failed."""
        self._phase = ""

    async def startup(self) -> None:
        """Run the app's start-up. An app without lifespan goes on without; raises LifespanError."""
        self.state = {}
        self._task = asyncio.create_task(self._run(self.state), name="asgi lifespan")
        try:
            failure = await self._ask("startup")
        except BaseException:
            self._task.cancel()
            self.state = None
            raise
        if failure is None:
            self.state = None
            self._log_without()
        elif failure:
            self.state = None
            await self._end_task()
            raise LifespanError(f"the ASGI app's lifespan start-up failed: {failure}")

    def _log_without(self) -> None:
        """The app raised or returned instead of answering, which is how it says that it has no lifespan."""
        assert self._task is not None
        error = None if self._task.cancelled() else self._task.exception()
        if error is not None and self._messages.empty():
            # It took the event first, so that this may well be a start-up that failed.
            _log.warning("the ASGI app raised in its lifespan start-up and goes on without", exc_info=error)
        else:
            _log.debug("the ASGI app has no lifespan", error=repr(error))

    async def shutdown(self) -> None:
        """Run the app's shutdown, if its start-up ran. Raises LifespanError when it fails."""
        task = self._task
        if task is None or self.state is None:
            return
        failure: str | None = None
        if not task.done():
            failure = await self._ask("shutdown")
        await self._end_task()
        if failure:
            raise LifespanError(f"the ASGI app's lifespan shutdown failed: {failure}")
        if failure is None and not task.cancelled() and (error := task.exception()) is not None:
            raise LifespanError(f"the ASGI app's lifespan ended with {error!r}") from error

    async def _ask(self, phase: str) -> str | None:
        """Send the app an event; its answer, or None when it ended without one."""
        assert self._task is not None
        self._phase = phase
        self._answer = asyncio.get_running_loop().create_future()
        self._messages.put_nowait({"type": f"lifespan.{phase}"})
        waiting: set[asyncio.Future[Any]] = {self._answer, self._task}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return self._answer.result() if self._answer.done() else None

    async def _end_task(self) -> None:
        """Let the app's coroutine return, or cancel it."""
        assert self._task is not None
        if not self._task.done():
            await asyncio.wait([self._task], timeout=END_TIMEOUT_S)
            self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, state: dict[str, Any]) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
        await self._app(scope, self._messages.get, self._send)

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if self._answer is None or self._answer.done():
            raise RuntimeError(f"ASGI: {kind!r} was sent in the lifespan scope and nothing had been asked")
        if kind == f"lifespan.{self._phase}.complete":
            self._answer.set_result("")
        elif kind == f"lifespan.{self._phase}.failed":
            self._answer.set_result(message.get("message", "") or "it gave no message")
        else:
            raise RuntimeError(f"ASGI: {kind!r} cannot answer lifespan.{self._phase}")
