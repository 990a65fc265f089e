"""W3C Trace Context: the ids that tie one request's work together across services and crashes.

https://www.w3.org/TR/trace-context-1/ for `traceparent` and `tracestate`; `traceresponse` is
from level 2, https://w3c.github.io/trace-context/#traceresponse-header.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from stellane.app.random_bits import random_bits

TRACESTATE_MEMBERS_MAX = 32
"""List members of a tracestate; more make it invalid (section 3.3.1.1)."""
TRACESTATE_BYTES_MAX = 512
"""What is passed on of a tracestate; members are left out beyond it (section 3.3.1.5)."""
TRACESTATE_LONG_MEMBER_BYTES = 128
"""Members longer than this are the first to be left out (section 3.3.1.5)."""

SAMPLED = 0x01

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_NO_TRACE = "0" * 32
_NO_SPAN = "0" * 16
_KEY = r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(f"({_KEY})=({_VALUE})")


class TraceParent(NamedTuple):
    """A valid traceparent field: ids in lower case hex, `flags` as an int."""

    trace_id: str
    span_id: str
    flags: int


def parse_traceparent(value: str | None) -> TraceParent | None:
    """Read a traceparent; None when there is none or it is invalid (sections 3.2.2 and 4.3).

    A version after 00 is read as far as version 00 goes, as the specification asks.
    """
    match = _TRACEPARENT.fullmatch(value) if value is not None else None
    if match is None:
        return None
    version, trace_id, span_id, flags, rest = match.groups()
    if version == "ff" or trace_id == _NO_TRACE or span_id == _NO_SPAN or (version == "00" and rest is not None):
        return None
    return TraceParent(trace_id, span_id, int(flags, 16))


def trusted_traceparent(value: str) -> TraceParent:
    """Take apart a traceparent that was found valid before: what a journal has on record."""
    return TraceParent(value[3:35], value[36:52], int(value[53:55], 16))


def new_traceparent() -> str:
    """A traceparent that begins a trace here, sampled."""
    return f"00-{new_trace_id()}-{new_span_id()}-01"


def new_trace_id() -> str:
    """32 random lower case hex digits, not all zero."""
    return f"{random_bits(128) or 1:032x}"


def new_span_id() -> str:
    """16 random lower case hex digits, not all zero."""
    return f"{random_bits(64) or 1:016x}"


def parse_tracestate(fields: Sequence[str]) -> str:
    """One tracestate from all fields of that name, in order; "" when it is invalid as a whole.

    Follows section 3.3.1: the fields are one list, empty members are dropped, a key appears once.
    """
    if not fields:
        return ""
    members = [stripped for part in ",".join(fields).split(",") if (stripped := part.strip(" \t"))]
    matches = [_MEMBER.fullmatch(member) for member in members]
    keys = {match[1] for match in matches if match is not None}
    if len(members) > TRACESTATE_MEMBERS_MAX or len(keys) != len(members):
        return ""
    while len(state := ",".join(members)) > TRACESTATE_BYTES_MAX:
        long = [member for member in members if len(member) > TRACESTATE_LONG_MEMBER_BYTES]
        members.remove(long[-1] if long else members[-1])
    return state


class TraceContext:
    """The span of this server for one request: `ctx.trace`."""

    __slots__ = ("flags", "parent_span_id", "span_id", "trace_id", "tracestate")

    def __init__(self, parent: TraceParent | None, tracestate: str = "") -> None:
        """Continue the trace of `parent` with a new span, or begin one when it is None."""
        self.span_id = new_span_id()
        if parent is None:
            self.trace_id = new_trace_id()
            self.parent_span_id: str | None = None
            self.flags = SAMPLED
            self.tracestate = ""
        else:
            self.trace_id = parent.trace_id
            self.parent_span_id = parent.span_id
            # Bits we do not know must not be passed on (section 3.2.2.5.2).
            self.flags = parent.flags & SAMPLED
            self.tracestate = tracestate

    @property
    def sampled(self) -> bool:
        """Whether the caller asked for this trace to be recorded."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """What an outgoing call carries: this server's span is the parent of the callee's."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"

    def headers(self) -> dict[str, str]:
        """The header fields for an outgoing call."""
        fields = {"traceparent": self.traceparent}
        if self.tracestate:
            fields["tracestate"] = self.tracestate
        return fields

    def __repr__(self) -> str:
        return f"<TraceContext {self.traceparent} parent={self.parent_span_id}>"
