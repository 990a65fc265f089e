"""Any ASGI 3 application, unchanged, over exchanges.

https://asgi.readthedocs.io/en/latest/specs/www.html, spec_version 2.4. The usual response, a
start and one whole body, leaves as one piece: the start is held until the first body message
says whether there is more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from stellane.abc import Exchange
from stellane.app.asgi_lifespan import Lifespan
from stellane.errors import BodyTooLarge, ClientDisconnected, LocalProtocolError, RemoteProtocolError
from stellane.logging import get_logger
from stellane.recovery.context import Attempt, RecoveryContext
from stellane.runtime.application import Application

if TYPE_CHECKING:
    from stellane.config import Config

Message = MutableMapping[str, Any]
Scope = dict[str, Any]
ASGIApp = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_TEXT = ((b"content-type", b"text/plain; charset=utf-8"),)
_TEXT_CLOSE = (*_TEXT, (b"connection", b"close"))
_BODYLESS = (204, 304)
_log = get_logger("stellane.asgi")


class ASGIDisconnectedError(ClientDisconnected, OSError):
    """`send` after the client went away: an OSError, as ASGI asks since 2.4."""


class ASGIApplication(Application):
    """Runs one ASGI 3 app."""

    kind = "asgi"

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._lifespan = Lifespan(app)
        self._root_path = ""
        self._raw_root_path = b""
        self._timeout_s: float | None = None

    def configure(self, config: Config) -> None:
        self._root_path = config.http.root_path
        self._raw_root_path = config.http.root_path.encode()
        self._timeout_s = config.limits.request_timeout_s or None

    async def startup(self) -> None:
        await self._lifespan.startup()

    async def shutdown(self) -> None:
        await self._lifespan.shutdown()

    async def handle(self, exchange: Exchange) -> None:
        # The hot path: whatever a plain request does not need is done in another method.
        cycle = ASGICycle(exchange)
        try:
            if self._timeout_s is None:
                await self._app(self._scope(exchange), cycle.receive, cycle.send)
            else:
                await self._run_in_time(exchange, cycle, self._timeout_s)
            if not exchange.response_ended:
                cycle.check_finished()
        except Exception as error:
            self._failed(cycle, error)
        except BaseException:
            # Cancelled, or worse: nobody will answer any more, and the client should know.
            if not exchange.response_ended:
                exchange.abort()
            raise

    def _scope(self, exchange: Exchange) -> Scope:
        raw_path = exchange.path
        if b"%" in raw_path or not raw_path.isascii():
            path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
        else:
            path = raw_path.decode()
        server = exchange.server
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": exchange.http_version,
            "method": exchange.method,
            "scheme": exchange.scheme,
            "path": path,
            "raw_path": raw_path,
            "query_string": exchange.query,
            "root_path": "",
            "headers": exchange.headers,
            "client": exchange.client,
            "server": server,
            "extensions": {},
        }
        if self._root_path:
            scope["path"] = self._root_path + path
            scope["raw_path"] = self._raw_root_path + raw_path
            scope["root_path"] = self._root_path
        if server is not None and not server[1]:
            scope["server"] = (server[0], None)  # a unix socket has no port, says the specification
        state = self._lifespan.state
        if state is not None:
            scope["state"] = state.copy()
        return scope

    async def _run_in_time(self, exchange: Exchange, cycle: ASGICycle, timeout_s: float) -> None:
        scope = asyncio.timeout(timeout_s)
        # Only the answer has a deadline; what the app does after it may take its time.
        cycle.on_end = lambda: None if scope.expired() else scope.reschedule(None)
        try:
            async with scope:
                await self._app(self._scope(exchange), cycle.receive, cycle.send)
        except TimeoutError:
            if not scope.expired():
                raise
            _log.warning("request timed out", method=exchange.method, path=_shown(exchange), timeout_s=timeout_s)
            if exchange.response_ended:
                return
            if exchange.response_started:
                exchange.abort()
            else:
                exchange.respond(504, _TEXT, b"Gateway Timeout")

    def _failed(self, cycle: ASGICycle, error: Exception) -> None:
        """Answer a request whose app raised, or log what it did after its response."""
        exchange = cycle.exchange
        ended = exchange.response_ended
        if isinstance(error, ClientDisconnected) or cycle.cut:
            # Frameworks have an error of their own for a client that went, which says no more.
            _log.debug("client went away", method=exchange.method, path=_shown(exchange), error=repr(error))
            if not ended:
                exchange.abort()
            return
        what = "ASGI app raised after its response" if ended else "ASGI app raised"
        _log.error(what, method=exchange.method, path=_shown(exchange), exc_info=error)
        if ended:
            return
        if exchange.response_started:
            exchange.abort()
        else:
            exchange.respond(500, _TEXT, b"Internal Server Error")

    # --- After a crash ------------------------------------------------------------------------------

    async def recover(self, exchange: Exchange, recovery: RecoveryContext) -> None:  # noqa: ARG002 - ASGI has no place for it
        cycle = ASGICycle(exchange)
        try:
            await self._app(self._scope(exchange), cycle.receive, cycle.send)
        except Exception as error:
            if not exchange.response_ended or cycle.status >= 500:
                raise
            # The request has its answer; running it again for its background work would repeat its effects.
            self._failed(cycle, error)
        else:
            if not exchange.response_ended:
                cycle.check_finished()

    async def dead_letter(self, exchange: Exchange, attempts: list[Attempt]) -> None:
        """ASGI has no message for it; the journal shows it."""

    def journal_wish(self, method: str, path: bytes) -> bool | None:  # noqa: ARG002 - the routes are the app's own
        return None

    def has_recovery_hook(self, method: str, path: bytes) -> bool:  # noqa: ARG002 - ASGI has none
        return False


class ASGICycle:
    """`receive` and `send` of one request."""

    __slots__ = ("_body_over", "_headers", "cut", "exchange", "on_end", "status")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.status = 0
        """The response's status; 0 before http.response.start."""
        self.cut = False
        """The request body could not be read to its end, and the client has been answered or is gone."""
        self.on_end: Callable[[], None] | None = None
        self._headers: Any = ()
        self._body_over = False

    async def receive(self) -> Message:
        """The next part of the body, then http.disconnect when the client goes or has its answer."""
        exchange = self.exchange
        if self._body_over or exchange.response_ended:
            await exchange.wait_disconnected()
            return {"type": "http.disconnect"}
        try:
            part = await exchange.receive()
        except ClientDisconnected:
            self._cut_off()
            return {"type": "http.disconnect"}
        except (BodyTooLarge, RemoteProtocolError) as error:
            # Answered here, because no app knows these errors and would make a 500 of them.
            self._refuse(error)
            return {"type": "http.disconnect"}
        except LocalProtocolError:
            # Another task of the app ended the response while this one waited for the body.
            if not exchange.response_ended:
                raise
            return {"type": "http.disconnect"}
        if part:
            return {"type": "http.request", "body": part, "more_body": True}
        self._body_over = True
        return {"type": "http.request", "body": b"", "more_body": False}

    def _refuse(self, error: BodyTooLarge | RemoteProtocolError) -> None:
        exchange = self.exchange
        if exchange.response_started:
            exchange.abort()
        else:
            status = 413 if isinstance(error, BodyTooLarge) else error.status
            exchange.respond(status, _TEXT_CLOSE, str(error).encode())
        self._cut_off()

    def _cut_off(self) -> None:
        self._body_over = self.cut = True

    async def send(self, message: Message) -> None:
        """Take one message of the response.

        Raises RuntimeError for a message that is out of order, LocalProtocolError for a response
        that cannot become valid HTTP, and an OSError once the client has gone.
        """
        kind = message["type"]
        if kind == "http.response.body":
            if not self.status:
                raise RuntimeError("ASGI: http.response.body was sent before http.response.start")
            await self._body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            if self.status:
                raise RuntimeError("ASGI: http.response.start was sent twice")
            status = message["status"]
            if not (isinstance(status, int) and 200 <= status <= 599):
                raise RuntimeError(f"ASGI: status {status!r} in http.response.start: a response has one of 200 to 599")
            headers = message.get("headers", ())
            self.status = status
            self._headers = headers if type(headers) is list or type(headers) is tuple else tuple(headers)
        else:
            raise RuntimeError(
                f"ASGI: {kind!r} cannot be sent in an http scope; "
                "http.response.start and http.response.body can, and no extension is offered"
            )

    async def _body(self, body: bytes, more: bool) -> None:
        exchange = self.exchange
        if self.cut:
            raise ASGIDisconnectedError("the request was cut off before its response")
        if type(body) is not bytes:
            body = _as_bytes(body)
        if not exchange.response_started:
            if not more:
                # A body that its status does not allow is dropped, as other servers do.
                exchange.respond(self.status, self._headers, b"" if self.status in _BODYLESS else body)
                if self.on_end is not None:
                    self.on_end()
                return
            exchange.start(self.status, self._headers)
        elif exchange.response_ended:
            if exchange.disconnected:
                raise ASGIDisconnectedError("the client went away before the response was complete")
            raise RuntimeError("ASGI: http.response.body was sent after the response was complete")
        try:
            if body or more:
                await exchange.send(body)
            if not more:
                await exchange.end()
        except ClientDisconnected as error:
            raise ASGIDisconnectedError(str(error)) from None
        if not more and self.on_end is not None:
            self.on_end()

    def check_finished(self) -> None:
        """The app has returned and the response is not complete: raise RuntimeError unless the client has gone."""
        if self.exchange.disconnected:
            raise ClientDisconnected("the client went away before the response was complete")
        if not self.status:
            raise RuntimeError("ASGI: the app returned without a response")
        raise RuntimeError("ASGI: the app returned before its response was complete")


def _as_bytes(body: Any) -> bytes:
    if isinstance(body, (bytes, bytearray, memoryview)):
        return bytes(body)
    raise RuntimeError(f"ASGI: body in http.response.body is {type(body).__name__}; it must be bytes")


def _shown(exchange: Exchange) -> str:
    return exchange.path.decode("utf-8", "backslashreplace")
