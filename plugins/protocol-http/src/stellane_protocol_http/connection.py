"""One HTTP/1.1 connection: an asyncio.Protocol that pulls events from a codec.

Phases: HEAD (waiting for, or inside, a request head), BUSY (an exchange is in hand), SKIP (its
response has gone out before its body was read; the rest of the body is thrown away), LINGER (the
last response has gone out; input is thrown away until the client has seen it and closes), RESUME
(a pipelined request is parsed and starts in the loop's next turn), STALLED (the client has not
taken the responses so far; no further request starts until it has).

Requests on one connection are answered one at a time and in order: while an exchange is in
hand, later bytes wait unparsed in the codec, and reading stops when too many wait.

More than 500 lines, because it is one state machine, whose phases are understood together or not.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, cast

from stellane.abc.protocol import Address
from stellane.errors import ClientDisconnected, RemoteProtocolError
from stellane_protocol_http import bounds
from stellane_protocol_http.addresses import address_of
from stellane_protocol_http.exchange import H1Exchange, body_timed_out, body_too_large
from stellane_protocol_http.head_rules import METHODS, line_too_long, refuse_tls, unreadable
from stellane_protocol_http.known_heads import is_one_head
from stellane_protocol_http.phases import BUSY, HEAD, LINGER, NEVER, RESUME, SKIP, STALLED
from stellane_protocol_http.unread import has_unread
from stellane_protocol_http.usual_request import UsualConnection

if TYPE_CHECKING:
    from stellane_protocol_http.protocol import HttpProtocol

_SLASH = ord("/")


class H1Connection(UsualConnection, asyncio.Protocol):
    """See the module's docstring. All methods run on the loop's thread."""

    def __init__(self, protocol: HttpProtocol) -> None:
        super().__init__(protocol, H1Exchange)
        self._protocol = protocol
        self.loop = protocol.loop
        self._rules = protocol.rules
        codec = self._codec_types = protocol.codec_in_use
        self.codec = codec.connect()
        self._need_data = codec.need_data
        self._lone_head: bytes | None = None
        self._takes_all = False
        self._request_type = codec.request_type
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.client: Address = None
        self.server: Address = None
        self.scheme = "http"
        self.peer_closed = False
        self._unbegun: H1Exchange | None = None
        self._head_bytes = self._chunk_bytes = 0
        self._head_start = b""
        self._waiting_bytes = self._skipped_bytes = self._unsent_bytes = 0
        self._writing_paused = False
        self._drained: asyncio.Future[None] | None = None

    # --- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.transport_write = self._transport.write
        self.client = address_of(transport.get_extra_info("peername"))
        self.server = address_of(transport.get_extra_info("sockname"))
        self.deadline = self.clock.now + self._protocol.http.head_timeout_s
        if not self._protocol.connection_opened(self):
            self._refuse(RemoteProtocolError("too many connections; see runtime.max_connections", 503))

    def parse(self, data: bytes) -> None:
        """Take bytes that are not, as a whole, a head that is known."""
        phase = self.phase
        if phase == HEAD:
            if self.codec_empty and data[:2] == b"\r\n":
                # One empty line before a request line means nothing (RFC 9112 section 2.2). Only where nothing waits
                # in the codec: it would be the end of a head that has begun.
                data = data[2:]
                if not data:
                    return
            # Until the codec has given this chunk back as one whole request, it holds something; and only what came
            # into an empty codec, in one chunk, is the request that comes out next.
            one_head = is_one_head(data)
            self._lone_head = data if self.codec_empty and one_head else None
            # The rest of a head that has begun, too, ends where this chunk ends, unless its first bytes are that end.
            self._takes_all = one_head and data[:1].isalpha()
            self.codec_empty = False
        elif phase == LINGER:
            return
        try:
            if phase == HEAD:
                self._chunk_bytes = len(data)
                self._head_bytes += self._chunk_bytes
                self._pump(self.codec.receive_event(data))
                if self.phase == HEAD and self._head_bytes:
                    self._head_incomplete(data)
            elif phase in (RESUME, STALLED) or (self.exchange is not None and self.exchange.body_complete):
                self.codec.receive_data(data)
                self.codec_empty = False
                self._waiting_bytes += len(data)
                if self._waiting_bytes > bounds.PIPELINE_BUFFER_BYTES:
                    self._pause_reading()
            else:
                self._pump(self.codec.receive_event(data))
        except (self._codec_types.remote_error, RemoteProtocolError) as error:
            self._remote_error(error, data)

    def eof_received(self) -> bool:
        self.peer_closed = True
        if self.phase in (RESUME, STALLED):
            return True
        exchange = self.exchange
        if exchange is None or self.phase != BUSY:
            self.keeps_alive = False
            return False
        body_complete = exchange.body_complete
        # What the codec holds came before: it is answered too, and `_resume_parsing` closes after it.
        self.keeps_alive = self.keeps_alive and body_complete and not self.codec_empty
        exchange.peer_gone()
        # A client may close its sending side and still wait for the answer (half-close).
        return body_complete

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.lost = self.peer_closed = True
        self.keeps_alive = False
        self.deadline = NEVER
        self._writing_paused = False
        self._wake_writers()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.peer_gone()
        self._protocol.connection_closed(self)

    def pause_writing(self) -> None:
        self._writing_paused = True
        self._unsent_bytes = self._transport.get_write_buffer_size()
        self.deadline = self.clock.now + self._protocol.http.write_timeout_s
        if self.phase == HEAD:
            self.phase = STALLED
            self._waiting_bytes = self._head_bytes

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self.phase == STALLED:
            # Later, for it may close: a selector transport of asyncio that is closed in here is lost twice.
            self.loop.call_soon(self._unstall)
        elif self.phase == LINGER:
            self.deadline = self.clock.now + bounds.LINGER_S
        else:
            self.deadline = NEVER if self.phase == BUSY else self.clock.idle_deadline
        self._wake_writers()

    def let_go(self, other: int) -> None:
        """Put the open file of the descriptor `other` in the place of the socket, in this process."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            # Not closed: the transport still has the number, and would close whatever got it next.
            os.dup2(other, sock.fileno(), inheritable=False)

    # --- reading ------------------------------------------------------------------------------

    def _pump(self, event: Any) -> None:
        """Handle events until the codec needs data or an exchange waits for its handler."""
        self.gathered = b""
        next_event = self.codec.next_event
        need_data = self._need_data
        try:
            while event is not need_data:
                if type(event) is self._request_type:
                    self._request(event)
                elif not self._body_event(event):
                    break
                if self.phase:
                    exchange = self.exchange
                    if (exchange is not None and exchange.body_complete) or self.phase >= LINGER or self.lost:
                        break  # what follows belongs to the next request, which waits its turn
                event = next_event()
            if self._unbegun is not None:
                self._begin_unbegun()
        finally:
            self.send_gathered()

    def _request(self, head: Any) -> None:
        # Whatever happens with this head, the chunk is no other request's: remembered for a later one, it would give
        # that one's answer to every client that sends these bytes.
        lone_head, self._lone_head = self._lone_head, None
        takes_all, self._takes_all = self._takes_all, False
        rules = self._rules
        method = METHODS.get(head.method) or rules.method(head.method)
        # A head that shares its chunk with others is at most that chunk and what came before.
        rules.check(head, self._head_bytes or self._chunk_bytes)
        exchange = self.new_exchange(method, head.path, head)
        if head.http_version != b"1.1" or method == "HEAD" or self.codec.should_close():
            # Its response head takes more thought than the usual one.
            exchange.plain = False
            exchange.http_version = head.http_version.decode("ascii")
            exchange.keep_alive = not self.codec.should_close()
        if head.target[0] != _SLASH:
            exchange.set_target(*rules.path_and_query(head, method))
        self._head_bytes = 0
        self.phase = BUSY
        self.exchange = exchange
        exchange.in_codec = True
        exchange.brings_ids = rules.brings_ids(head)
        if head.headers.get(b"upgrade") is not None:
            self._protocol.upgrade_passed_over(head.headers.get(b"upgrade"))
        if head.end_stream:
            if lone_head is not None:
                # A target in another form than a path is not the head's own path and query.
                if exchange.plain and head.target[0] == _SLASH:
                    known = (method, head.path, head, exchange.brings_ids)
                    self._protocol.known_heads.remember(lone_head, known)
                self.codec_empty = True
            elif takes_all:
                self.codec_empty = True
            self.begin(exchange)
            if self.phase == BUSY:
                self.deadline = NEVER
        else:
            self._expect_body(head, exchange)
            # Body that came with the head is fed first: a small request then needs no waiting.
            self._unbegun = exchange

    def _begin_unbegun(self) -> None:
        exchange, self._unbegun = self._unbegun, None
        self.begin(exchange)

    def _body_event(self, event: Any) -> bool:
        kind = type(event)
        if kind is self._codec_types.data_type:
            self._body_data(event.data)
            return True
        if kind is self._codec_types.end_type:
            self._body_end()
            return True
        return False

    def _expect_body(self, head: Any, exchange: H1Exchange) -> None:
        limit = self._protocol.body_bytes_max
        length = head.headers.get(b"content-length")
        if length is not None and int(length) > limit:
            raise RemoteProtocolError(f"Content-Length is over limits.body_bytes_max = {limit}", 413)
        exchange.expect_body(expects_continue=head.expect_continue)
        self.deadline = self.clock.now + self._protocol.http.body_timeout_s

    def _body_data(self, data: bytes) -> None:
        if self.phase == SKIP:
            self._skipped_bytes += len(data)
            if self._skipped_bytes > bounds.SKIP_BYTES_MAX:
                self._close()
            return
        exchange = self.exchange
        assert exchange is not None
        self.deadline = self.clock.now + self._protocol.http.body_timeout_s
        waiting = exchange.feed(data)
        if exchange.body_bytes > self._protocol.body_bytes_max:
            # The rest will not be read; whatever is answered, the connection ends with it.
            self.keeps_alive = False
            exchange.fail(body_too_large(self._protocol.body_bytes_max))
        elif waiting > bounds.BODY_BUFFER_BYTES:
            self._pause_reading()
            self.deadline = NEVER  # the application is the slow one now

    def _body_end(self) -> None:
        if self.phase == SKIP:
            self.codec.start_next_cycle()
            self._expect_head()
            return
        assert self.exchange is not None
        self.deadline = NEVER
        self.exchange.feed_end()
        if self._unbegun is not None:
            self._begin_unbegun()

    def body_taken(self, exchange: H1Exchange, waiting_bytes: int) -> None:
        """The application took a part of the body and `waiting_bytes` are left."""
        if exchange is self.exchange and self.reading_paused and waiting_bytes <= bounds.BODY_BUFFER_BYTES // 2:
            self.deadline = self.clock.now + self._protocol.http.body_timeout_s
            self._resume_reading()

    def _head_incomplete(self, data: bytes) -> None:
        """Part of a head is there: it must grow to a whole one within its time and size."""
        limits = self._protocol.limits
        if self._head_bytes == len(data):
            refuse_tls(data)
            self._head_start = b""
            self.deadline = self.clock.now + self._protocol.http.head_timeout_s
        if len(self._head_start) <= limits.request_line_bytes_max:
            self._head_start += data
            if b"\r\n" not in self._head_start and len(self._head_start) > limits.request_line_bytes_max:
                raise line_too_long(limits.request_line_bytes_max)
        if self._head_bytes > limits.request_line_bytes_max + limits.header_bytes_max:
            raise RemoteProtocolError(f"header over limits.header_bytes_max = {limits.header_bytes_max}", 431)

    def _remote_error(self, error: Exception, data: bytes = b"") -> None:
        if isinstance(error, RemoteProtocolError):
            self._refuse(error)
            return
        exchange = self.exchange
        if exchange is not None and exchange is not self._unbegun and self.phase == BUSY:
            # The body is broken: the application hears of it and still answers; then it is over.
            self.keeps_alive = False
            exchange.fail(RemoteProtocolError(f"request body: {error}"))
            return
        # Of a head whose first chunk is this one, `_head_start` is still another's.
        received = data if self._head_bytes == len(data) else self._head_start + data
        line = received.partition(b"\r\n")[0] if self._head_bytes else b""
        if self._codec_types.too_large(error):
            self._refuse(self._rules.head_too_large(line, self._codec_types.line_bytes_max))
        else:
            self._refuse(unreadable(line, str(error)))

    # --- writing ------------------------------------------------------------------------------

    async def wait_writable(self) -> None:
        """Wait until the client has taken enough. Raises ClientDisconnected."""
        while self._writing_paused and not self.lost:
            await self._wait_drained()
        if self._transport.is_closing():
            # A failed write is reported by `connection_lost`, in the loop's next turn.
            await asyncio.sleep(0)
        if self.lost:
            raise ClientDisconnected("the client went away before the response was complete")

    @property
    def unsent(self) -> bool:
        """Whether bytes wait in user space."""
        return not self.lost and (bool(self.gathered) or self._transport.get_write_buffer_size() > 0)

    async def wait_flushed(self) -> bool:
        """Wait until the kernel has every byte; False when the connection was lost first."""
        if self.gathered:
            await asyncio.sleep(0)  # gathered bytes leave at the end of the callback we are in
        if self.lost:
            return False
        if self._transport.get_write_buffer_size() == 0:
            return True
        # With both water marks at zero the transport tells when the last byte has left.
        self._transport.set_write_buffer_limits(0, 0)
        try:
            while self._writing_paused and not self.lost:
                await self._wait_drained()
        finally:
            if not self.lost:
                self._transport.set_write_buffer_limits()
        return not self.lost

    async def _wait_drained(self) -> None:
        if self._drained is None or self._drained.done():
            self._drained = self.loop.create_future()
        await asyncio.shield(self._drained)

    def _wake_writers(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # --- between requests -----------------------------------------------------------------------

    def exchange_ended(self, exchange: H1Exchange) -> None:
        """The response is complete; go on to the next request, or close."""
        if exchange is not self.exchange:
            return
        if exchange.body_complete and exchange.keep_alive and self.keeps_alive:
            if exchange.watched:
                exchange.response_over()
            self.exchange = None
            if exchange.in_codec:
                self.codec.start_next_cycle()
            self._expect_head()
            if self.phase == HEAD:
                if self.reading_paused:
                    self._resume_reading()
                if self.gathered is None and not self.codec_empty:
                    self._resume_parsing()
            return
        exchange.response_over()
        if self.reading_paused:
            self._resume_reading()
        if self.lost:
            return
        if not exchange.keep_alive or not self.keeps_alive or self.peer_closed:
            self._close()
        else:
            self.phase = SKIP
            self.exchange = None
            self._skipped_bytes = 0
            self.deadline = self.clock.now + self._protocol.http.body_timeout_s

    def _expect_head(self) -> None:
        """Take the next request, unless the client leaves its answers in our memory: a few bytes ask for megabytes."""
        if self._writing_paused:
            self.phase = STALLED
            self.deadline = self.clock.now + self._protocol.http.write_timeout_s
        else:
            self.phase = HEAD
            self.deadline = self.clock.idle_deadline

    def _unstall(self) -> None:
        if self.phase == STALLED and not self._writing_paused and not self.lost:
            self._expect_head()
            if self.reading_paused:
                self._resume_reading()
            self._resume_parsing()

    def _resume_parsing(self) -> None:
        """The codec may hold bytes of later requests, from the same chunk or from since.

        We are in the task of the handler that has just answered; the next request must not run
        inside it, so it starts from the loop.
        """
        self._head_bytes = self._chunk_bytes = self._waiting_bytes
        self._waiting_bytes = 0
        try:
            event = self.codec.next_event()
        except self._codec_types.remote_error as error:
            self._remote_error(error)
            return
        if event is not self._codec_types.need_data:
            self.phase = RESUME
            self.loop.call_soon(self._pump_resumed, event)
        elif self.peer_closed:
            self._close()
        elif self._head_bytes:
            self.deadline = self.clock.now + self._protocol.http.head_timeout_s

    def _pump_resumed(self, event: Any) -> None:
        if self.lost or self.phase != RESUME:
            return
        self.phase = HEAD
        try:
            self._pump(event)
        except (self._codec_types.remote_error, RemoteProtocolError) as error:
            self._remote_error(error)
        if self.phase == HEAD:
            self._expect_head()  # writing may have been paused since the event was pulled
            if self.peer_closed:
                self._close()
        elif self.peer_closed and self.exchange is not None:
            self.exchange.peer_gone()

    def _refuse(self, error: RemoteProtocolError) -> None:
        """Answer a request that never became an exchange, and close."""
        self._protocol.errors_total += 1
        self._unbegun = None
        body = f"{error}\n".encode()
        head, _, _ = self.head_writer.head(error.status, [(b"content-type", b"text/plain; charset=utf-8")], len(body))
        if error.status == 503:
            head += b"retry-after: 1\r\n"
        self.exchange = None
        self.write(head + b"connection: close\r\n\r\n" + body)
        self._close()

    # --- closing ------------------------------------------------------------------------------

    def _close(self) -> None:
        """Close after what was written has gone out, without a reset that would destroy it."""
        if self.phase == LINGER:
            return
        self.phase = LINGER
        self.exchange = None
        self.deadline = self.clock.now + bounds.LINGER_S
        if self.gathered is None:
            self.half_close()

    def half_close(self) -> None:
        if self.lost:
            return
        if self.peer_closed or not self._transport.can_write_eof():
            self._transport.close()
            return
        # Closing with unread input in the socket sends a reset, and the client would lose the
        # answer (RFC 9112 section 9.6): end our side, throw input away, close on theirs.
        if self.reading_paused:
            self._resume_reading()
        self._transport.write_eof()

    def abort(self) -> None:
        """Cut the connection at once."""
        if not self.lost and self._transport is not None:
            self._transport.abort()

    def drain(self) -> None:
        """Close now when idle, else after the response in hand, or the one to a request that waits to be read."""
        self.keeps_alive = False
        if self.phase not in (HEAD, STALLED) or self._head_bytes or self.lost:
            return
        if self.phase == HEAD and has_unread(self._transport):
            self.deadline = self.clock.now + self._protocol.http.head_timeout_s
        else:
            self._close()

    def expire(self) -> None:
        """The deadline has passed; called by the protocol's tick."""
        self.deadline = NEVER
        if self._writing_paused and self._transport.get_write_buffer_size() < self._unsent_bytes:
            self.pause_writing()  # slow, but taking: the time starts over
        elif self.phase == LINGER or self._writing_paused:
            self.abort()
        elif self.phase == HEAD:
            if self._head_bytes:
                timeout_s = self._protocol.http.head_timeout_s
                self._refuse(RemoteProtocolError(f"request head not complete in {timeout_s} s", 408))
            else:
                self._close()
        elif self.phase == SKIP:
            self._close()
        elif self.exchange is not None and not self.exchange.body_complete:
            self.keeps_alive = False
            self.exchange.fail(body_timed_out(self._protocol.http.body_timeout_s))

    def _pause_reading(self) -> None:
        if not self.reading_paused:
            self.reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self.reading_paused = False
        if not self.lost and not self._transport.is_closing():
            self._transport.resume_reading()
