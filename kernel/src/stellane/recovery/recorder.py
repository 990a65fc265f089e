"""The journal beside the live requests of one worker: what is recorded, and when.

`record` reads the body, writes BEGIN and wraps the exchange; the wrapper writes RESP before
the first byte of the response. DONE is lazy: it is written once per turn of the loop, after
the bytes have left, because losing it can only cause one more replay, never a loss.
"""

from __future__ import annotations

import asyncio
import time

from stellane.abc import Exchange, RecoveryPolicy
from stellane.app.request_id import request_id_of
from stellane.app.trace import new_traceparent, parse_traceparent
from stellane.errors import JournalError
from stellane.logging import get_logger
from stellane.recovery.exchange import JournaledExchange
from stellane.recovery.journal import Journal
from stellane.recovery.ledger import LedgerEntry
from stellane.recovery.payload import JournaledRequest
from stellane.runtime.application import Application

MARK_AFTER_S = 0.05
"""Idle time after which a MARK says what is acknowledged, seconds; without it damage to the
newest records looks like a torn write."""

_log = get_logger("stellane.recovery")


class Recorder:
    """Records requests in one journal. Belongs to the loop's thread."""

    def __init__(
        self,
        journal: Journal,
        policy: RecoveryPolicy,
        application: Application,
        *,
        loop: asyncio.AbstractEventLoop,
        body_bytes_max: int,
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._application = application
        self._loop = loop
        self._body_bytes_max = body_bytes_max
        self._redactor = journal.redactor()
        self._ending: list[JournaledExchange] = []
        self._waiting: set[asyncio.Task[None]] = set()
        self._touched = False
        self._mark_timer: asyncio.TimerHandle | None = None

    def wants(self, exchange: Exchange) -> bool:
        """Whether this request is journaled: its route says, else the policy."""
        wish = self._application.journal_wish(exchange.method, exchange.path)
        return self._policy.should_journal(exchange.method, exchange.path) if wish is None else wish

    async def record(self, exchange: Exchange) -> JournaledExchange:
        """Put a request on record. When this returns, its handler may start.

        Raises what reading the body raises, JournalFull and JournalPoisoned.
        """
        body, whole = await self._read_body(exchange)
        request_id, traceparent, headers = _with_ids(exchange)
        kept, redacted = self._redactor.headers(headers)
        target, redacted_query = self._redactor.target(exchange.target)
        request = JournaledRequest(
            request_id=request_id,
            received_ns=time.time_ns(),
            method=exchange.method,
            target=target,
            headers=kept,
            body=body if whole else b"",
            scheme=exchange.scheme,
            http_version=exchange.http_version,
            client=exchange.client,
            server=exchange.server,
            traceparent=traceparent,
            tracestate=None if exchange.header(b"tracestate") is None else _text(headers, b"tracestate"),
            # A chunked body that is too large is only known as far as it was read.
            body_bytes=max(len(body), _content_length(exchange)),
            body_omitted=not whole,
            redacted=redacted + redacted_query,
        )
        entry = self._journal.begin(request)
        self._touch()
        return JournaledExchange(exchange, self, entry, headers, body)

    async def _read_body(self, exchange: Exchange) -> tuple[bytes, bool]:
        """The body and True, or as much as was read of one that is too large and False."""
        if _content_length(exchange) > self._body_bytes_max:
            return b"", False
        body = await exchange.receive()
        while part := await exchange.receive() if body else b"":
            body += part
            if len(body) > self._body_bytes_max:
                return body, False
        return body, len(body) <= self._body_bytes_max

    def responding(self, entry: LedgerEntry, status: int) -> None:
        """The first response byte is about to leave."""
        try:
            self._journal.responding(entry, status)
        except JournalError as error:
            # The handler has run; refusing its answer would not undo that. BEGIN still stands,
            # so the request is replayed rather than lost.
            _log.error("RESP was not recorded", request_id=entry.request.request_id, error=str(error))
        self._touch()

    def finished(self, exchange: JournaledExchange) -> None:
        """The handler has returned or raised; its end is recorded at the end of this turn."""
        if not self._ending:
            self._loop.call_soon(self._write_endings)
        self._ending.append(exchange)

    def _write_endings(self) -> None:
        ending, self._ending = self._ending, []
        try:
            for exchange in ending:
                if exchange.inner.unsent:
                    task = self._loop.create_task(self._end_when_flushed(exchange))
                    self._waiting.add(task)
                    task.add_done_callback(self._waiting.discard)
                else:
                    self._end(exchange, delivered=not exchange.inner.disconnected)
            self._journal.flush()
        except JournalError as error:
            _log.error("the end of requests was not recorded; they will be replayed", error=str(error))
        self._touch()

    async def _end_when_flushed(self, exchange: JournaledExchange) -> None:
        delivered = await exchange.inner.flushed()
        try:
            self._end(exchange, delivered=delivered)
            self._journal.flush()
        except JournalError as error:
            _log.error("the end of a request was not recorded; it will be replayed", error=str(error))
        self._touch()

    def _end(self, exchange: JournaledExchange, *, delivered: bool) -> None:
        entry = exchange.entry
        if exchange.error is not None:
            self._journal.failed(entry, exchange.status, exchange.error)
        elif not exchange.completed:
            self._journal.failed(entry, exchange.status, "the response was not completed")
        elif exchange.status >= 500:
            self._journal.failed(entry, exchange.status)
        else:
            self._journal.done(entry, exchange.status, delivered)

    def _touch(self) -> None:
        self._touched = True
        if self._mark_timer is None:
            self._mark_timer = self._loop.call_later(MARK_AFTER_S, self._mark_when_idle)

    def _mark_when_idle(self) -> None:
        self._mark_timer = None
        if self._touched:
            self._touched = False
            self._mark_timer = self._loop.call_later(MARK_AFTER_S, self._mark_when_idle)
            return
        try:
            self._journal.mark()
        except JournalError as error:
            _log.error("MARK was not recorded", error=str(error))

    async def close(self) -> None:
        """Write the ends that are still to be written; the journal stays open."""
        if self._ending:
            self._write_endings()
        if self._waiting:
            await asyncio.wait(self._waiting, timeout=1.0)
        if self._mark_timer is not None:
            self._mark_timer.cancel()


def _with_ids(exchange: Exchange) -> tuple[str, str, list[tuple[bytes, bytes]]]:
    """The request's id, its traceparent, and its header fields with both, for they must outlive a crash.

    A trace begins here when the client brought none: a replay can continue only a trace that
    was on record before the handler saw it.
    """
    headers = exchange.headers
    request_id, brought = request_id_of(exchange)
    if not brought:
        headers = [*headers, (b"x-request-id", request_id.encode("ascii"))]
    if exchange.brings_ids or exchange.header(b"tracestate") is not None:
        brought_traces = [value.decode("latin-1") for name, value in headers if name == b"traceparent"]
        # Two of them contradict each other, and a handler takes them for none (section 3.2).
        if len(brought_traces) == 1 and parse_traceparent(brought_traces[0]) is not None:
            return request_id, brought_traces[0], headers
        headers = [field for field in headers if field[0] not in (b"traceparent", b"tracestate")]
    traceparent = new_traceparent()
    return request_id, traceparent, [*headers, (b"traceparent", traceparent.encode("ascii"))]


def _text(headers: list[tuple[bytes, bytes]], name: bytes) -> str | None:
    values = [value.decode("latin-1") for field, value in headers if field == name]
    return ",".join(values) if values else None


def _content_length(exchange: Exchange) -> int:
    value = exchange.header(b"content-length")
    return int(value) if value is not None and value.isdigit() else 0
