"""The bare C server is a correct server, not only a fast one."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.cpu import read_cpu

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module", params=["epoll", "uring"])
def poller(request: pytest.FixtureRequest) -> str:
    """What the server waits with, which is also how it names itself."""
    return str(request.param)


@pytest.fixture(scope="module")
def bare_server(build: Path, poller: str) -> Iterator[tuple[int, int]]:
    """Process id and port of a running bare C server."""
    with subprocess.Popen(
        [build / f"{poller}_server", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", process.stdout.readline())
        assert found is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            pytest.skip(f"not run: {poller} is not usable here: {process.stderr.read().strip()}")
        yield process.pid, int(found[1])
        assert process.poll() is None, "the server ended during the tests"
        process.kill()


@pytest.fixture
def bare_port(bare_server: tuple[int, int]) -> int:
    return bare_server[1]


def converse(port: int, *parts: bytes, until_eof: bool = False, answers: int = 1) -> bytes:
    """Send the parts, each in a packet of its own; read whole answers, or to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        received = b""
        while until_eof or received.count(b"hello, world") < answers:
            chunk = connection.recv(65536)
            if not chunk:
                break
            received += chunk
        return received


def test_bare_server_answers_with_the_headers_the_others_send(bare_port: int, poller: str) -> None:
    """RFC 9112: status line, fields, an empty line, and as many bytes as Content-Length says."""
    head, _, body = converse(bare_port, GET).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:])
    assert lines[0] == "HTTP/1.1 200 OK"
    assert body == b"hello, world"
    assert fields["content-type"] == "text/plain"
    assert fields["content-length"] == "12"
    assert fields["server"] == poller
    assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", fields["date"])


def test_bare_server_answers_a_request_split_at_every_byte(bare_port: int) -> None:
    assert converse(bare_port, *(GET[i : i + 1] for i in range(len(GET)))).endswith(b"\r\n\r\nhello, world")


def test_bare_server_answers_more_requests_of_one_packet_than_its_output_holds(bare_port: int) -> None:
    """280 requests fit its input, their answers do not fit its output, and no further packet wakes it."""
    assert converse(bare_port, GET * 280, answers=280).count(b"HTTP/1.1 200 OK") == 280


def test_bare_server_waits_for_a_client_that_does_not_read_and_answers_everything(
    bare_server: tuple[int, int],
) -> None:
    """More answers than its output buffer and the socket hold together: it sleeps, and none is lost."""
    pid, bare_port = bare_server
    count = 60_000
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", bare_port))
        sender = threading.Thread(target=connection.sendall, args=(GET * count,))
        sender.start()
        deadline = time.monotonic() + 5
        cpu_s = 1.0
        while cpu_s > 0.015:  # one tick of the clock that CPU time is counted in, not two
            assert time.monotonic() < deadline, "the server keeps its CPU busy while it cannot send"
            before = read_cpu(pid)
            time.sleep(0.3)
            cpu_s = read_cpu(pid).since(before)
        received, tail = 0, b""
        while received < count:
            chunk = connection.recv(1 << 20)
            assert chunk, f"closed after {received} answers"
            data = tail + chunk
            received += data.count(b"hello, world")
            tail = data[-11:]
        sender.join()
    assert received == count


def test_bare_server_keeps_a_pipelined_tail_for_later(bare_port: int) -> None:
    """Two and a half requests in one packet: two answers now, the third when its rest arrives."""
    assert converse(bare_port, GET + GET + GET[:9], GET[9:], answers=3).count(b"HTTP/1.1 200 OK") == 3


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 200),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
        (b"DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ".ljust(8192, b"x"), 431),  # as much as its buffer takes
    ],
)
def test_bare_server_answers_and_closes_where_it_cannot_go_on(
    bare_port: int, request_bytes: bytes, status: int
) -> None:
    received = converse(bare_port, request_bytes, until_eof=True)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1") == 1


def test_bare_server_answers_404_and_goes_on(bare_port: int) -> None:
    received = converse(bare_port, b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" + GET)
    assert received.index(b"HTTP/1.1 404 ") < received.index(b"HTTP/1.1 200 ")
