"""Response heads: the one place that writes a status line and header fields."""

from __future__ import annotations

import re
from email.utils import formatdate
from http import HTTPStatus
from time import time

from stellane.abc.protocol import Fields, Headers
from stellane.errors import LocalProtocolError
from stellane_protocol_http.usual_request import FinishedHeads

_PLAIN, _LENGTH, _CODING, _CONNECTION, _DATE, _SERVER = range(6)
_MEANING = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"connection": _CONNECTION,
    b"date": _DATE,
    b"server": _SERVER,
}
_NAMES_MAX = 4096
_HEADS_MAX = 1024
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DIGITS = re.compile(rb"[0-9]{1,18}")


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %s\r\n" % (status, phrase.encode("ascii"))


def _joined(parts: list[bytes], lines: int) -> bytes:
    try:
        joined = b"".join(parts)
    except TypeError as error:
        raise LocalProtocolError(f"a response header value is not bytes: {error}") from None
    # One count each instead of a check of every value: CR or LF in a value would add a line.
    if joined.count(b"\n") != lines or joined.count(b"\r") != lines or b"\0" in joined:
        raise LocalProtocolError("a response header field has CR, LF or NUL in it")
    return joined


_STATUS_LINES = {status: _status_line(status) for status in range(200, 600)}


class HeadWriter(FinishedHeads):
    """Serialises response heads for one worker, with the Date field kept for a second."""

    def __init__(self, *, server: str, date: bool) -> None:
        super().__init__()
        self._server = f"server: {server}\r\n".encode("latin-1") if server else b""
        if self._server.count(b"\n") > 1:
            raise LocalProtocolError("http.server_header must be one line")
        self._date = date
        self._stamp = b""
        self._names: dict[bytes, int] = {}

    def finish(self, status: int, headers: Headers, body_bytes: int) -> bytes | None:
        """Make the head that `kept_alive` has not made yet; None when it takes more thought."""
        if status in (204, 304):
            return None
        head, _, close = self.head(status, headers, body_bytes)
        if close:
            return None
        if len(self.heads) >= _HEADS_MAX:
            self.heads.clear()
        return head + b"\r\n"

    def lines(self, fields: Fields) -> bytes | None:
        """Fields that are in no other head, and the empty line; None when one of them means something to us."""
        names = self._names
        parts: list[bytes] = []
        for name, value in fields:
            meaning = names.get(name)
            if meaning is None:
                meaning = self._learn(name)
            if meaning:
                return None
            parts += (name, b": ", value, b"\r\n")
        return _joined(parts, len(fields)) + b"\r\n"

    def stamp(self) -> bytes:
        """The Date and Server lines. Looks at the clock every time: a loop blocked for seconds
        must not send an old date (RFC 9110 section 6.6.1)."""
        now = time()
        if not self.stamp_from <= now < self.stamp_until:
            self.stamp_from, self.stamp_until = int(now), int(now) + 1
            self.heads.clear()
            self.last_headers = None
            date = b"date: " + formatdate(int(now), usegmt=True).encode("ascii") + b"\r\n" if self._date else b""
            self._stamp = date + self._server
        return self._stamp

    def head(self, status: int, headers: Headers, body_bytes: int | None) -> tuple[bytes, int | None, bool]:
        """A response head without its closing empty line.

        `body_bytes`: the body's length when it is known, else None. Returns the bytes, the
        Content-Length in force (None: the caller frames the body) and whether the
        application asked for `Connection: close`. Raises LocalProtocolError.
        """
        line = _STATUS_LINES.get(status)
        if line is None:
            raise LocalProtocolError(f"status {status}: a response has one of 200 to 599")
        parts = [line]
        length: int | None = None
        close = dated = served = False
        names = self._names
        lines = 1
        for name, value in headers:
            meaning = names.get(name)
            if meaning is None:
                meaning = self._learn(name)
            if meaning:
                if meaning == _LENGTH:
                    length = self._length(value, length)
                    continue
                if meaning == _CODING:
                    continue  # framing is ours (RFC 9112 section 6); an application's chunked is replaced
                if meaning == _CONNECTION:
                    close = close or b"close" in value.lower()
                    continue
                dated = dated or meaning == _DATE
                served = served or meaning == _SERVER
            parts += (name, b": ", value, b"\r\n")
            lines += 1
        if body_bytes is not None and status >= 200 and status not in (204, 304):
            if length is not None and length != body_bytes:
                raise LocalProtocolError(f"Content-Length is {length} but the body has {body_bytes} bytes")
            length = body_bytes
        if length is not None and status != 204:
            parts.append(b"content-length: %d\r\n" % length)
            lines += 1
        return _joined(parts, lines) + self._stamp_without(dated, served), length, close

    def _stamp_without(self, dated: bool, served: bool) -> bytes:
        stamp = self.stamp()
        if not (dated or served):
            return stamp
        return b"".join(
            line
            for line in stamp.splitlines(keepends=True)
            if not (dated and line.startswith(b"date")) and not (served and line.startswith(b"server"))
        )

    def _length(self, value: bytes, before: int | None) -> int:
        if _DIGITS.fullmatch(value) is None:
            raise LocalProtocolError(f"Content-Length {value!r} is not a number")
        if before is not None and before != int(value):
            raise LocalProtocolError("two different Content-Length fields")
        return int(value)

    def _learn(self, name: bytes) -> int:
        if not isinstance(name, bytes) or _TOKEN.fullmatch(name) is None:
            raise LocalProtocolError(f"{name!r} is not a header field name (bytes, RFC 9110 section 5.1)")
        meaning = _MEANING.get(name.lower(), _PLAIN)
        if len(self._names) < _NAMES_MAX:
            self._names[name] = meaning
        return meaning
