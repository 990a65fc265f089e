"""Clients that ask and do not read: their answers wait in the client's socket, not in our memory."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from stellane.abc import Exchange

BODY_BYTES = 60_000
REQUESTS = 150
RECEIVE_BUFFER_BYTES = 65_536


@pytest.fixture(params=["at once", "later"])
def large(serve: Any, request: pytest.FixtureRequest) -> Any:
    """`large(http=…)`: a server of large answers, and the paths it has begun to answer."""

    def start(**tables: Any) -> tuple[Any, list[bytes]]:
        return _server(serve, tables, at_once=request.param == "at once")

    return start


def _server(serve: Any, tables: dict[str, Any], *, at_once: bool) -> tuple[Any, list[bytes]]:
    begun: list[bytes] = []

    def respond(exchange: Exchange) -> None:
        begun.append(exchange.path)
        exchange.respond(200, (), exchange.path.ljust(BODY_BYTES, b"."))

    async def handler(exchange: Exchange) -> None:
        while await exchange.receive():
            pass
        respond(exchange)

    server = serve(handler, **tables)
    if at_once:
        server.protocol.begin = respond
    return server, begun


def _connect(server: Any) -> Any:
    client = server.connect()
    # The system gives a reader megabytes otherwise; the server's side grows with it.
    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    return client


def _requests() -> bytes:
    return b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(REQUESTS))


def _settled(begun: list[bytes]) -> int:
    """How many requests have begun once no more do."""
    count = 0
    while not count or count != len(begun):
        count = len(begun)
        time.sleep(0.1)
    return count


@pytest.mark.parametrize("half_close", [False, True])
def test_no_request_starts_behind_unread_answers(large: Any, half_close: bool) -> None:
    """And all are answered, in order, once the client reads, also one that has said all it has to say."""
    server, begun = large()
    client = _connect(server)
    client.send(_requests())
    if half_close:
        client.sock.shutdown(socket.SHUT_WR)
    # What the sockets hold is the system's affair.
    assert _settled(begun) < REQUESTS / 2
    for number in range(REQUESTS):
        assert client.response().body.rstrip(b".") == b"/%d" % number
    if half_close:
        assert client.closed()
    else:
        client.send(b"GET /more HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.response().body.startswith(b"/more")


def test_the_last_answer_of_a_client_that_closed_its_side_ends_the_connection_once(serve: Any) -> None:
    """asyncio's selector transport loses its protocol twice when it is closed while it resumes writing."""
    begun: list[bytes] = []

    async def handler(exchange: Exchange) -> None:
        exchange.respond(200, (), bytes(8_000_000))
        begun.append(exchange.path)
        await exchange.flushed()  # as the journal waits for it: writing resumes when nothing is left

    server = serve(handler)
    failures: list[Any] = []
    server.call(lambda: server.loop.set_exception_handler(lambda _loop, failure: failures.append(failure)))
    client = _connect(server)
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    _settled(begun)
    client.sock.shutdown(socket.SHUT_WR)
    assert len(client.rest()) > 8_000_000
    server.call(lambda: None)  # a turn later
    assert not failures


def test_requests_that_come_one_by_one_wait_too(large: Any) -> None:
    """Each in a packet of its own, and known by its bytes."""
    server, begun = large()
    client = _connect(server)
    for _ in range(REQUESTS):
        client.send(b"GET /same HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.001)
    assert _settled(begun) < REQUESTS / 2
    for _ in range(REQUESTS):
        assert client.response().body.startswith(b"/same")


def test_a_client_that_never_reads_is_cut_off(large: Any) -> None:
    """http.write_timeout_s counts for it as for one that stops in the middle of an answer."""
    server, begun = large(http={"write_timeout_s": 0.2})
    client = _connect(server)
    client.send(_requests())
    assert _settled(begun) < REQUESTS
    deadline = time.monotonic() + 10
    while server.call(server.protocol.statistics).connections and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.call(server.protocol.statistics).connections == 0


@pytest.mark.parametrize("unread", [b"", b"GET /more HTTP/1.1\r\nHost: a\r\n\r\n"], ids=["all-read", "more-unread"])
def test_a_stalled_client_does_not_hold_up_a_drain(large: Any, unread: bytes) -> None:
    """What was answered is still its to read; what has not begun is not, nor is what it sends meanwhile read."""
    server, begun = large()
    client = _connect(server)
    client.send(_requests())
    assert _settled(begun) < REQUESTS
    server.call(lambda: (client.send(unread), server.protocol.drain()))
    count = len(begun)
    for number in range(count):
        assert client.response().body.rstrip(b".") == b"/%d" % number
    assert client.closed()
    assert len(begun) == count


def test_a_body_that_ended_early_behind_unread_answers_is_noticed(large: Any) -> None:
    """The client has closed its side before its last request was whole: nobody waits for the rest."""
    server, _begun = large()
    client = _connect(server)
    client.send(_requests() + b"POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
    client.sock.shutdown(socket.SHUT_WR)
    for number in range(REQUESTS):
        assert client.response().body.rstrip(b".") == b"/%d" % number
    client.rest()  # 5 s at most; http.body_timeout_s is 30


@pytest.mark.parametrize("at_once", [False, True])
def test_a_pause_between_two_requests_holds_up_the_third(serve: Any, at_once: bool) -> None:
    """The second was parsed already; the time in which the client must read runs all the same."""
    begun: list[bytes] = []

    def respond(exchange: Exchange) -> None:
        begun.append(exchange.path)
        exchange.respond(200, (), b"")

    async def handler(exchange: Any) -> None:
        respond(exchange)
        if exchange.path == b"/0":
            exchange.connection.pause_writing()

    server = serve(handler, http={"write_timeout_s": 0.2})
    later = server.protocol.begin
    server.protocol.begin = lambda exchange: (
        respond(exchange) if at_once and exchange.path != b"/0" else later(exchange)
    )
    client = server.connect()
    client.send(b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\nGET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [client.response().status for _ in range(2)] == [200, 200]
    client.send(b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")
    assert client.closed()
    assert begun == [b"/0", b"/1"]
