"""The load generator counts rightly and finds every kind of wrong answer."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.load import LoadError, LoadResult, Request, parse_c_result, parse_wrk_output, run_c_generator

CPU = min(os.sched_getaffinity(0))
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nhello, world"


@contextlib.contextmanager
def misbehaving(answer: Callable[[socket.socket, int], None]) -> Iterator[int]:
    """A server that calls `answer(connection, n)` for the n-th request of each connection."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            number = 0
            while connection.recv(65536):
                answer(connection, number)
                number += 1

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def run_load(build: Path, port: int, request: Request | None = None) -> LoadResult:
    """A short run of the C generator with four connections."""
    return run_c_generator(
        build / "load",
        port=port,
        request=request or Request(),
        connections=4,
        seconds=0.2,
        cpu=CPU,
        at_start=lambda: None,
        at_end=lambda: None,
    )


def test_generator_accepts_right_answers_and_counts_each_once(build: Path) -> None:
    """The count of the generator is the count of the server, within its measured window."""
    answered = 0
    at_start = at_end = 0
    lock = threading.Lock()

    def answer(connection: socket.socket, _number: int) -> None:
        nonlocal answered
        with lock:
            answered += 1
        connection.sendall(GOOD)

    def start() -> None:
        nonlocal at_start
        at_start = answered

    def end() -> None:
        nonlocal at_end
        at_end = answered

    with misbehaving(answer) as port:
        result = run_c_generator(
            build / "load",
            port=port,
            request=Request(),
            connections=4,
            seconds=0.2,
            cpu=CPU,
            at_start=start,
            at_end=end,
        )
    assert result.requests == at_end - at_start > 0
    assert 0.15 < result.elapsed_s < 5
    assert 0 < result.p50_us <= result.p99_us


def test_generator_joins_an_answer_that_arrives_in_pieces(build: Path) -> None:
    def answer(connection: socket.socket, _number: int) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(0, len(GOOD), 7):
            connection.sendall(GOOD[i : i + 7])

    with misbehaving(answer) as port:
        assert run_load(build, port).requests > 0


def good_then(bad: bytes) -> Callable[[socket.socket, int], None]:
    """Right answers, except for the tenth of each connection."""
    return lambda connection, number: connection.sendall(bad if number == 9 else GOOD)


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        (GOOD.replace(b"200 OK", b"503 Busy"), r"bad_status.*status 503"),
        (GOOD.replace(b"12", b"11").replace(b"world", b"worl"), r"bad_body.*11 bytes"),
        (GOOD.replace(b"world", b"w0rld"), r"bad_body"),
        (GOOD + b"!", r"malformed.*after the end"),
        (GOOD.replace(b"Content-Length: 12", b"X: y"), r"malformed.*Content-Length"),
        (b"SSH-2.0 hello\r\n\r\n", r"malformed"),
        (GOOD.replace(b"12", b"99999"), r"malformed.*99999"),
    ],
)
def test_generator_reports_a_wrong_answer(build: Path, bad: bytes, complaint: str) -> None:
    with misbehaving(good_then(bad)) as port, pytest.raises(LoadError, match=complaint):
        run_load(build, port)


def test_generator_reports_a_connection_closed_instead_of_an_answer(build: Path) -> None:
    def answer(connection: socket.socket, number: int) -> None:
        if number == 9:
            connection.shutdown(socket.SHUT_RDWR)
        else:
            connection.sendall(GOOD)

    with misbehaving(answer) as port, pytest.raises(LoadError, match=r"closed.*4 connections lost.*in flight"):
        run_load(build, port)


def test_generator_reports_a_body_cut_short_by_a_close(build: Path) -> None:
    """Fewer bytes than Content-Length, then the end of the connection."""

    def answer(connection: socket.socket, number: int) -> None:
        connection.sendall(GOOD if number != 9 else GOOD[:-4])
        if number == 9:
            connection.shutdown(socket.SHUT_RDWR)

    with misbehaving(answer) as port, pytest.raises(LoadError, match=r"closed"):
        run_load(build, port)


def test_generator_reports_that_nobody_listens(build: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(LoadError, match="refused"):
            run_load(build, bound.getsockname()[1])


def test_generator_sends_the_body_it_is_told_to(build: Path) -> None:
    heads: list[bytes] = []

    def serve_one(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            data = b""
            while len(data.partition(b"\r\n\r\n")[2]) < 512 and (chunk := connection.recv(65536)):
                data += chunk
            heads.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve_one, args=(listener,))
        thread.start()
        process = subprocess.Popen(
            [build / "load", str(listener.getsockname()[1]), "1", "10", "10", "POST", "/plain", "512", "x"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        thread.join(5)
        process.kill()
        process.wait()
    head, _, body = heads[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /plain HTTP/1.1\r\n")
    assert b"\r\nContent-Length: 512" in head
    assert body == b"x" * 512


def test_c_result_without_a_request_is_an_error() -> None:
    line = (
        '{"requests": 0, "elapsed_s": 1, "cpu_s": 0, "connections_lost": 0, "p50_us": 0, "p99_us": 0, "max_us": 0, '
        '"errors": {}, "first_error": ""}'
    )
    with pytest.raises(LoadError, match="no requests"):
        parse_c_result(line)


WRK = """Running 2s test @ http://127.0.0.1:18080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   352.76us  288.59us   5.79ms   96.63%
    Req/Sec   108.10k    19.00k  136.33k    65.00%
  Latency Distribution
     50%  309.00us
     75%  374.00us
     90%  458.00us
     99%    1.31ms
  215141 requests in 2.00s, 26.47MB read
Requests/sec: 107485.91
Transfer/sec:     13.22MB
"""


def test_wrk_report_is_read() -> None:
    assert parse_wrk_output(WRK) == LoadResult(215141, 2.0, 309.0, 1310.0)


@pytest.mark.parametrize(
    "complaint", ["  Socket errors: connect 0, read 3, write 0, timeout 0", "  Non-2xx or 3xx responses: 7"]
)
def test_wrk_report_of_errors_is_an_error(complaint: str) -> None:
    with pytest.raises(LoadError, match=complaint.strip()):
        parse_wrk_output(WRK.replace("Requests/sec", complaint + "\nRequests/sec"))
