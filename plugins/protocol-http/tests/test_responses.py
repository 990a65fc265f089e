"""The response side: framing, HEAD, connection reuse, streaming, back-pressure, rule-breaking."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from stellane.abc import Exchange
from stellane.errors import ClientDisconnected, LocalProtocolError

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def hello(exchange: Exchange) -> None:
    exchange.respond(200, [(b"content-type", b"text/plain")], b"hello")


def test_keep_alive_is_the_default_and_close_is_honoured(serve: Any) -> None:
    """RFC 9112 section 9.3."""
    client = serve(hello).connect()
    for _ in range(3):
        client.send(GET)
        assert client.response().body == b"hello"
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    response = client.response()
    assert response.headers[b"connection"] == b"close"
    assert client.closed()


def test_http_1_0_closes_unless_keep_alive_is_asked_for(serve: Any) -> None:
    """RFC 9112 section 9.3, and no chunked coding for HTTP/1.0 (section 7)."""
    server = serve(hello)
    client = server.connect()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.response().body == b"hello"
    assert client.closed()
    client = server.connect()
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert client.response().headers[b"connection"] == b"keep-alive"
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.response().body == b"hello"


def test_streaming_is_chunked_for_1_1_and_ends_with_the_connection_for_1_0(serve: Any) -> None:
    """A body of unknown length has the end its version allows."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        for part in (b"one,", b"", b"two"):
            await exchange.send(part)
        await exchange.end()

    server = serve(handler)
    client = server.connect()
    client.send(GET)
    response = client.response()
    assert response.headers[b"transfer-encoding"] == b"chunked"
    assert response.body == b"one,two"
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    response = client.response()
    assert b"transfer-encoding" not in response.headers
    assert response.body == b"one,two"


def test_streaming_with_content_length(serve: Any) -> None:
    """A declared length is kept to and not chunked."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [(b"content-length", b"6")])
        await exchange.send(b"abc")
        await exchange.send(b"def")
        await exchange.end()

    client = serve(handler).connect()
    client.send(GET + GET)
    for _ in range(2):
        response = client.response()
        assert b"transfer-encoding" not in response.headers
        assert response.body == b"abcdef"


@pytest.mark.parametrize("streamed", [False, True])
def test_head_has_the_headers_and_no_body(serve: Any, streamed: bool) -> None:
    """RFC 9110 section 9.3.2."""

    async def handler(exchange: Exchange) -> None:
        if streamed:
            exchange.start(200, [(b"content-length", b"5")])
            await exchange.send(b"hello")
            await exchange.end()
        else:
            exchange.respond(200, [], b"hello")

    client = serve(handler).connect()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
    for _ in range(2):
        assert client.response(head_only=True).headers[b"content-length"] == b"5"


@pytest.mark.parametrize("status", [204, 304])
def test_bodyless_statuses(serve: Any, status: int) -> None:
    """RFC 9110 section 6.4.1: nothing follows the head, and the connection goes on."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(status, [], b"")

    client = serve(handler).connect()
    client.send(GET + GET)
    for _ in range(2):
        response = client.response()
        assert response.status == status
        assert b"transfer-encoding" not in response.headers
    if status == 204:
        assert b"content-length" not in response.headers


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, [(b"x", b"a\r\nset-cookie: evil=1")], b""),
        (200, [(b"x", b"a\nb")], b""),
        (200, [(b"x", b"a\0b")], b""),
        (200, [(b"x: y", b"a")], b""),
        (200, [(b"x\r\n", b"a")], b""),
        (200, [(b"", b"a")], b""),
        (200, [(b"x", "text")], b""),
        (200, [(b"content-length", b"9")], b"hello"),
        (200, [(b"content-length", b"+5")], b"hello"),
        (200, [(b"content-length", b"5"), (b"content-length", b"6")], b"hello"),
        (204, [], b"hello"),
        (99, [], b""),
        (600, [], b""),
        (101, [], b""),
    ],
)
def test_invalid_responses_are_refused_whole(serve: Any, status: int, headers: Any, body: bytes) -> None:
    """LocalProtocolError, nothing on the wire, and the exchange can still be answered."""
    errors: list[Exception] = []

    async def handler(exchange: Exchange) -> None:
        try:
            exchange.respond(status, headers, body)
        except LocalProtocolError as error:
            errors.append(error)
            exchange.respond(500, [], b"refused")

    client = serve(handler).connect()
    client.send(GET)
    response = client.response()
    assert len(errors) == 1
    assert (response.status, response.body) == (500, b"refused")


def test_fields_that_can_be_read_once_only_are_sent(serve: Any) -> None:
    """`Headers` is any iterable, whatever the answer."""

    async def handler(exchange: Exchange) -> None:
        exchange.respond(int(exchange.path[1:]), (field for field in [(b"x", b"1")]), b"")

    client = serve(handler).connect()
    for status in (200, 204, 304):
        client.send(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % status)
        response = client.response()
        assert (response.status, response.headers[b"x"]) == (status, b"1")


@pytest.mark.parametrize(
    "ids",
    [
        ((b"x", b"a\r\nset-cookie: evil=1"),),
        ((b"x", b"a\0b"),),
        ((b"x: y", b"a"),),
        ((b"x", "text"),),
        ((b"content-length", b"9"),),
    ],
)
def test_invalid_ids_are_refused_whole(serve: Any, ids: Any) -> None:
    """As in any other field, though the head they are put into was made before."""
    errors: list[str] = []

    async def handler(exchange: Exchange) -> None:
        try:
            exchange.respond_with_ids(200, (), b"hello", ids)
        except LocalProtocolError:
            exchange.respond_with_ids(200, (), b"hello", ((b"x", b"fine"),))
            with pytest.raises(LocalProtocolError) as second:
                exchange.respond_with_ids(200, (), b"hello", ((b"x", b"again"),))
            errors.append(str(second.value))

    client = serve(handler).connect()
    for _ in range(2):
        client.send(GET)
        assert client.response().headers[b"x"] == b"fine"
    assert errors[0] == "a response was already started for this request"


def test_ids_leave_no_head_behind(serve: Any) -> None:
    """Each answer has its own, in every kind of answer, and the heads that are kept have none."""

    async def handler(exchange: Exchange) -> None:
        ids = ((b"x-request-id", exchange.header(b"x-request-id") or b"none"),)
        exchange.respond_with_ids(204 if exchange.method == "DELETE" else 200, (), b"", ids)

    server = serve(handler)
    client = server.connect()
    for number in range(20):
        for method, version in ((b"GET", b"1.1"), (b"POST", b"1.1"), (b"HEAD", b"1.1"), (b"DELETE", b"1.1")):
            request_id = b"%b-%d" % (method, number)
            client.send(
                b"%b / HTTP/%b\r\nHost: a\r\nX-Request-Id: %b\r\nContent-Length: 0\r\n\r\n"
                % (method, version, request_id)
            )
            assert client.response(head_only=method == b"HEAD").headers[b"x-request-id"] == request_id
    client.send(b"GET / HTTP/1.0\r\nX-Request-Id: old\r\n\r\n")
    response = client.response()
    assert (response.headers[b"x-request-id"], response.headers[b"connection"]) == (b"old", b"close")
    assert len(server.protocol.head_writer.heads) == 1


def test_response_state_is_enforced(serve: Any) -> None:
    """Each misuse is a LocalProtocolError."""
    errors: list[str] = []

    async def handler(exchange: Exchange) -> None:
        async def expect(action: Any) -> None:
            try:
                result = action()
                if asyncio.iscoroutine(result):
                    await result
            except LocalProtocolError as error:
                errors.append(str(error))

        await expect(lambda: exchange.send(b"x"))
        await expect(exchange.end)
        exchange.start(200, [(b"content-length", b"2")])
        await expect(lambda: exchange.start(200, []))
        await expect(lambda: exchange.respond(200, [], b""))
        await exchange.send(b"a")
        await expect(exchange.end)
        await expect(lambda: exchange.send(b"bc"))

    client = serve(handler).connect()
    client.send(GET)
    deadline = time.monotonic() + 5
    while len(errors) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(errors) == 6, errors


def test_date_and_server_fields(serve: Any) -> None:
    """RFC 9110 section 6.6.1; the application's own win."""

    async def handler(exchange: Exchange) -> None:
        own = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT"), (b"server", b"mine")]
        exchange.respond(200, own if exchange.path == b"/own" else [], b"")

    client = serve(handler).connect()
    client.send(GET)
    headers = client.response().headers
    assert headers[b"server"] == b"stellane"
    assert headers[b"date"].endswith(b" GMT")
    client.send(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n")
    headers = client.response().headers
    assert headers[b"server"] == b"mine"
    assert headers[b"date"] == b"Thu, 01 Jan 1970 00:00:00 GMT"


def test_date_is_fresh_after_the_loop_was_blocked(serve: Any) -> None:
    """A kept head must not outlive its second, however busy the loop was."""

    async def handler(exchange: Exchange) -> None:
        if exchange.path == b"/block":
            time.sleep(2.1)
        exchange.respond(200, [], b"")

    client = serve(handler).connect()
    client.send(GET)
    before = client.response().headers[b"date"]
    client.send(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.response().headers[b"date"] != before


def test_back_pressure_on_downloads(serve: Any) -> None:
    """`send` waits while the client does not read; everything arrives in the end."""
    progress = {"sent": 0}
    part = bytes(65_536)

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        for _ in range(640):
            await exchange.send(part)
            progress["sent"] += len(part)
        await exchange.end()

    client = serve(handler).connect()
    client.send(GET)
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5:
        if progress["sent"] != last:
            last, since = progress["sent"], time.monotonic()
        time.sleep(0.02)
    assert progress["sent"] < 640 * len(part), "the whole body was buffered"
    assert len(client.response().body) == 640 * len(part)


def test_flushed_tells_when_the_kernel_has_everything(serve: Any) -> None:
    """True after the client has read, False when it left first."""
    outcomes: list[bool] = []
    answering, done = threading.Event(), threading.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, [], bytes(30_000_000))
        assert exchange.unsent
        answering.set()
        outcomes.append(await exchange.flushed())
        done.set()

    server = serve(handler)
    client = server.connect()
    client.send(GET)
    assert answering.wait(20)
    assert outcomes == []
    assert len(client.response().body) == 30_000_000
    assert done.wait(20)
    answering.clear()
    done.clear()
    client.send(GET)
    assert answering.wait(20)
    client.sock.close()
    assert done.wait(20)
    assert outcomes == [True, False]
    assert server.errors == []


def test_client_that_leaves_mid_response(serve: Any) -> None:
    """`send` raises ClientDisconnected instead of buffering for nobody."""
    seen = threading.Event()

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        try:
            while True:
                await exchange.send(bytes(65_536))
        except ClientDisconnected:
            seen.set()

    client = serve(handler).connect()
    client.send(GET)
    client.sock.recv(1000)
    client.sock.close()
    assert seen.wait(5)


def test_abort_cuts_the_connection(serve: Any) -> None:
    """A response that went wrong must not look complete."""

    async def handler(exchange: Exchange) -> None:
        exchange.start(200, [])
        await exchange.send(b"half")
        exchange.abort()

    client = serve(handler).connect()
    client.send(GET)
    with pytest.raises((EOFError, ConnectionResetError)):
        client.response()
