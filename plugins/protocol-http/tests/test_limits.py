"""Every limit by its effect: status, and that the server goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from stellane.abc import Exchange
from stellane.config import Config, LimitsConfig
from stellane.errors import BodyTooLarge, ConfigError, RemoteProtocolError
from stellane_protocol_http import HttpProtocol
from stellane_protocol_http.codec import load_codec


async def hello(exchange: Exchange) -> None:
    while await exchange.receive():
        pass
    exchange.respond(200, [], b"hello")


async def reading(exchange: Exchange) -> None:
    try:
        while await exchange.receive():
            pass
    except BodyTooLarge:
        exchange.respond(413, [], b"too large")
        return
    except RemoteProtocolError as error:
        exchange.respond(error.status, [], str(error).encode())
        return
    exchange.respond(200, [], b"ok")


@pytest.mark.parametrize("split", [False, True])
def test_request_line_limit(serve: Any, split: bool) -> None:
    """limits.request_line_bytes_max: 414, whole or in pieces, and exactly at the limit it passes."""
    server = serve(hello, limits={"request_line_bytes_max": 200})
    line = b"GET /%s HTTP/1.1\r\n" % (b"x" * (200 - len(b"GET / HTTP/1.1")))
    client = server.connect()
    client.send(line + b"Host: a\r\n\r\n")
    assert client.response().status == 200
    client = server.connect()
    too_long = line.replace(b"/x", b"/xx") + b"Host: a\r\n\r\n"
    if split:
        client.send(too_long[:100])
        time.sleep(0.02)
        too_long = too_long[100:]
    client.send(too_long)
    response = client.response()
    assert response.status == 414
    assert b"limits.request_line_bytes_max" in response.body
    assert client.closed()


@pytest.mark.parametrize("line_bytes", [16_384, 20_000, 60_000])
def test_a_request_line_over_the_parsers_own_limit_is_told_as_one_over_ours(serve: Any, line_bytes: int) -> None:
    """414 and the setting's name, also when the whole head comes at once."""
    client = serve(hello).connect()
    client.send(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * line_bytes))
    response = client.response()
    assert response.status == 414
    assert b"limits.request_line_bytes_max = 8190" in response.body


def test_limits_that_the_parser_cannot_reach_are_refused(codec: str, serve: Any) -> None:
    """What it can reach is served to the last byte; more is a ConfigError, not a setting that does nothing."""
    parser = load_codec(codec)
    line_bytes = min(parser.line_bytes_max, 32_768)
    fields = min(parser.fields_max, 1000)
    server = serve(hello, limits={"request_line_bytes_max": line_bytes, "header_fields_max": fields})
    client = server.connect()
    client.send(b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % (b"x" * (line_bytes - len(b"GET / HTTP/1.1"))))
    assert client.response().status == 200
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * (fields - 1) + b"\r\n")
    assert client.response().status == 200
    for limits in (LimitsConfig(request_line_bytes_max=line_bytes + 1), LimitsConfig(header_fields_max=fields + 1)):
        if codec == "zttp":
            with pytest.raises(ConfigError, match=r'takes at most (16383|100).* http.codec to "h11"'):
                parser.require(limits)
            with pytest.raises(ConfigError, match="takes at most"):
                HttpProtocol().connection_factory(lambda _: None, config=Config(limits=limits), loop=server.loop)
        else:
            parser.require(limits)


def test_endless_request_line(serve: Any) -> None:
    """A line that never ends is answered when it passes the limit, not when memory is full."""
    client = serve(hello).connect()
    client.send(b"GET /" + b"x" * 9000)
    assert client.response().status == 414


def test_header_bytes_limit(serve: Any) -> None:
    """limits.header_bytes_max: 431, complete or endless."""
    server = serve(hello, limits={"header_bytes_max": 1000, "request_line_bytes_max": 200})
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"y" * 900))
    assert client.response().status == 200
    for head in (
        b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"y" * 1000),
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %s\r\n" % (b"y" * 100) * 20,
    ):
        client = server.connect()
        client.send(head)
        response = client.response()
        assert response.status == 431
        assert b"limits.header_bytes_max" in response.body
        assert client.closed()


def test_header_fields_limit(serve: Any) -> None:
    """limits.header_fields_max: 431 for one more."""
    server = serve(hello, limits={"header_fields_max": 10})
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 9 + b"\r\n")
    assert client.response().status == 200
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 10 + b"\r\n")
    assert client.response().status == 431


def test_body_limit_by_content_length(serve: Any) -> None:
    """413 before a byte of the body is read."""
    client = serve(hello, limits={"body_bytes_max": 1000}).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
    response = client.response()
    assert response.status == 413
    assert client.closed()


def test_body_limit_while_chunks_arrive(serve: Any) -> None:
    """The handler is told, can answer, and the connection is over."""
    client = serve(reading, limits={"body_bytes_max": 1000}).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1f4\r\n" + bytes(500) + b"\r\n")
    client.send(b"1f5\r\n" + bytes(501) + b"\r\n")
    assert client.response().status == 413
    assert client.closed()


def test_head_deadline_is_absolute(serve: Any) -> None:
    """408 though bytes keep coming: a slow client cannot hold a connection by dripping."""
    client = serve(hello, http={"head_timeout_s": 0.5}).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
    start = time.monotonic()
    try:
        while time.monotonic() - start < 3:
            client.send(b"X: y\r\n")
            time.sleep(0.1)
    except OSError:
        pass
    assert client.response().status == 408
    assert time.monotonic() - start < 4


def test_body_deadline(serve: Any) -> None:
    """A body that stops arriving ends as 408."""
    client = serve(reading, http={"body_timeout_s": 0.4}).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    assert client.response().status == 408
    assert client.closed()


def test_idle_connections_are_closed(serve: Any) -> None:
    """http.keep_alive_s after a response, http.head_timeout_s before the first request; no 408."""
    server = serve(hello, http={"keep_alive_s": 0.3, "head_timeout_s": 0.3})
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().status == 200
    assert client.closed()
    assert server.connect().closed()


def test_a_slow_handler_is_not_an_idle_connection(serve: Any) -> None:
    """The keep-alive clock runs between requests only."""

    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(1.0)
        exchange.respond(200, [], b"slow")

    client = serve(handler, http={"keep_alive_s": 0.2, "head_timeout_s": 0.2, "body_timeout_s": 0.2}).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().body == b"slow"


def test_a_client_that_does_not_read_is_cut_off(serve: Any) -> None:
    """http.write_timeout_s: no progress, no connection."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        while True:
            await exchange.send(bytes(65_536))

    server = serve(handler, http={"write_timeout_s": 0.5})
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    deadline = time.monotonic() + 5
    while server.protocol.statistics().connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.protocol.statistics().connections == 0


def test_a_client_that_reads_slowly_is_not_cut_off(serve: Any) -> None:
    """http.write_timeout_s counts from the last progress, not from the start of the waiting."""
    size = 60_000_000

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [], bytes(size))

    server = serve(handler, http={"write_timeout_s": 1.0})
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    received, start = 0, time.monotonic()
    while received < size:
        part = client.sock.recv(1_000_000)
        assert part, f"cut off after {received} bytes"
        received += len(part)
        if time.monotonic() - start < 3.0:
            time.sleep(0.1)
    assert time.monotonic() - start > 2.0


def test_connections_over_the_limit_are_refused_with_503(serve: Any) -> None:
    """runtime.max_connections: the next one is told, and a place that is freed is usable again."""
    server = serve(hello, runtime={"max_connections": 2})
    clients = [server.connect() for _ in range(2)]
    for client in clients:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response().status == 200
    extra = server.connect()
    response = extra.response()
    assert response.status == 503
    assert response.headers[b"retry-after"] == b"1"
    extra.sock.close()
    clients[0].sock.close()
    deadline = time.monotonic() + 5
    while server.protocol.statistics().connections > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().status == 200


def test_drain_closes_idle_connections_and_lets_busy_ones_finish(serve: Any) -> None:
    """The response in hand says `Connection: close`."""

    begun = threading.Event()

    async def handler(exchange: Exchange) -> None:
        begun.set()
        await asyncio.sleep(0.4)
        exchange.respond(200, [], b"done")

    server = serve(handler)
    idle, busy = server.connect(), server.connect()
    busy.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert begun.wait(20)
    server.call(server.protocol.drain)
    assert idle.closed()
    response = busy.response()
    assert response.body == b"done"
    assert response.headers[b"connection"] == b"close"
    assert busy.closed()


def test_drain_answers_what_has_arrived_and_has_not_been_read(serve: Any) -> None:
    """A request that was sent before is not lost, be it the first of its connection or a later one."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [], b"done")

    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    server = serve(handler)
    fresh, kept, idle = server.connect(), server.connect(), server.connect()
    kept.send(request)
    assert b"connection" not in kept.response().headers
    deadline = time.monotonic() + 5
    while server.protocol.statistics().connections < 3 and time.monotonic() < deadline:
        time.sleep(0.01)

    def send_and_drain() -> None:
        # On the loop's thread: it cannot read before it drains.
        for client in (fresh, kept):
            client.send(request)
        server.protocol.drain()

    server.call(send_and_drain)
    for client in (fresh, kept):
        response = client.response()
        assert response.body == b"done"
        assert response.headers[b"connection"] == b"close"
        assert client.closed()
    assert idle.closed()


def test_drain_does_not_wait_long_for_the_rest_of_a_request(serve: Any) -> None:
    """A kept connection on which no more than an empty line has arrived has a head's time, not an idle one's."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [], b"done")

    server = serve(handler, http={"head_timeout_s": 0.1})
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().body == b"done"

    def send_and_drain() -> None:
        client.send(b"\r\n")
        server.protocol.drain()

    server.call(send_and_drain)
    assert client.closed()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a?b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"%s / HTTP/1.1\r\nHost: a\r\n\r\n" % (b"M" * 33), 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5_0\r\n\r\nhello", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nhello", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 400),
    ],
)
def test_malformed_heads_are_refused_and_the_connection_closed(serve: Any, request_bytes: bytes, status: int) -> None:
    """RFC 9112 section 11: what could be framed in two ways is answered once and never repaired."""
    client = serve(hello).connect()
    client.send(request_bytes + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    response = client.response()
    assert response.status in (status, 400) if status == 501 else response.status == status
    assert client.closed()


def test_a_long_header_is_told_from_a_long_request_line(serve: Any) -> None:
    """431 and not 414, also when the head comes in one piece."""
    client = serve(hello).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: %b\r\n" % (b"v" * 4000) * 30 + b"\r\n")
    assert client.response().status == 431


def test_other_versions_are_refused(serve: Any) -> None:
    """RFC 9112 section 2.3: this is HTTP/1.1; 1.0, and minor versions to come, are understood."""
    server = serve(hello)
    client = server.connect()
    client.send(b"GET / HTTP/1.2\r\nHost: a\r\n\r\n")
    assert client.response().status == 200
    for version in (b"HTTP/2.0", b"HTTP/0.9"):
        client = server.connect()
        client.send(b"GET / %b\r\nHost: a\r\n\r\n" % version)
        assert client.response().status >= 400
        assert client.closed()
