"""The usual request, from its bytes to its answer: the head is known (`known_heads`), nothing waits
in the codec, and the handler answers with one whole response.

This module holds the state that this path touches and the path itself; everything else that can
happen is in the subclasses: `H1Connection`, `H1Exchange` and `HeadWriter`. It is plain Python, and
runs as such. Where a C compiler was at hand when the distribution was built, Cython has compiled it
with the types in `usual_request.pxd`, which takes a quarter off the Python a request runs through.

Names without an underscore in front are for the subclasses as well; nothing outside the
distribution uses them, but for what `Exchange` declares.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stellane.errors import LocalProtocolError
from stellane_protocol_http import bounds, phases

if TYPE_CHECKING:
    from stellane.abc.protocol import Fields, Headers
    from stellane_protocol_http.protocol import HttpProtocol

# Names of this module alone: compiled, they are C variables, where a global is looked up each time.
_time = time.time
_joined_body_bytes_max = bounds.JOINED_BODY_BYTES_MAX
_gather_bytes_max = bounds.GATHER_BYTES_MAX
_head = phases.HEAD
_busy = phases.BUSY
_linger = phases.LINGER
_never = phases.NEVER


def is_compiled() -> bool:
    """Whether this module runs as compiled code."""
    return not __file__.endswith(".py")


class Clock:
    """The worker's time as its connections know it, seconds of the loop's clock, a quarter of a second old at most."""

    def __init__(self) -> None:
        self.now = 0.0
        self.idle_deadline = 0.0
        """When a connection that falls idle now is to be closed."""


class FinishedHeads:
    """Response heads made before: the same one is often sent many times within a second."""

    def __init__(self) -> None:
        self.stamp_from = 0.0
        self.stamp_until = 0.0
        """The Date in the heads holds within this second, as time.time counts."""
        self.heads: dict[tuple[object, ...], bytes] = {}
        self.last_headers: Headers | None = None
        self.last_status: int | None = None
        self.last_bytes = 0
        self.last_head: bytes | None = None

    def kept_alive(self, status: int, headers: Headers, body_bytes: int) -> bytes | None:
        """A complete head, with its empty line, for a body of `body_bytes` on a connection that
        goes on; None when it takes more thought than that. Raises LocalProtocolError.

        Looks at the clock every time: a loop blocked for seconds must not send an old date
        (RFC 9110 section 6.6.1).
        """
        now = _time()
        if not self.stamp_from <= now < self.stamp_until:
            self.stamp()
        if headers is self.last_headers and body_bytes == self.last_bytes and status == self.last_status:
            return self.last_head  # the very same tuple as the last time
        try:
            fields = headers if type(headers) is tuple else tuple(headers)
            key = (status, body_bytes, fields)
            head = self.heads.get(key)
        except TypeError:  # a header pair that is a list: legal in ASGI, and not hashable
            return None
        if head is None:
            head = self.finish(status, fields, body_bytes)
            if head is None:
                return None
            self.heads[key] = head
        if fields is headers:  # a tuple: nobody can change it
            self.last_headers = headers
            self.last_bytes = body_bytes
            self.last_status = status
            self.last_head = head
        return head


class UsualExchange:
    """One request and its answer: what every exchange has, and how a whole response leaves."""

    def prepare(self, connection: UsualConnection, method: str, path: bytes, head: Any) -> None:
        """Take what is known of the request: an exchange is made with no arguments, which costs less."""
        self.connection = connection
        self.method = method
        self.path = path
        self.head = head
        self.response_started = False
        self.response_ended = False
        self.body_complete = True
        self.simple = True
        """The whole request is here and nobody waits for the client to go."""
        self.watched = False
        """Somebody waits for the client to go."""
        self.in_codec = False
        """The codec parsed it, and waits to be told that it has been answered."""
        self.brings_ids = False
        self.keep_alive = True
        self.plain = True
        """HTTP/1.1, not HEAD, and the client means to go on: nearly every request."""

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Exchange.respond`."""
        self.answer(status, headers, body, ())

    def respond_with_ids(self, status: int, headers: Headers, body: bytes, ids: Fields) -> None:
        """See `Exchange.respond_with_ids`: `ids` are put into a head that is kept without them."""
        self.answer(status, headers, body, ids)

    def answer(self, status: int, headers: Headers, body: bytes, ids: Fields) -> None:
        if self.response_started:
            raise LocalProtocolError("a response was already started for this request")
        if type(headers) is not tuple and type(headers) is not list:
            headers = list(headers)  # what can be read once only is read twice when the head is not usual
        connection = self.connection
        body_bytes = len(body)
        if self.plain and connection.keeps_alive and body_bytes <= _joined_body_bytes_max:
            head = connection.head_writer.kept_alive(status, headers, body_bytes)
            if head is not None and ids:
                lines = connection.head_writer.lines(ids)
                head = None if lines is None else head[:-2] + lines
            if head is not None:
                self.response_started = True
                self.response_ended = True
                connection.answered(self, head + body)
                return
        self.respond_unusually(status, (*headers, *ids) if ids else headers, body)


class UsualConnection:
    """One connection, while what happens on it is what nearly always happens."""

    def __init__(self, protocol: HttpProtocol, exchange_type: type[UsualExchange]) -> None:
        self.exchange_type = exchange_type
        self.begin = protocol.begin
        self.clock = protocol.clock
        self.head_writer = protocol.head_writer
        self.known_heads = protocol.known_heads.heads
        self.codec: Any = None
        self.codec_empty = True
        self.phase = _head
        self.exchange: UsualExchange | None = None
        self.gathered: bytes | None = None
        """While events are handled, the responses so far; they leave as one write."""
        self.transport_write: Any = None
        self.deadline = _never
        self.lost = False
        self.keeps_alive = True
        self.reading_paused = False

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol.data_received`."""
        if self.phase == _head and self.codec_empty:
            known = self.known_heads.get(data)
            if known is not None:
                # Parsed and checked before; the codec does not see it.
                method, path, head, brings_ids = known
                exchange = self.usual_exchange(method, path, head)
                exchange.brings_ids = brings_ids
                self.exchange = exchange
                self.phase = _busy
                self.gathered = b""
                try:
                    self.begin(exchange)
                finally:
                    if self.phase == _busy:
                        self.deadline = _never
                    self.flush()
                return
        self.parse(data)

    def new_exchange(self, method: str, path: bytes, head: Any) -> UsualExchange:
        """An exchange of the usual kind."""
        return self.usual_exchange(method, path, head)

    def usual_exchange(self, method: str, path: bytes, head: Any) -> UsualExchange:
        # Apart from `new_exchange`, as `flush` from `send_gathered`, because the compiled code calls
        # it directly: a method that subclasses see is looked up at each call.
        exchange = self.exchange_type()
        exchange.prepare(self, method, path, head)
        return exchange

    def send_gathered(self) -> None:
        """Let the responses gathered since the callback began leave as one write."""
        self.flush()

    def flush(self) -> None:
        out = self.gathered
        self.gathered = None
        if out and not self.lost:
            self.transport_write(out)
        if self.phase == _linger:
            self.half_close()

    def write(self, data: bytes) -> None:
        """Send bytes, gathered with others while events are being handled. Ignored once lost."""
        out = self.gathered
        if out is None:
            if not self.lost:
                self.transport_write(data)
        elif not out:
            self.gathered = data
        elif len(out) < _gather_bytes_max:
            self.gathered = out + data
        else:
            self.gathered = data
            if not self.lost:
                self.transport_write(out)

    def answered(self, exchange: UsualExchange, response: bytes) -> None:
        """Send a whole response and go on: `write` and `exchange_ended` in the usual case at once."""
        out = self.gathered
        if out is not None and not out and exchange is self.exchange and exchange.simple and not self.reading_paused:
            self.gathered = response
            self.exchange = None
            self.phase = _head
            if exchange.in_codec:
                self.codec.start_next_cycle()
            self.deadline = self.clock.idle_deadline
        else:
            self.write(response)
            self.exchange_ended(exchange)
