"""Requests and records for tests of journals."""

from __future__ import annotations

from stellane.recovery.payload import JournaledRequest
from stellane.recovery.record import RecordType, encode

JOURNAL_ID = 0x5354454C4C414E45
"""The journal id of records made here."""


def make_request(number: int = 1, *, method: str = "POST", body: bytes = b"") -> JournaledRequest:
    """A request whose every part depends on `number`."""
    return JournaledRequest(
        request_id=f"request-{number}",
        received_ns=1_700_000_000_000_000_000 + number,
        method=method,
        target=b"/orders/%d?full=1" % number,
        headers=[(b"host", b"localhost"), (b"idempotency-key", b"key-%d" % number)],
        body=body,
        client=("127.0.0.1", 40_000 + number % 20_000),
        server=("127.0.0.1", 8000),
        traceparent=f"00-{number:032x}-{number:016x}-01",
        body_bytes=len(body),
    )


def make_record(seq: int, payload: bytes = b"", *, type_: RecordType = RecordType.BEGIN) -> bytes:
    """One record envelope; the payload need not fit the type, since engines do not look at it."""
    raw, _ = encode(type_, seq, seq - 1, JOURNAL_ID, 1, 0, payload)
    return raw


def make_records(first: int, count: int, payload_bytes: int = 40) -> list[bytes]:
    """`count` records from seq `first` on, with payloads that differ."""
    return [make_record(seq, seq.to_bytes(8, "little") * (payload_bytes // 8)) for seq in range(first, first + count)]
