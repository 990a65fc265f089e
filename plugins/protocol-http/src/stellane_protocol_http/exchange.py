"""One HTTP/1.1 request and its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from stellane.abc import Exchange
from stellane.abc.protocol import Address, Headers
from stellane.errors import BodyTooLarge, ClientDisconnected, LocalProtocolError, RemoteProtocolError
from stellane_protocol_http.bounds import JOINED_BODY_BYTES_MAX
from stellane_protocol_http.usual_request import UsualExchange

if TYPE_CHECKING:
    pass

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class H1Exchange(UsualExchange, Exchange):
    """The exchange in hand on one connection. It keeps working, harmlessly, after its end."""

    # Class-level defaults instead of assignments: most requests need none of these.
    http_version = "1.1"
    body_bytes = 0
    _parts: deque[bytes] | None = None
    _buffered_bytes = 0
    _error: Exception | None = None
    _wake: asyncio.Future[None] | None = None
    _gone: asyncio.Future[None] | None = None
    _expects_continue = False
    _held_head: bytes | None = None
    _length: int | None = None
    _sent_bytes = 0
    _chunked = False
    _bodyless = False
    _query: bytes | None = None

    # --- request ------------------------------------------------------------------------------

    def set_target(self, path: bytes, query: bytes) -> None:
        """Use another path and query than the target's own, which has the absolute or asterisk form."""
        self.path = path
        self._query = query

    @property
    def target(self) -> bytes:  # type: ignore[override]
        return self.head.target

    @property
    def query(self) -> bytes:  # type: ignore[override]
        return self.head.query if self._query is None else self._query

    @property
    def scheme(self) -> str:  # type: ignore[override]
        return self.connection.scheme

    @property
    def client(self) -> Address:  # type: ignore[override]
        return self.connection.client

    @property
    def server(self) -> Address:  # type: ignore[override]
        return self.connection.server

    def header(self, name: bytes) -> bytes | None:
        return self.head.headers.get(name)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override]
        return self.head.headers.to_list(lowercase_names=True)

    def expect_body(self, *, expects_continue: bool) -> None:
        """A body follows. The connection feeds it through `feed` and `feed_end`."""
        self.body_complete = self.simple = False
        self._parts = deque()
        if expects_continue:
            self._expects_continue = True
            self.plain = False

    def feed(self, data: bytes) -> int:
        """Take a part of the body from the connection; returns how many bytes now wait here."""
        self._expects_continue = False
        self.body_bytes += len(data)
        if self._error is None and self._parts is not None and not self.response_ended:
            self._parts.append(data)
            self._buffered_bytes += len(data)
            self._wake_reader()
        return self._buffered_bytes

    def feed_end(self) -> None:
        """The body is whole."""
        self.body_complete = True
        self.simple = not self.watched
        self._wake_reader()

    def fail(self, error: Exception) -> None:
        """The body will never be whole: `receive` raises `error` from now on."""
        if self._error is None:
            self._error = error
        self._parts = None
        self._buffered_bytes = 0
        self._wake_reader()

    def peer_gone(self) -> None:
        """The client has closed its side, or the connection is lost."""
        if not self.body_complete:
            self.fail(ClientDisconnected("the client went away before the request body was complete"))
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    async def receive(self) -> bytes:
        while True:
            if self._error is not None:
                raise self._error
            if self._parts:
                data = self._parts.popleft()
                self._buffered_bytes -= len(data)
                self.connection.body_taken(self, self._buffered_bytes)
                return data
            if self.body_complete:
                return b""
            if self.response_ended:
                raise LocalProtocolError("the request body cannot be read after the response has ended")
            if self._expects_continue:
                self._expects_continue = False
                self.connection.write(_CONTINUE)
            if self._wake is None or self._wake.done():
                self._wake = self.connection.loop.create_future()
            await self._wake

    def _wake_reader(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # --- response -----------------------------------------------------------------------------

    def respond_unusually(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response that ends the connection, answers HEAD, is long, or has a head of its own."""
        connection = self.connection
        head, body = self._whole_head(status, headers, body)
        self.response_started = self.response_ended = True
        if len(body) <= JOINED_BODY_BYTES_MAX:
            connection.write(head + body)
        else:
            connection.write(head)
            connection.write(body)
        connection.exchange_ended(self)

    def _whole_head(self, status: int, headers: Headers, body: bytes) -> tuple[bytes, bytes]:
        """The head of a complete response in the cases that are not the usual one, and its body."""
        writer = self.connection.head_writer
        if self.method == "HEAD":
            head, _, close = writer.head(status, headers, len(body) if body else None)
            return self._connection_field(head, close), b""
        if body and status in (204, 304):
            raise LocalProtocolError(f"status {status} has no body (RFC 9110 section 6.4.1)")
        head, _, close = writer.head(status, headers, len(body))
        return self._connection_field(head, close), body

    def _connection_field(self, head: bytes, close: bool) -> bytes:
        """Finish a head with the Connection field it needs (RFC 9112 section 9.3)."""
        if close or self._expects_continue or not self.keep_alive or not self.connection.keeps_alive:
            # While the client waits for 100 Continue, its next bytes could be the body or a request.
            self.keep_alive = False
            return head + b"connection: close\r\n\r\n"
        if self.http_version == "1.0":
            return head + b"connection: keep-alive\r\n\r\n"
        return head + b"\r\n"

    def start(self, status: int, headers: Headers) -> None:
        if self.response_started:
            raise LocalProtocolError("a response was already started for this request")
        connection = self.connection
        head, length, close = connection.head_writer.head(status, headers, None)
        self._bodyless = self.method == "HEAD" or status in (204, 304)
        if length is None and not self._bodyless:
            if self.http_version == "1.0":
                close = True  # the end of the connection is the only end such a body can have
            else:
                self._chunked = True
                head += b"transfer-encoding: chunked\r\n"
        head = self._connection_field(head, close)
        self.response_started = True
        self._length = length
        # The head waits for the first bytes of the body, so that both leave in one packet.
        self._held_head = head

    async def send(self, data: bytes) -> None:
        if not self.response_started:
            raise LocalProtocolError("send before start: the response has no head yet")
        if self.response_ended:
            raise LocalProtocolError("send after end: the response is complete")
        connection = self.connection
        if connection.lost:
            raise ClientDisconnected("the client went away before the response was complete")
        if not self._bodyless and data:
            self._sent_bytes += len(data)
            if self._length is not None and self._sent_bytes > self._length:
                raise LocalProtocolError(f"more than Content-Length = {self._length} bytes of body")
            if self._chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            held, self._held_head = self._held_head, None
            connection.write(held + data if held is not None else data)
        elif self._held_head is not None and not data:
            held, self._held_head = self._held_head, None
            connection.write(held)
        await connection.wait_writable()

    async def end(self) -> None:
        if not self.response_started:
            raise LocalProtocolError("end before start: the response has no head yet")
        if self.response_ended:
            return
        if self._length is not None and not self._bodyless and self._sent_bytes != self._length:
            raise LocalProtocolError(f"the body ended at {self._sent_bytes} of Content-Length = {self._length} bytes")
        self.response_ended = True
        connection = self.connection
        tail = self._held_head or b""
        self._held_head = None
        if self._chunked:
            tail += b"0\r\n\r\n"
        if tail:
            connection.write(tail)
        connection.exchange_ended(self)

    @property
    def unsent(self) -> bool:
        return self.connection.unsent

    async def flushed(self) -> bool:
        return await self.connection.wait_flushed()

    async def wait_disconnected(self) -> None:
        if self.response_ended or self.disconnected:
            return
        if self._gone is None:
            self._gone = self.connection.loop.create_future()
            self.watched = True
            self.simple = False
        await asyncio.shield(self._gone)

    def response_over(self) -> None:
        """Called by the connection once the response has ended: whoever waits for the client is told."""
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if not self.body_complete:
            self._wake_reader()

    @property
    def disconnected(self) -> bool:
        return self.connection.lost or (self.connection.peer_closed and not self.response_ended)

    @property
    def gone(self) -> bool:
        return self.connection.lost

    def abort(self) -> None:
        self.response_started = self.response_ended = True
        self.connection.abort()


def body_too_large(limit_bytes: int) -> Exception:
    """The error `receive` raises once a body passes the limit."""
    return BodyTooLarge(limit_bytes)


def body_timed_out(timeout_s: float) -> Exception:
    """The error `receive` raises when the client stops sending."""
    return RemoteProtocolError(f"no part of the request body arrived for http.body_timeout_s = {timeout_s} s", 408)
