"""The echo generators find every kind of wrong echo, and the bare echo servers are correct servers."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench.cpu import read_cpu
from bench.load import LoadError, LoadResult, run_generator
from bench.loops import tls
from bench.loops.workloads import TLS_LOAD, ask_datagram_echo, ask_echo
from bench.servers import ServerError

CPU = min(os.sched_getaffinity(0))
MESSAGE_BYTES = 1000

Answer = Callable[[int, bytes], bytes]
"""The n-th message of a connection -> what is sent back; b"" closes the connection."""


def serve_messages(connection: socket.socket, answer: Answer) -> None:
    with connection, contextlib.suppress(OSError):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = 0
        while message := connection.recv(MESSAGE_BYTES, socket.MSG_WAITALL):
            back = answer(number, message)
            if not back:
                return
            for start in range(0, len(back), 300):
                connection.sendall(back[start : start + 300])
            number += 1


@contextlib.contextmanager
def answering(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """An echo server of threads that sends each answer in pieces."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                served = connection if context is None else context.wrap_socket(connection, server_side=True)
                threading.Thread(target=serve_messages, args=(served, answer), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def run_echo(program: list[str], port: int, message_bytes: int = MESSAGE_BYTES, connections: int = 4) -> LoadResult:
    command = [*program, str(port), str(connections), "50", "150", str(message_bytes)]
    return run_generator(command, cpu=CPU, at_start=lambda: None, at_end=lambda: None)


def test_right_echoes_in_pieces_are_counted_once_each(build: Path) -> None:
    answered = 0
    counts: list[int] = []
    lock = threading.Lock()

    def answer(_number: int, message: bytes) -> bytes:
        nonlocal answered
        with lock:
            answered += 1
        return message

    with answering(answer) as port:
        command = [str(build / "echo_load"), str(port), "4", "50", "150", str(MESSAGE_BYTES)]
        result = run_generator(
            command, cpu=CPU, at_start=lambda: counts.append(answered), at_end=lambda: counts.append(answered)
        )
    assert result.requests == counts[1] - counts[0] > 0
    assert 0 < result.p50_us <= result.p99_us


def test_messages_of_neighbours_differ(build: Path) -> None:
    """Or the echo of another connection's message, or of an old one, would pass for right."""
    messages: list[bytes] = []

    def answer(number: int, message: bytes) -> bytes:
        if number < 3:
            messages.append(message)
        return message

    with answering(answer) as port:
        run_echo([str(build / "echo_load")], port)
    assert len(messages) == 12
    assert len(set(messages)) == 12


def stale() -> Answer:
    """The right length, but the bytes of the message before."""
    last: dict[int, bytes] = {}

    def answer(number: int, message: bytes) -> bytes:
        thread = threading.get_ident()
        before, last[thread] = last.get(thread, message), message
        return before if number == 9 else message

    return answer


def mixed_up() -> Answer:
    """What another connection sent last."""
    seen: dict[int, bytes] = {}

    def answer(number: int, message: bytes) -> bytes:
        seen[threading.get_ident()] = message
        others = [other for thread, other in seen.items() if thread != threading.get_ident()]
        return others[0] if number >= 9 and others else message

    return answer


def tenth(change: Callable[[bytes], bytes]) -> Callable[[], Answer]:
    """Right echoes, except for the tenth of each connection."""
    return lambda: lambda number, message: change(message) if number == 9 else message


WRONG: dict[str, tuple[Callable[[], Answer], str]] = {
    "last byte": (tenth(lambda m: m[:-1] + bytes([m[-1] ^ 1])), r"bad_body.*byte 999 of the echo"),
    "byte lost": (tenth(lambda m: m[:500] + m[501:] + m[:1]), r"bad_body"),
    "stale": (stale, r"bad_body"),
    "other connection": (mixed_up, r"bad_body"),
    "more": (tenth(lambda m: m + b"!"), r"malformed.*more than were sent"),
    "closed": (tenth(lambda _m: b""), r"closed.*in flight"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_echo_is_found(build: Path, kind: str) -> None:
    answer, complaint = WRONG[kind]
    with answering(answer()) as port, pytest.raises(LoadError, match=complaint):
        run_echo([str(build / "echo_load")], port)


@contextlib.contextmanager
def answering_datagrams(answer: Answer) -> Iterator[int]:
    """An echo server of datagrams."""

    def serve() -> None:
        numbers: dict[object, int] = {}
        with contextlib.suppress(OSError):
            while (datagram := server.recvfrom(MESSAGE_BYTES + 1))[0]:  # nothing: it was shut down
                message, name = datagram
                numbers[name] = number = numbers.get(name, -1) + 1
                server.sendto(answer(number, message), name)

    with socket.socket(type=socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        with contextlib.suppress(OSError):  # ends its receive, though it is not connected
            server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def run_datagrams(build: Path, port: int) -> LoadResult:
    command = [str(build / "echo_load"), str(port), "4", "50", "150", str(MESSAGE_BYTES), "datagrams"]
    return run_generator(command, cpu=CPU, at_start=lambda: None, at_end=lambda: None)


def test_datagrams_are_counted_and_wrong_ones_are_found(build: Path) -> None:
    with answering_datagrams(lambda _number, message: message) as port:
        assert ask_datagram_echo(port, MESSAGE_BYTES) == ""
        assert run_datagrams(build, port).requests > 0
    for kind in ("last byte", "byte lost", "more"):
        answer, complaint = WRONG[kind]
        with answering_datagrams(answer()) as port, pytest.raises(LoadError, match=complaint):
            run_datagrams(build, port)
    short = answering_datagrams(lambda _number, message: message[:-1])
    with short as port, pytest.raises(ServerError, match=r"1000 bytes was answered with 999 bytes"):
        ask_datagram_echo(port, MESSAGE_BYTES)


def test_single_checked_echo_finds_a_wrong_one() -> None:
    with answering(lambda _number, message: message) as port:
        ask_echo(port, MESSAGE_BYTES)
    with answering(lambda _number, message: message[::-1]) as port, pytest.raises(ServerError, match="not it"):
        ask_echo(port, MESSAGE_BYTES)


def test_tls_generator_counts_right_echoes_and_finds_a_wrong_one() -> None:
    tls.make_certificate()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.DIRECTORY / "cert.pem", tls.DIRECTORY / "key.pem")

    def echo_all(connection: socket.socket, flip: bool) -> None:
        number = 0
        with connection, contextlib.suppress(OSError):
            data = b""
            while chunk := connection.recv(4096):
                data += chunk
                if len(data) == MESSAGE_BYTES:
                    connection.sendall(data[::-1] if flip and number == 9 else data)
                    data, number = b"", number + 1

    for flip in (False, True):
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve(listener: socket.socket = listener, flip: bool = flip) -> None:
                connection = context.wrap_socket(listener.accept()[0], server_side=True)
                echo_all(connection, flip)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            program, port = [sys.executable, str(TLS_LOAD)], listener.getsockname()[1]
            if flip:
                with pytest.raises(LoadError, match="not the bytes that were sent"):
                    run_echo(program, port, connections=1)
            else:
                assert run_echo(program, port, connections=1).requests > 0
            thread.join(5)


@pytest.fixture(params=["epoll_echo", "uring_echo", "uring_echo, few small buffers"])
def echo_server(build: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Process id and port of a bare echo server."""
    program, _, small = request.param.partition(", ")
    arguments = [] if program == "epoll_echo" else ["512" if small else "4096"]
    with subprocess.Popen(
        [build / program, "0", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        found = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\n", process.stdout.readline())
        assert found is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            pytest.skip(f"not run: io_uring is not usable here: {process.stderr.read().strip()}")
        yield process.pid, int(found[1])
        assert process.poll() is None, "the server ended during the tests"
        process.kill()


@pytest.fixture
def echo_port(echo_server: tuple[int, int]) -> int:
    return echo_server[1]


@pytest.mark.parametrize(("message_bytes", "connections"), [(1, 3), (1024, 64), (102_400, 16), (1_000_000, 40)])
def test_bare_echo_server_echoes(build: Path, echo_port: int, message_bytes: int, connections: int) -> None:
    """Also more bytes than its buffers and the sockets hold together."""
    result = run_echo([str(build / "echo_load")], echo_port, message_bytes, connections)
    assert result.requests >= connections


def test_bare_echo_server_waits_for_clients_that_do_not_read(echo_server: tuple[int, int]) -> None:
    """They fill every buffer, and it sleeps; when they read at last nothing is lost, and nobody was cut off."""
    pid, echo_port = echo_server
    sent = random.Random(1).randbytes(8_000_000)
    wrong: list[int] = []

    def read(client: socket.socket) -> None:
        received = bytearray()
        with contextlib.suppress(OSError):
            while len(received) < len(sent) and (chunk := client.recv(1 << 20)):
                received += chunk
        if received != sent:
            wrong.append(len(received))

    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", echo_port), timeout=10)) for _ in range(3)
        ]
        senders = [threading.Thread(target=client.sendall, args=(sent,)) for client in clients]
        readers = [threading.Thread(target=read, args=(client,)) for client in clients]
        for thread in senders:
            thread.start()
        deadline = time.monotonic() + 5
        cpu_s = 1.0
        while cpu_s > 0.015:  # one tick of the clock that CPU time is counted in, not two
            assert time.monotonic() < deadline, "the server keeps its CPU busy while it cannot send"
            before = read_cpu(pid)
            time.sleep(0.3)
            cpu_s = read_cpu(pid).since(before)
        for thread in readers:
            thread.start()
        for thread in senders + readers:
            thread.join(20)
    assert not wrong
    ask_echo(echo_port, 1000)
