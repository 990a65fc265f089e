"""Request ids: the client's own when it is fit to be logged, else a UUIDv7."""

from __future__ import annotations

import time

from stellane.abc import Exchange
from stellane.app.random_bits import random_bits

REQUEST_ID_BYTES_MAX = 128
"""A longer x-request-id is not taken over."""

_NS_PER_MS = 1_000_000


def new_request_id() -> str:
    """A UUIDv7 as text (RFC 9562 section 5.7): sorts by time, to about 0.25 µs.

    The 12 bits after the milliseconds hold their fraction (section 6.2, method 3), the other 62
    are random.
    """
    milliseconds, fraction = divmod(time.time_ns(), _NS_PER_MS)
    high = (milliseconds & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (fraction << 12) // _NS_PER_MS
    digits = f"{high << 64 | 0b10 << 62 | random_bits(62):032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def request_id_of(exchange: Exchange) -> tuple[str, bool]:
    """The request's id, and whether it was given: by the journal, or by the client.

    A client's x-request-id counts when it is 1 to 128 visible ASCII characters; anything else
    could forge or break log lines.
    """
    journaled = exchange.journal_request_id
    if journaled is not None:
        return journaled, True
    value = exchange.header(b"x-request-id")
    if value is not None and 0 < len(value) <= REQUEST_ID_BYTES_MAX and value.isascii():
        text = value.decode("ascii")
        if text.isprintable() and " " not in text:
            return text, True
    return new_request_id(), False
