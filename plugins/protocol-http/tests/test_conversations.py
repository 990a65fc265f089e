"""Whatever a client sends, and however its bytes are cut: every request is answered, in order, with its own body."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellane.abc import Exchange
from stellane.config import Config, HttpConfig
from stellane_protocol_http import HttpProtocol

KNOWN = b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n"

BODIES = st.lists(st.sampled_from([b"x", b"\r\n", b"\r\n\r\n", KNOWN, KNOWN[:20], b"0\r\n\r\n"]), max_size=3).map(
    b"".join
)


def with_length(number: int, body: bytes) -> tuple[bytes, bytes]:
    """A request with Content-Length, and its answer's body."""
    head = b"POST /l%d HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (number, len(body))
    return head + body, b"/l%d %b" % (number, body)


def chunked(number: int, body: bytes) -> tuple[bytes, bytes]:
    """The same in one chunk."""
    head = b"POST /c%d HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" % number
    data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
    return head + data + b"0\r\n\r\n", b"/c%d %b" % (number, body)


MESSAGES = st.one_of(
    st.just((KNOWN, b"/known ")),
    st.integers(0, 2).map(lambda n: (b"GET /g%d HTTP/1.1\r\nHost: a\r\nX: %d\r\n\r\n" % (n, n), b"/g%d " % n)),
    st.builds(with_length, st.integers(0, 2), BODIES),
    st.builds(chunked, st.integers(0, 2), BODIES),
)


class Wire(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        """The test sends little enough to ignore it."""

    def resume_reading(self) -> None:
        """As above."""


async def answer(exchange: Exchange, pauses: int) -> None:
    """Its path and its body, after some turns of the loop."""
    body = b""
    while part := await exchange.receive():
        body += part
    for _ in range(pauses):
        await asyncio.sleep(0)
    exchange.respond(200, (), b"%b %b" % (exchange.path, body))


def bodies_of(written: bytes) -> list[bytes]:
    """The bodies of the answers; each must be a 200."""
    found = []
    while written:
        head, _, written = written.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        found.append(written[:length])
        written = written[length:]
    return found


async def converse(codec: str, chunks: list[bytes], pauses: int, turns: int) -> bytes:
    """Send the chunks, `turns` of the loop apart, and return what was answered."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    protocol = HttpProtocol()

    def begin(exchange: Exchange) -> None:
        tasks.add(loop.create_task(answer(exchange, pauses)))

    wire = Wire()
    connection: Any = protocol.connection_factory(begin, config=Config(http=HttpConfig(codec=codec)), loop=loop)()
    connection.connection_made(wire)
    for chunk in chunks:
        connection.data_received(chunk)
        for _ in range(turns):
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    assert all(task.done() for task in tasks), "a request waits for more"
    assert not wire.closed
    connection.connection_lost(None)
    await asyncio.gather(*tasks)
    return wire.written


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces, none of them empty."""
    bounds = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


@settings(max_examples=150, deadline=None)
@given(
    messages=st.lists(MESSAGES, min_size=1, max_size=7),
    places=st.none() | st.lists(st.integers(0, 2000), max_size=12),
    pauses=st.integers(0, 3),
    turns=st.integers(0, 3),
)
@pytest.mark.parametrize("codec", ["zttp", "h11"])
def test_every_request_is_answered_in_order_with_its_own_body(
    codec: str, messages: list[tuple[bytes, bytes]], places: list[int] | None, pauses: int, turns: int
) -> None:
    """Bodies and fields hold the bytes of heads that are known by then. Without `places`, a message is a chunk."""
    sent = [KNOWN, *(message for message, _ in messages)]
    chunks = sent if places is None else cut(b"".join(sent), places)
    written = asyncio.run(converse(codec, chunks, pauses, turns))
    assert bodies_of(written) == [b"/known ", *(body for _, body in messages)]
