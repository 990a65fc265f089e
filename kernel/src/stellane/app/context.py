"""What surrounds a request: its ids, its time, its past, and what the worker shares."""

from __future__ import annotations

import time
from typing import Any

from structlog.stdlib import BoundLogger

from stellane.abc import Exchange
from stellane.abc.protocol import Fields
from stellane.app.request_id import request_id_of
from stellane.app.resources import Resources
from stellane.app.trace import TraceContext, parse_traceparent, parse_tracestate, trusted_traceparent
from stellane.logging import get_logger
from stellane.recovery.context import RecoveryContext

_OWN_IDS = (b"x-request-id", b"traceresponse")


class Context:
    """One request's surroundings, made anew for each. Ids are drawn when first asked for.

    `resources` are the worker's, opened at start. `deadline` is in seconds of `time.monotonic`,
    or None. `recovery` is what a replayed request knows of its past, None in an ordinary one.
    """

    # Class-level defaults instead of slots: half the time to make one, and one is made for every request.
    deadline: float | None = None
    recovery: RecoveryContext | None = None
    _request_id: str | None = None
    _trace: TraceContext | None = None
    _logger: BoundLogger | None = None
    _state: dict[str, Any] | None = None

    def __init__(self, exchange: Exchange, resources: Resources) -> None:
        self._exchange = exchange
        self.resources = resources

    @property
    def request_id(self) -> str:
        """The client's x-request-id when it is fit, else a UUIDv7; a replay keeps the original's."""
        if self._request_id is None:
            self._request_id = self.recovery.request_id if self.recovery else request_id_of(self._exchange)[0]
        return self._request_id

    @property
    def trace(self) -> TraceContext:
        """This server's span: continues the caller's trace, and in a replay the original's."""
        if self._trace is None:
            on_record = self._exchange.journal_traceparent
            if self.recovery is not None:
                parent = parse_traceparent(self.recovery.traceparent)
            elif on_record is not None:
                parent = trusted_traceparent(on_record)
            else:
                parents = _field(self._exchange, b"traceparent")
                # Two of them contradict each other (section 3.2: one field).
                parent = parse_traceparent(parents[0]) if len(parents) == 1 else None
            state = parse_tracestate(_field(self._exchange, b"tracestate")) if parent else ""
            self._trace = TraceContext(parent, state)
        return self._trace

    def logger(self) -> BoundLogger:
        """A structlog logger with request_id, trace_id and span_id bound."""
        if self._logger is None:
            trace = self.trace
            self._logger = get_logger(
                "stellane.app", request_id=self.request_id, trace_id=trace.trace_id, span_id=trace.span_id
            )
        return self._logger

    def time_left(self) -> float | None:
        """Seconds until the deadline, not below 0; None without one."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def idempotency_key(self) -> str | None:
        """The request's Idempotency-Key, the same in every replay."""
        if self.recovery is not None:
            return self.recovery.idempotency_key
        value = self._exchange.header(b"idempotency-key")
        return None if value is None else value.decode("latin-1")

    @property
    def fencing_token(self) -> int:
        """0 in a request's first run, then higher with every replay of it: a store that keeps the
        highest one seen for a request can refuse a late write of an earlier run."""
        return 0 if self.recovery is None else self.recovery.fencing_token

    @property
    def state(self) -> dict[str, Any]:
        """Whatever middleware and handlers want to pass on within this request."""
        if self._state is None:
            self._state = {}
        return self._state

    def resource(self, name: str) -> Any:
        """The worker's resource of that name. Raises LookupError when there is none."""
        return self.resources.get(name)

    def answer_fields(self, given: Fields = ()) -> Fields:
        """Header fields that go with every answer: the request's ids, when the request brought them.

        A journaled request always has: the recorder adds them to its fields. One that the handler has
        `given` itself is left out.
        """
        exchange = self._exchange
        fields: Fields = ()
        if exchange.journal_request_id is not None or exchange.header(b"x-request-id") is not None:
            fields = ((b"x-request-id", self.request_id.encode("ascii")),)
        if exchange.journal_traceparent is not None or exchange.header(b"traceparent") is not None:
            fields += ((b"traceresponse", self.trace.traceparent.encode("ascii")),)
        for name, _ in given:
            if name in _OWN_IDS:
                return tuple(field for field in fields if field[0] not in dict(given))
        return fields

    def __repr__(self) -> str:
        return f"<Context {self.request_id}>"


def _field(exchange: Exchange, name: bytes) -> list[str]:
    return [value.decode("latin-1") for field, value in exchange.headers if field == name]
