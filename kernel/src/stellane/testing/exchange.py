"""An exchange without a connection: a request made in memory, its answer kept to be looked at.

It holds to the same rules as one that comes from a socket, so what passes here does there.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus

from stellane.abc import Exchange
from stellane.abc.protocol import Address, Headers
from stellane.errors import BodyTooLarge, ClientDisconnected, LocalProtocolError

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BODYLESS = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class MemoryExchange(Exchange):
    """One request, and the place for its answer.

    `target` is path and query as they come on the wire. `body` is one part, or the parts in which
    it arrives; with `more_body` further ones come through `feed`, up to `feed_end`. A body of
    more than `body_bytes_max` bytes raises BodyTooLarge when it is read; 0 means no limit.

    After it has been handled: `status`, `response_headers`, `response_body` (what a client would
    have received), `aborted`, and `parts_sent`, the body as it was handed over.
    """

    def __init__(
        self,
        method: str = "GET",
        target: str | bytes = "/",
        headers: Iterable[tuple[bytes, bytes]] = (),
        body: bytes | Iterable[bytes] = b"",
        *,
        more_body: bool = False,
        body_bytes_max: int = 0,
        http_version: str = "1.1",
        scheme: str = "http",
        client: Address = ("127.0.0.1", 49152),
        server: Address = ("127.0.0.1", 8000),
    ) -> None:
        self.method = method
        self.target = target.encode("ascii") if isinstance(target, str) else target
        self.path, _, self.query = self.target.partition(b"?")
        self.http_version = http_version
        self.scheme = scheme
        self.client = client
        self.server = server
        self.headers = [(name.lower(), value) for name, value in headers]
        self.response_started = False
        self.response_ended = False
        self.status = 0
        self.response_headers: list[tuple[bytes, bytes]] = []
        self.response_body = b""
        self.parts_sent: list[bytes] = []
        self.aborted = False
        self._parts = deque(part for part in ([body] if isinstance(body, bytes) else body) if part)
        self._body_complete = not more_body
        self._body_bytes_max = body_bytes_max
        self._body_bytes = 0
        self._length: int | None = None
        self._sent_bytes = 0
        self._gone = False
        self._changed = asyncio.Event()

    # --- The client's side ------------------------------------------------------------------------

    def feed(self, part: bytes) -> None:
        """The next part of the body arrives."""
        self._parts.append(part)
        self._changed.set()

    def feed_end(self) -> None:
        """The body is complete."""
        self._body_complete = True
        self._changed.set()

    def disconnect(self) -> None:
        """The client goes away."""
        self._gone = True
        self._changed.set()

    # --- The request ------------------------------------------------------------------------------

    def header(self, name: bytes) -> bytes | None:
        return next((value for field, value in self.headers if field == name), None)

    async def receive(self) -> bytes:
        while not self._parts:
            if self._body_complete:
                return b""
            if self._gone:
                raise ClientDisconnected("the client went away before the request body was complete")
            if self.response_ended:
                raise LocalProtocolError("the request body cannot be read after the response has ended")
            await self._wait_changed()
        part = self._parts.popleft()
        self._body_bytes += len(part)
        if self._body_bytes_max and self._body_bytes > self._body_bytes_max:
            self._parts.appendleft(part)
            self._body_bytes -= len(part)
            raise BodyTooLarge(self._body_bytes_max)
        return part

    # --- The response -----------------------------------------------------------------------------

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        fields = self._checked(status, headers)
        length = _content_length(fields)
        bodyless = self.method == "HEAD" or status in _BODYLESS
        if body and status in _BODYLESS:
            raise LocalProtocolError(f"status {status} has no body (RFC 9110 section 6.4.1)")
        if length is not None and length != len(body) and not bodyless:
            raise LocalProtocolError(f"Content-Length is {length} but the body has {len(body)} bytes")
        if length is None and status not in _BODYLESS and (body or not bodyless):
            fields.append((b"content-length", b"%d" % len(body)))
        self._begin(status, fields)
        self.parts_sent.append(body)
        self.response_body = b"" if bodyless else body
        self._finish()

    def start(self, status: int, headers: Headers) -> None:
        fields = self._checked(status, headers)
        self._length = _content_length(fields)
        self._begin(status, fields)

    async def send(self, data: bytes) -> None:
        if not self.response_started:
            raise LocalProtocolError("send before start: the response has no head yet")
        if self.response_ended:
            raise LocalProtocolError("send after end: the response is complete")
        if self._gone:
            raise ClientDisconnected("the client went away before the response was complete")
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a part of the response body is bytes, not {type(data).__name__}")
        self.parts_sent.append(bytes(data))
        if self._bodyless:
            return
        self._sent_bytes += len(data)
        if self._length is not None and self._sent_bytes > self._length:
            raise LocalProtocolError(f"more than Content-Length = {self._length} bytes of body")
        self.response_body += data

    async def end(self) -> None:
        if not self.response_started:
            raise LocalProtocolError("end before start: the response has no head yet")
        if self.response_ended:
            return
        if self._length is not None and not self._bodyless and self._sent_bytes != self._length:
            raise LocalProtocolError(f"the body ended at {self._sent_bytes} of Content-Length = {self._length} bytes")
        self._finish()

    @property
    def unsent(self) -> bool:
        return False

    async def flushed(self) -> bool:
        return not self._gone

    async def wait_disconnected(self) -> None:
        while not (self._gone or self.response_ended):
            await self._wait_changed()

    @property
    def disconnected(self) -> bool:
        return self._gone

    def abort(self) -> None:
        self.aborted = True
        self.response_started = True
        self._finish()

    # --- What both sides need -----------------------------------------------------------------------

    @property
    def _bodyless(self) -> bool:
        return self.method == "HEAD" or self.status in _BODYLESS

    def _checked(self, status: int, headers: Headers) -> list[tuple[bytes, bytes]]:
        """The fields of a response that may be started now. Raises LocalProtocolError."""
        if self.response_started:
            raise LocalProtocolError("a response was already started for this request")
        if not 200 <= status <= 599:
            raise LocalProtocolError(f"status {status}: a response has one of 200 to 599")
        fields = []
        for name, value in headers:
            if not isinstance(name, bytes) or _TOKEN.fullmatch(name) is None:
                raise LocalProtocolError(f"{name!r} is not a header field name (bytes, RFC 9110 section 5.1)")
            if not isinstance(value, bytes) or any(byte in value for byte in b"\r\n\0"):
                raise LocalProtocolError(f"response header field {name!r} is not bytes, or has CR, LF or NUL in it")
            fields.append((name.lower(), value))
        return fields

    def _begin(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        self.response_started = True
        self.status = status
        self.response_headers = fields

    def _finish(self) -> None:
        self.response_ended = True
        self._changed.set()

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _content_length(fields: list[tuple[bytes, bytes]]) -> int | None:
    lengths = {value for name, value in fields if name == b"content-length"}
    if len(lengths) > 1 or not all(value.isdigit() for value in lengths):
        raise LocalProtocolError(f"Content-Length {b', '.join(sorted(lengths))!r} is not one number")
    return int(lengths.pop()) if lengths else None
