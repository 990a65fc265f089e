"""The request side: methods, targets, bodies, pipelining, back-pressure, disconnects."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import threading
import time
from typing import Any

import pytest

from stellane.abc import Exchange
from stellane.errors import ClientDisconnected

TEXT = [(b"content-type", b"text/plain")]


async def read_all(exchange: Exchange) -> bytes:
    body = b""
    while part := await exchange.receive():
        body += part
    return body


async def echo(exchange: Exchange) -> None:
    body = await read_all(exchange)
    exchange.respond(200, TEXT, b"%s %s %s %s" % (exchange.method.encode(), exchange.path, exchange.query, body))


def test_request_line_reaches_the_handler(serve: Any) -> None:
    """Method, path and query arrive as sent."""
    client = serve(echo).connect()
    client.send(b"PATCH /a%20b/c?x=1&y HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    response = client.response()
    assert response.status == 200
    assert response.body == b"PATCH /a%20b/c x=1&y hi"


def test_absolute_form_and_asterisk_form(serve: Any) -> None:
    """RFC 9112 section 3.2.2 and 3.2.4."""
    client = serve(echo).connect()
    client.send(b"GET http://a/p?q HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().body == b"GET /p q "
    client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().body == b"OPTIONS *  "


def test_headers_are_lower_case_in_order_and_addresses_are_known(serve: Any) -> None:
    """ASGI wants lower-case names; repeated fields stay repeated."""
    seen: dict[str, Any] = {}

    async def handler(exchange: Exchange) -> None:
        seen.update(headers=exchange.headers, client=exchange.client, server=exchange.server)
        seen.update(one=exchange.header(b"x-a"), none=exchange.header(b"x-none"), scheme=exchange.scheme)
        exchange.respond(200, [], b"")

    client = serve(handler).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\nx-a: 2\r\n\r\n")
    assert client.response().status == 200
    assert seen["headers"] == [(b"host", b"a"), (b"x-a", b"1"), (b"x-a", b"2")]
    assert seen["one"] == b"1"
    assert seen["none"] is None
    assert seen["client"] == client.sock.getsockname()
    assert seen["server"] == client.sock.getpeername()
    assert seen["scheme"] == "http"


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_any_segmentation_gives_the_same_request(serve: Any, step: int) -> None:
    """How the bytes were cut on their way changes nothing."""
    client = serve(echo).connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;e=1\r\ndefg\r\n0\r\n\r\n" * 2
    )
    for start in range(0, len(data), step):
        client.send(data[start : start + step])
    assert client.response().body == b"POST /x  abcdefg"
    assert client.response().body == b"POST /x  abcdefg"


def test_one_empty_line_before_a_request_line_is_passed_over(serve: Any) -> None:
    """RFC 9112 section 2.2: with the request or ahead of it, on a fresh connection or a used one; two are refused."""
    get = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
    server = serve(echo)
    client = server.connect()
    for _ in range(2):
        client.send(b"\r\n" + get)
        assert client.response().body == b"GET /x  "
        client.send(b"\r\n")
        time.sleep(0.05)
        client.send(get)
        assert client.response().body == b"GET /x  "
    client.send(get[:-2])
    time.sleep(0.05)
    client.send(get[-2:])
    assert client.response().body == b"GET /x  "
    client.send(b"\r\n\r\n" + get)
    assert client.response().status == 400
    assert client.closed()


def test_a_websocket_handshake_is_told_of_once(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It gets an ordinary answer, which its sender may not understand. Offers of h2c are common and mean little."""
    client = serve(echo).connect()
    for wanted in (b"h2c", b"websocket", b"WebSocket"):
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: %s\r\n\r\n" % wanted)
        assert client.response().status == 200
        assert caplog.text.count("WebSocket") == (0 if wanted == b"h2c" else 1)


def test_a_tls_handshake_is_refused_at_once(codec: str, serve: Any) -> None:
    """https:// at this port: there is no end of a line to wait for, and the client should know what is wrong."""
    client = serve(echo).connect()
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"r" * 40)
    response = client.response()
    assert response.status == 400
    assert b"TLS" in response.body or codec == "h11"  # which sees for itself that no request line begins so
    assert client.closed()


def test_pipelined_requests_are_answered_in_order(serve: Any) -> None:
    """Handlers that finish out of order still answer in order."""

    async def handler(exchange: Exchange) -> None:
        number = int(exchange.path[1:])
        await asyncio.sleep(0.02 if number % 2 else 0)
        exchange.respond(200, [], b"%d" % number)

    server = serve(handler)
    client = server.connect()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(16)))
    assert [client.response().body for _ in range(16)] == [b"%d" % number for number in range(16)]


def test_pipelined_requests_of_a_client_that_closed_its_side_are_answered(serve: Any) -> None:
    """All that came before the end came whole: printf | nc is such a client."""
    release = threading.Event()

    async def handler(exchange: Exchange) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)
        exchange.respond(200, [], exchange.path)

    server = serve(handler)
    client = server.connect()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3)))
    client.sock.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    release.set()
    assert [client.response().body for _ in range(3)] == [b"/0", b"/1", b"/2"]
    assert client.closed()


def test_pipelined_bodies_do_not_leak_into_the_next_request(serve: Any) -> None:
    """A handler that answers without reading its body leaves the connection at the next request."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [], exchange.path)

    client = serve(handler).connect()
    body = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    client.send(b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().body == b"/a"
    assert client.response().body == b"/b"


def test_unread_body_beyond_the_limit_costs_the_connection(serve: Any) -> None:
    """A response before 1 MB of unread body arrives whole, and the connection is closed."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [], b"early")

    client = serve(handler).connect()
    client.send(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(200_000))
    assert client.response().body == b"early"
    threading.Thread(target=_send_quietly, args=(client, bytes(800_000))).start()
    assert client.closed()


def _send_quietly(client: Any, data: bytes) -> None:
    try:
        client.send(data)
    except OSError:
        return


def test_expect_100_continue_is_answered_when_the_body_is_read(serve: Any) -> None:
    """RFC 9110 section 10.1.1: 100 comes first, and only when the handler wants the body."""
    client = serve(echo).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    status, _ = client.read_head()
    assert status == 100
    client.send(b"ok")
    assert client.response().body == b"POST /  ok"


def test_expect_100_continue_is_not_answered_when_the_body_is_not_wanted(serve: Any) -> None:
    """The final status comes at once, and the connection closes: what follows could be either."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(403, [], b"no")

    client = serve(handler).connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    response = client.response()
    assert response.status == 403
    assert response.headers[b"connection"] == b"close" or client.closed()


def test_back_pressure_on_uploads(serve: Any) -> None:
    """A handler that does not read stops the client instead of filling memory."""
    release = threading.Event()
    digest = hashlib.sha256()

    async def handler(exchange: Exchange) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)
        while part := await exchange.receive():
            digest.update(part)
        exchange.respond(200, [], digest.hexdigest().encode())

    client = serve(handler).connect()
    size = 40_000_000
    body = bytes(range(256)) * (size // 256)
    sent = 0
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
    client.sock.setblocking(False)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.5:
        try:
            sent += client.sock.send(body[sent : sent + 1_000_000])
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < size / 2, "the server took the whole body though nobody read it"
    release.set()
    client.sock.settimeout(10)
    client.send(body[sent:])
    assert client.response().body == hashlib.sha256(body).hexdigest().encode()


def test_pipelined_bytes_behind_a_slow_handler_are_bounded(serve: Any) -> None:
    """Reading stops when too much waits behind the request in hand."""
    release = threading.Event()

    async def handler(exchange: Exchange) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)
        exchange.respond(200, [], b"")

    client = serve(handler).connect()
    request = b"GET / HTTP/1.1\r\nHost: a\r\nX: %s\r\n\r\n" % (b"y" * 4000)
    data, sent = request * 5000, 0
    client.sock.setblocking(False)
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < 0.5 and sent < len(data):
        try:
            sent += client.sock.send(data[sent : sent + 1_000_000])
            quiet_since = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    assert sent < len(data)
    release.set()


def test_client_that_leaves_mid_body_is_noticed(serve: Any) -> None:
    """`receive` raises ClientDisconnected; no response is tried."""
    seen: list[BaseException] = []

    async def handler(exchange: Exchange) -> None:
        try:
            await read_all(exchange)
        except ClientDisconnected as error:
            seen.append(error)

    server = serve(handler)
    client = server.connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    time.sleep(0.05)
    client.sock.close()
    deadline = time.monotonic() + 5
    while not seen and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(seen) == 1


def test_client_that_leaves_mid_handler_is_noticed(serve: Any) -> None:
    """`wait_disconnected` returns and `disconnected` is true."""
    seen = threading.Event()

    async def handler(exchange: Exchange) -> None:
        await exchange.wait_disconnected()
        if exchange.disconnected:
            seen.set()

    server = serve(handler)
    client = server.connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    time.sleep(0.05)
    client.sock.close()
    assert seen.wait(5)


def test_half_closed_client_still_gets_its_answer(serve: Any) -> None:
    """A client may end its side after the request, as `nc -N` does."""

    async def handler(exchange: Exchange) -> None:
        await asyncio.sleep(0.05)
        exchange.respond(200, [], b"late")

    client = serve(handler).connect()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    client.sock.shutdown(socket.SHUT_WR)
    assert client.response().body == b"late"
    assert client.closed()
