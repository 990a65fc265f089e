"""The HTTP protocol of one worker: its connections, their deadlines, its drain."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from stellane.abc import Protocol, ProtocolStatistics
from stellane.abc.protocol import Begin
from stellane.config import Config
from stellane.logging import get_logger
from stellane.recovery.forked_child import call_in_forked_child
from stellane_protocol_http.codec import load_codec
from stellane_protocol_http.connection import H1Connection
from stellane_protocol_http.head_rules import HeadRules
from stellane_protocol_http.known_heads import KnownHeads
from stellane_protocol_http.response_head import HeadWriter
from stellane_protocol_http.usual_request import Clock, is_compiled

_log = get_logger("stellane.http")

TICK_S = 0.25
"""Deadlines are looked at this often, seconds: one timer a worker instead of two a request."""


class HttpProtocol(Protocol):
    """HTTP/1.1 on any asyncio loop."""

    def __init__(self) -> None:
        self.codec = ""
        self.errors_total = 0
        self.clock = Clock()
        self._connections: set[H1Connection] = set()
        self._connections_total = 0
        self._count_changed: Callable[[int], None] | None = None
        self._draining = False
        self._upgrade_told = False
        self._empty: asyncio.Future[None] | None = None
        self._tick_handle: asyncio.TimerHandle | None = None

    def connection_factory(
        self, begin: Begin, *, config: Config, loop: asyncio.AbstractEventLoop
    ) -> Callable[[], asyncio.Protocol]:
        self.begin = begin
        self.loop = loop
        self.http = config.http
        self.limits = config.limits
        self.body_bytes_max = config.limits.body_bytes_max or (1 << 62)
        self._connections_max = config.runtime.max_connections
        self.codec_in_use = load_codec(config.http.codec)
        self.codec_in_use.require(config.limits)
        self.codec = f"{self.codec_in_use.name}, {'compiled' if is_compiled() else 'plain Python'}"
        self.rules = HeadRules(config.limits)
        self.known_heads = KnownHeads()
        self.head_writer = HeadWriter(server=config.http.server_header, date=config.http.date_header)
        self._look_at_clock()
        call_in_forked_child(self._forked)
        return lambda: H1Connection(self)

    def watch_connections(self, changed: Callable[[int], None]) -> None:
        self._count_changed = changed

    def connection_opened(self, connection: H1Connection) -> bool:
        """Count a new connection; False when there are too many and it must be refused."""
        self._connections.add(connection)
        self._connections_total += 1
        if self._count_changed is not None:
            self._count_changed(len(self._connections))
        if self._tick_handle is None:
            self._look_at_clock()
            self._tick_handle = self.loop.call_later(TICK_S, self._tick)
        if self._draining:
            connection.keeps_alive = False
        return len(self._connections) <= self._connections_max

    def upgrade_passed_over(self, wanted: bytes) -> None:
        """Tell, once, that WebSocket clients get an ordinary answer, as RFC 9110 section 7.8 allows."""
        if self._upgrade_told or wanted.strip().lower() != b"websocket":
            return
        self._upgrade_told = True
        _log.warning("a client asked for a WebSocket, which is not built yet: such requests are answered as plain GET")

    def connection_closed(self, connection: H1Connection) -> None:
        """Forget a connection that is lost."""
        self._connections.discard(connection)
        if self._count_changed is not None:
            self._count_changed(len(self._connections))
        if not self._connections and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def drain(self) -> None:
        self._draining = True
        for connection in list(self._connections):
            connection.drain()

    async def wait_drained(self) -> None:
        if self._connections:
            self._empty = self.loop.create_future()
            await self._empty

    def abort(self) -> None:
        for connection in list(self._connections):
            connection.abort()

    def _forked(self) -> None:
        """In a forked child: let go of the clients, who else would not see the end of a killed worker."""
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for connection in self._connections:
            connection.let_go(nothing)
        os.close(nothing)

    def statistics(self) -> ProtocolStatistics:
        return ProtocolStatistics(
            connections=len(self._connections),
            connections_total=self._connections_total,
            errors_total=self.errors_total,
        )

    def _look_at_clock(self) -> float:
        clock = self.clock
        clock.now = self.loop.time()
        clock.idle_deadline = clock.now + self.http.keep_alive_s
        return clock.now

    def _tick(self) -> None:
        now = self._look_at_clock()
        for connection in [c for c in self._connections if c.deadline <= now]:
            connection.expire()
        self._tick_handle = self.loop.call_later(TICK_S, self._tick) if self._connections else None
