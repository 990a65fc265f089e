"""Two exchanges the protocol never sees: a live one that is journaled, and one read from the journal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stellane.abc import Exchange
from stellane.abc.protocol import Fields, Headers
from stellane.errors import BodyNotJournaled, LocalProtocolError

if TYPE_CHECKING:
    from stellane.recovery.journal import LedgerEntry
    from stellane.recovery.payload import JournaledRequest
    from stellane.recovery.recorder import Recorder

CAPTURED_BODY_BYTES_MAX = 1_048_576
"""How much of a replayed request's response body is kept, bytes; the rest is only counted."""


class JournaledExchange(Exchange):
    """A live exchange whose request is on record.

    The body is already here; the response goes through to the client, after a RESP record: a
    request without one has shown its client nothing.
    """

    def __init__(
        self, inner: Exchange, recorder: Recorder, entry: LedgerEntry, headers: list[tuple[bytes, bytes]], body: bytes
    ) -> None:
        self.inner = inner
        self.entry = entry
        self.status = 0
        self.error: str | None = None
        self.completed = False
        self._recorder = recorder
        self._body = body
        self.headers = headers
        self.method = inner.method
        self.target = inner.target
        self.path = inner.path
        self.query = inner.query
        self.http_version = inner.http_version
        self.scheme = inner.scheme
        self.client = inner.client
        self.server = inner.server
        self.journal_request_id = entry.request.request_id
        self.journal_traceparent = entry.request.traceparent

    @property
    def response_started(self) -> bool:  # type: ignore[override]
        return self.inner.response_started

    @property
    def response_ended(self) -> bool:  # type: ignore[override]
        return self.inner.response_ended

    def header(self, name: bytes) -> bytes | None:
        return _first(self.headers, name)

    async def receive(self) -> bytes:
        if self._body:
            body, self._body = self._body, b""
            return body
        # Nothing more when the body was journaled whole; the rest of it when it was too large.
        return await self.inner.receive()

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        self._responding(status)
        self.inner.respond(status, headers, body)
        self.completed = True

    def respond_with_ids(self, status: int, headers: Headers, body: bytes, ids: Fields) -> None:
        self._responding(status)
        self.inner.respond_with_ids(status, headers, body, ids)
        self.completed = True

    def start(self, status: int, headers: Headers) -> None:
        self._responding(status)
        self.inner.start(status, headers)

    def _responding(self, status: int) -> None:
        if not self.inner.response_started:
            self.status = status
            self._recorder.responding(self.entry, status)

    async def send(self, data: bytes) -> None:
        await self.inner.send(data)

    async def end(self) -> None:
        await self.inner.end()
        self.completed = True

    @property
    def succeeded(self) -> bool:
        """Whether a whole answer went out that tells of no failure of the server."""
        return self.completed and self.status < 500

    def handler_returned(self) -> None:
        """The application is through with this request, its background work included."""
        self._recorder.finished(self)

    def handler_raised(self, error: BaseException) -> None:
        """The application let an error out instead of answering it."""
        self.error = f"{type(error).__name__}: {error}"
        self._recorder.finished(self)

    @property
    def unsent(self) -> bool:
        return self.inner.unsent

    async def flushed(self) -> bool:
        return await self.inner.flushed()

    async def wait_disconnected(self) -> None:
        await self.inner.wait_disconnected()

    @property
    def disconnected(self) -> bool:
        return self.inner.disconnected

    def abort(self) -> None:
        self.inner.abort()


class ReplayExchange(Exchange):
    """A request read from the journal. There is no client: the response is captured.

    It obeys the same rules as a live one, so a handler cannot get away with less.
    """

    def __init__(self, request: JournaledRequest) -> None:
        self._request = request
        self._body = request.body
        self._length: int | None = None
        self._ended = asyncio.Event()
        self.method = request.method
        self.target = request.target
        self.path, self.query = request.path_and_query
        self.http_version = request.http_version
        self.scheme = request.scheme
        self.client = request.client
        self.server = request.server
        self.headers = list(request.headers)
        self.journal_request_id = request.request_id
        self.response_started = False
        self.response_ended = False
        self.aborted = False
        self.status = 0
        self.response_headers: list[tuple[bytes, bytes]] = []
        self.response_body = b""
        self.response_bytes = 0

    def header(self, name: bytes) -> bytes | None:
        return _first(self.headers, name)

    async def receive(self) -> bytes:
        if self._request.body_omitted:
            raise BodyNotJournaled(
                f"the body of {self._request.body_bytes} bytes was over recovery.body_bytes_max and was not journaled"
            )
        body, self._body = self._body, b""
        return body

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        if body and status in (204, 304):
            raise LocalProtocolError(f"status {status} has no body (RFC 9110 section 6.4.1)")
        self.start(status, headers)
        if self.method != "HEAD":
            self._check_length(len(body), final=True)
        self._keep(body)
        self._end()

    def start(self, status: int, headers: Headers) -> None:
        if self.response_started:
            raise LocalProtocolError("a response was already started for this request")
        if not 200 <= status <= 599:
            raise LocalProtocolError(f"status {status}: a response has one of 200 to 599")
        fields = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        for name, value in fields:
            if any(byte in value for byte in b"\r\n\0"):
                raise LocalProtocolError(f"response header field {name!r} has CR, LF or NUL in it")
        length = _first(fields, b"content-length")
        if length is not None and not length.isdigit():
            raise LocalProtocolError(f"Content-Length {length!r} is not a number")
        self._length = None if length is None else int(length)
        self.response_started = True
        self.status = status
        self.response_headers = fields

    async def send(self, data: bytes) -> None:
        if not self.response_started:
            raise LocalProtocolError("send before start: the response has no head yet")
        if self.response_ended:
            raise LocalProtocolError("send after end: the response is complete")
        if self.method != "HEAD":
            self._check_length(self.response_bytes + len(data), final=False)
        self._keep(data)

    async def end(self) -> None:
        if not self.response_started:
            raise LocalProtocolError("end before start: the response has no head yet")
        if not self.response_ended:
            if self.method != "HEAD":
                self._check_length(self.response_bytes, final=True)
            self._end()

    def _keep(self, data: bytes) -> None:
        self.response_bytes += len(data)
        room = CAPTURED_BODY_BYTES_MAX - len(self.response_body)
        if room > 0:
            self.response_body += data[:room]

    def _check_length(self, body_bytes: int, *, final: bool) -> None:
        if self._length is None or self.status in (204, 304):
            return
        if body_bytes > self._length or (final and body_bytes != self._length):
            raise LocalProtocolError(f"Content-Length is {self._length} but the body has {body_bytes} bytes")

    def _end(self) -> None:
        self.response_ended = True
        self._ended.set()

    @property
    def unsent(self) -> bool:
        return False

    async def flushed(self) -> bool:
        return False

    async def wait_disconnected(self) -> None:
        await self._ended.wait()

    @property
    def disconnected(self) -> bool:
        """False until the answer is complete: a handler that stops when nobody listens must not
        stop here, where the work itself is wanted."""
        return False

    def abort(self) -> None:
        self.aborted = True
        self.response_started = True
        self._end()


def _first(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    for field, value in headers:
        if field == name:
            return value
    return None
