"""W3C Trace Context: what is taken over from a caller, and what is passed on."""

from __future__ import annotations

import random
import re
import subprocess
import sys

import pytest

from stellane.app.context import Context
from stellane.app.request_id import new_request_id, request_id_of
from stellane.app.resources import Resources
from stellane.app.trace import (
    TraceContext,
    TraceParent,
    new_span_id,
    new_trace_id,
    new_traceparent,
    parse_traceparent,
    parse_tracestate,
)
from stellane.recovery.context import RecoveryContext
from stellane.testing import MemoryExchange

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (f"00-{TRACE}-{SPAN}-01", 1),
        (f"00-{TRACE}-{SPAN}-00", 0),
        (f"00-{TRACE}-{SPAN}-ff", 255),
        (f"01-{TRACE}-{SPAN}-01", 1),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", 1),
        (f"cc-{TRACE}-{SPAN}-01-", 1),
    ],
)
def test_valid_traceparents(value: str, flags: int) -> None:
    assert parse_traceparent(value) == TraceParent(TRACE, SPAN, flags)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-what-the-future-will-be-like",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01.what-the-future-will-be-like",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-0",
        f"00-{TRACE}-{SPAN}-0X",
        f"0x-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}.-{SPAN}-01",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00_{TRACE}_{SPAN}_01",
    ],
)
def test_invalid_traceparents_are_as_none(value: str | None) -> None:
    """W3C Trace Context section 3.2.2; most are cases of the W3C's own test suite."""
    assert parse_traceparent(value) is None


@pytest.mark.parametrize(
    ("fields", "state"),
    [
        ([], ""),
        (["foo=1"], "foo=1"),
        (["foo=1,bar=2"], "foo=1,bar=2"),
        (["foo=1", "bar=2"], "foo=1,bar=2"),
        (["foo=1 ,\tbar=2 ,,", ""], "foo=1,bar=2"),
        (["tenant1@vendor=a-b_c*d/e"], "tenant1@vendor=a-b_c*d/e"),
        (["a=b c=d"], ""),
        (["a=b c"], "a=b c"),
        (["1a-_*/@b-_*/=x"], "1a-_*/@b-_*/=x"),
        (["a=" + "!~" * 128], "a=" + "!~" * 128),
        (["foo"], ""),
        (["foo="], ""),
        (["=1"], ""),
        (["Foo=1"], ""),
        (["1foo=1"], ""),
        (["foo @bar=1"], ""),
        (["foo@=1"], ""),
        (["foo@bar@baz=1"], ""),
        (["foo=1,foo=2"], ""),
        (["foo=é"], ""),
        (["foo=a=b"], ""),
        (["z" * 257 + "=1"], ""),
        (["t" * 242 + "@v=1"], ""),
        (["t@" + "v" * 15 + "=1"], ""),
        (["a=" + "x" * 257], ""),
    ],
)
def test_tracestate_is_taken_whole_or_not_at_all(fields: list[str], state: str) -> None:
    assert parse_tracestate(fields) == state


def test_tracestate_has_at_most_32_members() -> None:
    assert parse_tracestate([",".join(f"k{n}=1" for n in range(32))]) != ""
    assert parse_tracestate([",".join(f"k{n}=1" for n in range(33))]) == ""


def test_a_tracestate_over_512_bytes_loses_long_members_first_then_the_last() -> None:
    long = "long=" + "x" * 200
    members = [f"k{n:02}=" + "y" * 40 for n in range(10)]
    assert parse_tracestate([",".join([members[0], long, *members[1:]])]) == ",".join(members)
    twelve = [f"k{n:02}=" + "y" * 40 for n in range(12)]
    assert parse_tracestate([",".join(twelve)]) == ",".join(twelve[:11])


def test_a_span_continues_its_callers_trace() -> None:
    trace = TraceContext(TraceParent(TRACE, SPAN, 0xFF), "a=1")
    assert (trace.trace_id, trace.parent_span_id, trace.sampled) == (TRACE, SPAN, True)
    assert trace.span_id != SPAN
    assert trace.headers() == {"traceparent": f"00-{TRACE}-{trace.span_id}-01", "tracestate": "a=1"}
    unsampled = TraceContext(TraceParent(TRACE, SPAN, 0x02))
    assert not unsampled.sampled
    assert unsampled.headers() == {"traceparent": f"00-{TRACE}-{unsampled.span_id}-00"}


def test_a_trace_that_begins_here_is_sampled_and_has_no_parent() -> None:
    trace = TraceContext(None, "ignored=1")
    assert trace.parent_span_id is None
    assert trace.sampled
    assert parse_traceparent(trace.traceparent) == (trace.trace_id, trace.span_id, 1)
    assert "tracestate" not in trace.headers()
    assert parse_traceparent(new_traceparent()) is not None


def context(*headers: tuple[bytes, bytes]) -> Context:
    return Context(MemoryExchange(headers=headers), Resources())


def test_ctx_trace_reads_both_fields() -> None:
    value = f"00-{TRACE}-{SPAN}-00".encode()
    trace = context((b"Traceparent", value), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")).trace
    assert (trace.trace_id, trace.parent_span_id, trace.sampled, trace.tracestate) == (TRACE, SPAN, False, "a=1,b=2")


def test_two_traceparents_are_none_and_tracestate_goes_with_them() -> None:
    value = f"00-{TRACE}-{SPAN}-01".encode()
    for headers in ([(b"traceparent", value)] * 2, [(b"traceparent", b"bad")], []):
        trace = context(*headers, (b"tracestate", b"a=1")).trace
        assert trace.trace_id != TRACE
        assert (trace.parent_span_id, trace.tracestate) == (None, "")


def test_a_replay_stays_in_its_trace_with_a_new_span() -> None:
    ctx = context((b"traceparent", b"00-11111111111111111111111111111111-2222222222222222-01"))
    ctx.recovery = RecoveryContext(
        request_id="r-1",
        attempt=2,
        max_attempts=3,
        first_received_ns=1,
        crash=None,
        response_started=False,
        idempotency_key="k",
        fencing_token=(4 << 32) | 2,
        traceparent=f"00-{TRACE}-{SPAN}-01",
        original_span_id=SPAN,
    )
    assert (ctx.trace.trace_id, ctx.trace.parent_span_id) == (TRACE, SPAN)
    assert (ctx.request_id, ctx.idempotency_key, ctx.fencing_token) == ("r-1", "k", (4 << 32) | 2)


def test_request_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_request_id() for _ in range(2000)]
    assert len(set(ids)) == len(ids)
    pattern = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
    assert all(pattern.fullmatch(one) for one in ids)
    # Equal to the clock's tick of 0.25 µs, so only ids further apart than that must be in order.
    assert [one[:18] for one in ids] == sorted(one[:18] for one in ids)


@pytest.mark.parametrize("value", [b"a", b"!~", b"x" * 128, b"order-1/2"])
def test_a_fit_request_id_is_taken_over(value: bytes) -> None:
    assert request_id_of(MemoryExchange(headers=[(b"x-request-id", value)])) == (value.decode(), True)


@pytest.mark.parametrize("value", [b"", b"x" * 129, b"a b", b"a\tb", "é".encode(), b"\x7f", b"\xff", b"a\x00"])
def test_an_unfit_request_id_is_replaced(value: bytes) -> None:
    """It would break, or forge, the log lines it is written to."""
    exchange = MemoryExchange(headers=[(b"x-request-id", value)])
    made, given = request_id_of(exchange)
    assert not given
    assert made != value.decode("latin-1")
    exchange.journal_request_id = "on-record"
    assert request_id_of(exchange) == ("on-record", True)


def test_a_seeded_random_module_does_not_repeat_ids() -> None:
    random.seed(1)
    first = new_trace_id(), new_span_id()
    random.seed(1)
    assert (new_trace_id(), new_span_id()) != first


FORK = """
import os
from stellane.app.trace import new_trace_id
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, new_trace_id().encode())
    os._exit(0)
os.wait()
print(os.read(read, 100).decode(), new_trace_id())
"""


def test_a_forked_worker_draws_other_ids() -> None:
    """Two processes that go on from one generator's state would give every request the same ids."""
    child, parent = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, check=True, timeout=20
    ).stdout.split()
    assert child != parent
