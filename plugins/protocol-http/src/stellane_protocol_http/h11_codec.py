"""The second codec: h11 behind the same interface, slower and mature; judge of the first."""

from __future__ import annotations

import re
from typing import Any

import h11

from stellane_protocol_http.codec import Codec

# h11 refuses an incomplete event above this; the limits of `head_rules` are lower and speak first.
_INCOMPLETE_EVENT_BYTES_MAX = 65_536
_LENIENT = re.compile(rb"(?<!\r)\n|\n[ \t]")
_LENGTH_LINES = re.compile(rb"(?i)\ncontent-length:([^\r]*)")


class H11Fields:
    """h11's headers with the lookups of `HeaderFields`; h11 keeps names lower case."""

    __slots__ = ("_fields",)

    def __init__(self, fields: list[tuple[bytes, bytes]]) -> None:
        self._fields = fields

    def __len__(self) -> int:
        return len(self._fields)

    def get(self, name: bytes, /) -> bytes | None:
        name = name.lower()
        return next((value for field, value in self._fields if field == name), None)

    def getall(self, name: bytes, /) -> list[bytes]:
        name = name.lower()
        return [value for field, value in self._fields if field == name]

    def to_list(self, *, lowercase_names: bool = False) -> list[tuple[bytes, bytes]]:  # noqa: ARG002 - they always are
        return list(self._fields)


class H11Request:
    """A `RequestHead` made of h11's request event."""

    __slots__ = ("end_stream", "expect_continue", "headers", "http_version", "method", "path", "query", "target")

    def __init__(self, event: h11.Request, *, end_stream: bool) -> None:
        self.method = event.method
        self.target = event.target
        self.path, _, self.query = event.target.partition(b"?")
        self.http_version = event.http_version
        self.headers = H11Fields([(bytes(name), bytes(value)) for name, value in event.headers])
        self.expect_continue = (
            any(value.strip().lower() == b"100-continue" for value in self.headers.getall(b"expect"))
            and self.http_version != b"1.0"
        )
        self.end_stream = end_stream


class H11Data:
    """A run of body bytes."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data


class H11Connection:
    """A `CodecConnection` over `h11.Connection`."""

    def __init__(self) -> None:
        self._connection = _new_connection()
        self._close = False
        self._raw_head = b""

    def receive_event(self, data: bytes, /) -> Any:
        self.receive_data(data)
        return self.next_event()

    def receive_data(self, data: bytes, /) -> None:
        if self._connection.their_state is h11.IDLE:
            self._raw_head += data
        self._connection.receive_data(data)

    def next_event(self) -> Any:
        connection = self._connection
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return self._request(event)
        if isinstance(event, h11.Data):
            return H11Data(bytes(event.data))
        if isinstance(event, h11.EndOfMessage):
            return event
        return h11.NEED_DATA

    def _request(self, event: h11.Request) -> H11Request:
        head, _, _ = self._raw_head.partition(b"\r\n\r\n")
        self._raw_head = b""
        if _LENIENT.search(head) is not None:
            # h11 takes a bare LF for a line end and unfolds folded lines; another server may not.
            raise h11.RemoteProtocolError("bare LF or folded line in the request head")
        lengths = _LENGTH_LINES.findall(head)
        if len(lengths) > 1 or (lengths and b"," in lengths[0]):
            # h11 makes one of several that are equal.
            raise h11.RemoteProtocolError("more than one Content-Length")
        # h11 announces the end of a bodyless request as an event of its own; it is already known here.
        end_stream = not _has_body(event)
        if end_stream:
            self._connection.next_event()
        request = H11Request(event, end_stream=end_stream)
        self._close = not _keeps_alive(request)
        return request

    def start_next_cycle(self) -> None:
        # A fresh parser with what the old one had left: h11 would want to see our response first,
        # which goes out beside it, and it never keeps an HTTP/1.0 connection.
        rest, _ = self._connection.trailing_data
        self._connection = _new_connection()
        self._raw_head = b""
        if rest:
            self.receive_data(rest)

    def should_close(self) -> bool:
        return self._close


def _new_connection() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=_INCOMPLETE_EVENT_BYTES_MAX)


def _has_body(event: h11.Request) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and int(value) > 0) for name, value in event.headers
    )


def _keeps_alive(request: H11Request) -> bool:
    """RFC 9112 section 9.3."""
    options = {
        option.strip().lower() for value in request.headers.getall(b"connection") for option in value.split(b",")
    }
    if b"close" in options:
        return False
    return request.http_version != b"1.0" or b"keep-alive" in options


H11 = Codec(
    name="h11",
    connect=H11Connection,
    request_type=H11Request,
    data_type=H11Data,
    end_type=h11.EndOfMessage,
    need_data=h11.NEED_DATA,
    remote_error=h11.RemoteProtocolError,
    too_large=lambda error: getattr(error, "error_status_hint", 400) == 431,
    line_bytes_max=_INCOMPLETE_EVENT_BYTES_MAX,
    fields_max=_INCOMPLETE_EVENT_BYTES_MAX,
)
