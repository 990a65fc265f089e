"""Heads recognised by their bytes: faster, and never a way to smuggle a request."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import zttp

from stellane.abc import Exchange
from stellane_protocol_http.connection import H1Connection
from stellane_protocol_http.known_heads import HEAD_BYTES_MAX, HEADS_MAX, KnownHeads, is_one_head

GET = b"GET /known HTTP/1.1\r\nHost: a\r\n\r\n"


async def show(exchange: Exchange) -> None:
    body = b""
    while part := await exchange.receive():
        body += part
    fields = b",".join(b"%b=%b" % field for field in exchange.headers)
    exchange.respond(200, [], b"%b %b %b" % (exchange.path, fields, body))


def test_repeated_heads_give_the_same_request_on_any_connection(serve: Any) -> None:
    """The second time is answered as the first, and the connection goes on with other requests."""
    server = serve(show)
    first, second = server.connect(), server.connect()
    for client in (first, first, second, first):
        client.send(GET)
        assert client.response().body == b"/known host=a "
    assert server.call(lambda: server.protocol.known_heads.heads.get(GET)) is not None, "it was not remembered"
    first.send(b"POST /other HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi")
    assert first.response().body == b"/other host=a,content-length=2 hi"
    first.send(GET)
    assert first.response().body == b"/known host=a "


def test_known_bytes_inside_another_request_are_not_a_request(serve: Any) -> None:
    """As a body, as the rest of a body, and as the value of a field that has begun."""
    server = serve(show)
    client = server.connect()
    client.send(GET)
    assert client.response().status == 200
    client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(GET))
    time.sleep(0.05)
    client.send(GET)
    assert client.response().body == b"/p host=a,content-length=%d %b" % (len(GET), GET)
    client.send(b"GET /q HTTP/1.1\r\nX: ")
    time.sleep(0.05)
    client.send(GET)
    assert client.response().body == b"/q x=GET /known HTTP/1.1,host=a "


def test_known_bytes_behind_a_pipelined_half_head_are_not_a_request(serve: Any) -> None:
    """A chunk that ends in the middle of a second head leaves the codec with a rest."""
    server = serve(show)
    client = server.connect()
    client.send(GET)
    assert client.response().status == 200
    client.send(GET + b"GET /r HTTP/1.1\r\nX: ")
    assert client.response().body == b"/known host=a "
    client.send(GET)
    assert client.response().body == b"/r x=GET /known HTTP/1.1,host=a "


def test_heads_that_need_thought_are_not_remembered(serve: Any) -> None:
    """Connection: close, HTTP/1.0 and HEAD take the long way every time."""
    server = serve(show)
    for head in (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        for _ in range(2):
            client = server.connect()
            client.send(head)
            assert client.response(head_only=head.startswith(b"HEAD")).status == 200
        assert server.call(lambda head=head: server.protocol.known_heads.heads.get(head)) is None


def test_memory_is_bounded() -> None:
    """known_heads.HEADS_MAX heads of at most HEAD_BYTES_MAX bytes."""
    heads = KnownHeads()
    known = ("GET", b"/known", zttp.Connection(zttp.SERVER).receive_event(GET), False)
    for number in range(HEADS_MAX * 2 + 1):
        heads.remember(b"%d" % number, known)
    assert sum(heads.heads.get(b"%d" % number) is not None for number in range(HEADS_MAX * 2 + 1)) <= HEADS_MAX
    longest = b"x" * (HEAD_BYTES_MAX - 4) + b"\r\n\r\n"
    assert is_one_head(longest)
    assert not is_one_head(b"x" + longest)
    assert not is_one_head(b"a\r\n\r\nb\r\n\r\n")
    assert not is_one_head(b"a\r\n\r\nb")
    assert not is_one_head(b"a")


def test_a_head_with_a_body_is_never_taken_for_the_request_behind_it(serve: Any) -> None:
    """Sent alone, as many clients do, its bytes would give the next request's answer to everybody who sends them."""
    server = serve(show)
    head = b"POST /pay HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
    for behind in (GET, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"):
        client = server.connect()
        for _ in range(2):
            client.send(head)
            time.sleep(0.05)
            client.send(b"12345")
            assert client.response().body == b"/pay host=a,content-length=5 12345"
            client.send(behind)
            assert client.response().status == 200
        assert server.call(lambda: server.protocol.known_heads.heads.get(head)) is None


def test_empty_lines_alone_are_not_the_request_behind_them(serve: Any) -> None:
    """RFC 9112 section 2.2 lets a client send an empty line first."""
    server = serve(show)
    client = server.connect()
    client.send(b"\r\n\r\n")
    time.sleep(0.05)
    client.send(GET)
    client.response()
    assert server.call(lambda: server.protocol.known_heads.heads.get(b"\r\n\r\n")) is None


def test_a_rest_in_the_codec_is_not_forgotten_after_a_body(serve: Any) -> None:
    """Behind a request with a body came a whole head and half of another; what follows is the other half."""
    server = serve(show)
    other = server.connect()
    other.send(GET)
    assert other.response().status == 200
    client = server.connect()
    client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    time.sleep(0.05)
    client.send(b"12345")
    assert client.response().body == b"/p host=a,content-length=5 12345"
    client.send(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /r HTTP/1.1\r\nX: ")
    assert client.response().body == b"/x host=a "
    client.send(GET)
    assert client.response().body == b"/r x=GET /known HTTP/1.1,host=a "
    client.send(b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
    time.sleep(0.05)
    client.send(b"12345GET /x HTTP/1.1\r\nHost: a\r\n\r\nGET /r HTTP/1.1\r\nX: ")
    assert client.response().body == b"/p host=a,content-length=5 12345"
    assert client.response().body == b"/x host=a "
    client.send(GET)
    assert client.response().body == b"/r x=GET /known HTTP/1.1,host=a "


def test_a_connection_knows_heads_again_after_a_body(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first head behind it shows that the codec holds nothing; the codec does not see those after that."""
    parsed: list[bytes] = []
    parse = H1Connection.parse
    monkeypatch.setattr(H1Connection, "parse", lambda self, data: (parsed.append(data), parse(self, data))[1])
    client = serve(show).connect()
    body = b"POST /p HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12345"
    for message in (GET, body, GET, GET, GET):
        client.send(message)
        assert client.response().status == 200
    assert parsed == [GET, body, GET]


@pytest.mark.parametrize("cut", [2, 3])
def test_a_chunk_that_begins_with_the_end_of_a_head_holds_another_one(serve: Any, cut: int) -> None:
    """It ends with the only empty line in it, and is not one head for all that."""
    let_go = threading.Event()

    async def handler(exchange: Exchange) -> None:
        if exchange.path == b"/a":
            while not let_go.is_set():
                await asyncio.sleep(0.001)
        await show(exchange)

    client = serve(handler).connect()
    client.send(GET)
    assert client.response().body == b"/known host=a "
    both = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n"
    middle = both.index(b"\r\n\r\n") + cut
    client.send(both[:middle])
    time.sleep(0.05)
    client.send(both[middle:])
    time.sleep(0.05)
    let_go.set()
    assert [client.response().body for _ in range(2)] == [b"/a host=a ", b"/b host=a "]
    client.send(GET)
    assert client.response().body == b"/known host=a "


def test_a_target_in_absolute_form_is_the_same_path_every_time(serve: Any) -> None:
    """RFC 9112 section 3.2.2; and `*` of OPTIONS, section 3.2.4."""
    server = serve(show)
    client = server.connect()
    for _ in range(3):
        client.send(b"GET http://a/absolute?q HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response().body == b"/absolute host=a "
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response().body == b"* host=a "


def test_a_request_behind_a_body_in_one_chunk_is_not_that_of_the_head_before(serve: Any) -> None:
    """It is parsed without a chunk of its own, while the bytes of the head before are still at hand."""
    server = serve(show)
    head = b"POST /pay HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\n"
    client = server.connect()
    client.send(head)
    time.sleep(0.05)
    client.send(b"12345" + GET)
    assert client.response().body == b"/pay host=b,content-length=5 12345"
    assert client.response().body == b"/known host=a "
    assert server.call(lambda: server.protocol.known_heads.heads.get(head)) is None


def test_the_rest_of_a_head_is_not_remembered_as_that_head(serve: Any) -> None:
    """It looks like a whole one, and would be answered as the request it ended."""
    server = serve(show)
    rest = b"GET /rest HTTP/1.1\r\nHost: a\r\n\r\n"
    first, second = server.connect(), server.connect()
    first.send(b"GET /begun HTTP/1.1\r\nX: ")
    time.sleep(0.05)
    first.send(rest)
    assert first.response().body == b"/begun x=GET /rest HTTP/1.1,host=a "
    second.send(rest)
    assert second.response().body == b"/rest host=a "
