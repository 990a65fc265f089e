"""The protocol contract: bytes on one side, exchanges on the other.

A protocol plugin turns connections into `Exchange` objects and hands each one to the kernel
the moment its request head is complete. It knows nothing of journals, routes or tasks; the
kernel knows nothing of HTTP framing. Everything that answers a request (a handler, an ASGI
app, a replay after a crash) sees only an Exchange.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stellane.config import Config

Address = tuple[str, int] | None
"""A peer or local address as ASGI writes it: (host, port); (path, 0) for a unix socket."""

Headers = Iterable[tuple[bytes, bytes]]
"""Header fields as (name, value) byte pairs, in order; names lower case where we produce them."""

Fields = tuple[tuple[bytes, bytes], ...]
"""Header fields that nobody can change: equal ones may be remembered."""


class Exchange(abc.ABC):
    """One request and the one answer to it.

    The request side is readable at once; the body arrives through `receive`. The response side
    is used in one of two ways: `respond` once, or `start`, any number of `send`, then `end`.
    All methods belong to the event loop's thread.
    """

    __slots__ = ()

    method: str
    target: bytes
    path: bytes
    query: bytes
    http_version: str
    scheme: str
    client: Address
    server: Address
    headers: list[tuple[bytes, bytes]]
    """Request header fields, names lower case, received order."""
    response_started: bool
    response_ended: bool
    journal_request_id: str | None = None
    """The request's id when it is on record in a journal; None otherwise."""
    journal_traceparent: str | None = None
    """The valid traceparent on record with it: the client's, or the one begun for it."""
    brings_ids: bool = True
    """Whether the request may carry x-request-id or traceparent, so that its answer may have to
    repeat them. A protocol that knows better says False and spares two look-ups."""

    @abc.abstractmethod
    def header(self, name: bytes) -> bytes | None:
        """The first value of the field `name` (given in lower case), or None."""

    @abc.abstractmethod
    async def receive(self) -> bytes:
        """The next part of the body, or b"" when the body has ended (and ever after).

        Answers `Expect: 100-continue` at the first call (RFC 9110 section 10.1.1).
        Raises ClientDisconnected, BodyTooLarge, RemoteProtocolError.
        """

    @abc.abstractmethod
    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response. Content-Length is added when `headers` has none.

        Raises LocalProtocolError for a second response, an invalid status, a field with CR, LF
        or NUL, or a Content-Length that is not the body's; nothing is sent then.
        A client that has gone is not an error.
        """

    def respond_with_ids(self, status: int, headers: Headers, body: bytes, ids: Fields) -> None:
        """`respond` with fields that no other answer has, such as the request's ids. Errors as `respond`.

        A protocol that keeps the heads it has made can keep the one of `headers` and put `ids` into it.
        """
        self.respond(status, (*headers, *ids), body)

    @abc.abstractmethod
    def start(self, status: int, headers: Headers) -> None:
        """Send (or hold until the first byte of body) the response head. Errors as `respond`."""

    @abc.abstractmethod
    async def send(self, data: bytes) -> None:
        """Send a part of the response body; waits while the client reads too slowly.

        Raises LocalProtocolError before `start`, after `end` or past Content-Length, and
        ClientDisconnected once the client has gone.
        """

    @abc.abstractmethod
    async def end(self) -> None:
        """End the response body. Raises LocalProtocolError when Content-Length is not reached."""

    @property
    @abc.abstractmethod
    def unsent(self) -> bool:
        """Whether bytes of the response wait that the kernel has not taken yet."""

    @abc.abstractmethod
    async def flushed(self) -> bool:
        """Wait until the kernel has taken every byte sent; False when the client went first."""

    @abc.abstractmethod
    async def wait_disconnected(self) -> None:
        """Return when the client has gone or the response has ended."""

    @property
    @abc.abstractmethod
    def disconnected(self) -> bool:
        """Whether the client has gone, or has closed its sending side."""

    @property
    def gone(self) -> bool:
        """Whether no answer can reach the client. One that has only closed its sending side still waits for it."""
        return self.disconnected

    @abc.abstractmethod
    def abort(self) -> None:
        """Cut the connection (HTTP/1.1) or reset the stream; used when a response went wrong."""


Begin = Callable[[Exchange], None]
"""What a protocol calls, synchronously, for each complete request head: `Spine.begin`."""


@dataclass(frozen=True, slots=True)
class ProtocolStatistics:
    """A snapshot of one protocol instance."""

    connections: int
    connections_total: int
    errors_total: int


class Protocol(abc.ABC):
    """A wire protocol in one worker: makes the asyncio.Protocol of each connection."""

    codec: str

    @abc.abstractmethod
    def connection_factory(
        self, begin: Begin, *, config: Config, loop: asyncio.AbstractEventLoop
    ) -> Callable[[], asyncio.Protocol]:
        """What `loop.create_server` takes. Call it once, on the running loop."""

    @abc.abstractmethod
    def watch_connections(self, changed: Callable[[int], None]) -> None:
        """Call `changed` with the number of open connections each time it has changed.

        A connection counts from `connection_made` to `connection_lost`, also one that is refused. Asked for
        once at most, before the first connection, and only where connections are shared by their number.
        """

    @abc.abstractmethod
    def drain(self) -> None:
        """Close idle connections now and busy ones after the response in hand.

        One is not idle when bytes have arrived on it that the loop has not read yet.
        """

    @abc.abstractmethod
    async def wait_drained(self) -> None:
        """Return when no connection is left."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Cut every connection that is left."""

    @abc.abstractmethod
    def statistics(self) -> ProtocolStatistics:
        """A snapshot; cheap."""
