"""The workloads, and the rows each of them has: one for every loop, and the bare C servers."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.build import BUILD
from bench.load import WARMUP_S, LoadResult, run_generator
from bench.loops.control import ask_work, load_work
from bench.loops.loops import LOOPS, OBSERVED, STELLANE, UVLOOP, Loop, loop_named
from bench.loops.tls import DIRECTORY, client_context
from bench.rows import Row
from bench.servers import READY_TIMEOUT_S, ServerError

SERVER = Path(__file__).resolve().parent / "server.py"
TLS_LOAD = Path(__file__).resolve().parent / "tls_load.py"
SMALL_BYTES, LARGE_BYTES = 1024, 102_400
URING_BUFFER_BYTES = {SMALL_BYTES: 4096, LARGE_BYTES: 65536}
DATAGRAMS = "datagrams"
BARE = ("bare-epoll", "bare-io_uring")


@dataclass(frozen=True, slots=True)
class Workload:
    """One program that every loop of `loops` runs.

    `server` is its name in server.py; `message_bytes` is 0 without messages.
    """

    name: str
    title: str
    server: str
    message_bytes: int = 0
    connections: int = 64
    loops: tuple[Loop, ...] = LOOPS

    @property
    def is_echo(self) -> bool:
        return self.message_bytes > 0


def _echoes(server: str, title: str) -> tuple[Workload, Workload]:
    return (
        Workload(f"echo-{server}-1k", f"echo by {title}, 1 KiB", server, SMALL_BYTES),
        Workload(f"echo-{server}-100k", f"echo by {title}, 100 KiB", server, LARGE_BYTES, 16),
    )


WORKLOADS = (
    *_echoes("protocol", "Protocol"),
    *_echoes("buffered", "BufferedProtocol"),
    *_echoes("streams", "streams"),
    *_echoes("sock", "sock_*"),
    Workload("echo-datagrams-1k", "echo by DatagramProtocol, 1 KiB", DATAGRAMS, SMALL_BYTES),
    Workload("tls-1k", "TLS echo by Protocol, 1 KiB", "tls", SMALL_BYTES, 16),
    Workload("http", "HTTP plaintext by protocol-http", "http"),
    Workload("call-soon-chain", "call_soon, one after the other", "call-soon-chain"),
    Workload("call-soon-batch", "call_soon, 1,000 a turn", "call-soon-batch"),
    Workload(
        "call-soon-observed",
        "call_soon, 1,000 a turn, and what may be asked of the turns",
        "call-soon-batch",
        loops=(loop_named("stellane-epoll"), *OBSERVED, loop_named(UVLOOP)),
    ),
    Workload("timers", "call_later, 100,000 timers, half of them cancelled", "timers"),
    Workload("threadsafe", "call_soon_threadsafe from four threads", "threadsafe"),
    Workload("spawn", "a subprocess and its output", "spawn"),
)


ECHO = WORKLOADS[0]
"""What system calls and memory are counted on: echo by Protocol, 1 KiB."""


def _exchange(connection: socket.socket, message: bytes) -> None:
    """Send a message, and raise ServerError unless the same bytes come back."""
    connection.sendall(message)
    echo = b""
    while len(echo) < len(message) and (chunk := connection.recv(len(message) - len(echo))):
        echo += chunk
    if echo != message:
        raise ServerError(f"a message of {len(message)} bytes was answered with {len(echo)} bytes that are not it")


def ask_echo(port: int, message_bytes: int) -> str:
    """One checked echo on a connection of its own."""
    message = bytes(i * 7 % 251 for i in range(message_bytes))
    with socket.create_connection(("127.0.0.1", port), timeout=READY_TIMEOUT_S) as connection:
        try:
            _exchange(connection, message)
        except OSError as error:
            raise ServerError(f"an echo of {message_bytes} bytes: {error}") from error
    return ""


def ask_datagram_echo(port: int, message_bytes: int) -> str:
    """The same by one datagram. ConnectionRefusedError while nobody is there."""
    message = bytes(i * 7 % 251 for i in range(message_bytes))
    with socket.socket(type=socket.SOCK_DGRAM) as asking:
        asking.settimeout(READY_TIMEOUT_S)
        asking.connect(("127.0.0.1", port))
        asking.send(message)
        echo = asking.recv(len(message) + 1)
    if echo != message:
        raise ServerError(f"a datagram of {len(message)} bytes was answered with {len(echo)} bytes that are not it")
    return ""


def ask_tls_echo(port: int, message_bytes: int) -> str:
    """The same over TLS, with the certificate checked."""
    message = bytes(i * 7 % 251 for i in range(message_bytes))
    with socket.create_connection(("127.0.0.1", port), timeout=READY_TIMEOUT_S) as plain:
        try:
            with client_context().wrap_socket(plain, server_hostname="localhost") as connection:
                _exchange(connection, message)
        except OSError as error:
            raise ServerError(f"an echo of {message_bytes} bytes over TLS: {error}") from error
    return ""


def echo_command(port: int, connections: int, seconds: float, message_bytes: int) -> list[str]:
    """The C echo generator."""
    times = (str(int(WARMUP_S * 1000)), str(max(1, int(seconds * 1000))))
    return [str(BUILD / "echo_load"), str(port), str(connections), *times, str(message_bytes)]


def _load_echo(message_bytes: int, server: str) -> Callable[..., LoadResult]:
    def load(
        port: int,
        *,
        connections: int,
        seconds: float,
        cpu: int,
        at_start: Callable[[], None],
        at_end: Callable[[], None],
    ) -> LoadResult:
        command = echo_command(port, connections, seconds, message_bytes)
        if server == DATAGRAMS:
            command.append(DATAGRAMS)
        if server == "tls":
            command = [sys.executable, str(TLS_LOAD), *command[1:]]
        return run_generator(command, cpu=cpu, at_start=at_start, at_end=at_end)

    return load


def _asking(workload: Workload) -> tuple[Callable[[int], str] | None, Callable[..., LoadResult] | None]:
    """How a workload is asked once and how it is loaded; None: over HTTP."""
    size = workload.message_bytes
    if workload.server == "tls":
        return lambda port: ask_tls_echo(port, size), _load_echo(size, workload.server)
    if workload.server == DATAGRAMS:
        return lambda port: ask_datagram_echo(port, size), _load_echo(size, workload.server)
    if workload.is_echo:
        return lambda port: ask_echo(port, size), _load_echo(size, workload.server)
    if workload.server == "http":
        return None, None
    return ask_work, load_work


def loop_row(workload: Workload, loop: Loop) -> Row:
    """The row `<workload>/<loop>`."""

    def command(port: int, _directory: Path) -> list[str]:
        return [sys.executable, str(SERVER), loop.name, workload.server, str(port), str(DIRECTORY)]

    ask, load = _asking(workload)
    http = workload.server == "http"
    return Row(
        f"{workload.name}/{loop.name}",
        loop.title,
        command,
        programs=("echo_load",) if workload.is_echo and workload.server != "tls" else (),
        distributions=(
            *((loop.distribution,) if loop.distribution else ()),
            *(("stellane-kernel", "stellane-protocol-http") if http else ()),
        ),
        says=(
            rf"(?m)^loop {loop.type_name}$",
            rf"(?m)^module .*{re.escape(loop.file_part)}",
            *((rf"(?m)^poller {loop.polls}$",) if loop.name.partition("+")[0] in STELLANE else ()),
            *((r"(?m)^codec zttp, compiled$",) if http else ()),
        ),
        maps=(*((loop.maps,) if loop.maps else ()), *(("/zttp/", "/usual_request.") if http else ())),
        polls=loop.polls,
        polls_not=loop.polls_not,
        ask=ask,
        load=load,
        reaps=workload.server == "spawn",
        datagrams=workload.server == DATAGRAMS,
    )


def _bare_rows(workload: Workload) -> list[Row]:
    """The C servers that do the same work, where there are any."""
    ask, load = _asking(workload)
    if workload.server == "http":
        servers = {"epoll": ("epoll_server", []), "io_uring": ("uring_server", [])}
    elif workload.server == "protocol":
        buffer_bytes = str(URING_BUFFER_BYTES[workload.message_bytes])
        servers = {"epoll": ("epoll_echo", []), "io_uring": ("uring_echo", [buffer_bytes])}
    elif workload.is_echo and workload.server not in {"tls", DATAGRAMS}:
        servers = {"epoll": ("epoll_echo", [])}
    else:
        return []

    def row(poller: str, program: str, arguments: list[str]) -> Row:
        return Row(
            f"{workload.name}/bare-{poller}",
            f"bare C, {poller}",
            lambda port, _directory: [str(BUILD / program), str(port), *arguments],
            programs=(program, "echo_load"),
            says=(r"listening on 127\.0\.0\.1",),
            polls=poller,
            ask=ask,
            load=load,
        )

    return [row(poller, program, arguments) for poller, (program, arguments) in servers.items()]


def rows_of(workload: Workload, name: str = "") -> list[Row]:
    """Every row of the workload's table; names are `<workload>/<loop>`, or `<name>/<loop>`."""
    rows = [*_bare_rows(workload), *(loop_row(workload, loop) for loop in workload.loops)]
    return [replace(row, name=f"{name}/{row.name.rpartition('/')[2]}") for row in rows] if name else rows
