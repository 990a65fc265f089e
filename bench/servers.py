"""Start one server, pinned, wait until it answers rightly, and take all its processes down again."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import assert_pinned, kernel_pollers, living_in_group, mapped_files, owns_listener, running_on
from bench.load import Request
from bench.rows import Row

READY_TIMEOUT_S = 20.0
ASK_TIMEOUT_S = 5.0
"""How long a server has to end by SIGTERM."""
KILL_TIMEOUT_S = 20.0
"""How long its processes have to be gone after SIGKILL."""
PORT_FIRST, PORTS_MIN = 10_000, 1_000
"""Where ports are looked for: from there up to those that the kernel gives out, and among so many at least."""
SETTINGS_OF_SERVERS = ("STELLANE_", "UVICORN_", "GRANIAN_", "WEB_CONCURRENCY", "PYTHONASYNCIODEBUG", "PYTHONDEVMODE")


NOT_RUN_STATUS = 77
"""A server that cannot do what its row asks ends with this before it answers, and says why (as in automake)."""


class ServerError(Exception):
    """A server did not start, answered wrongly, or is not what its row says it is."""


class NotRunError(ServerError):
    """The row cannot be run here: something is not installed, or the server cannot do it. Says which."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that has answered once. `response_head` is the head of that answer."""

    pid: int
    port: int
    response_head: str


def check_installed(row: Row) -> None:
    """Raise ServerError when a distribution the row needs is not installed."""
    for name in row.distributions:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise NotRunError(
                f"row {row.name} needs {name}, which is not installed: "
                f"pip install -r bench/requirements.txt, or choose other rows with --only"
            ) from None


def free_port() -> int:
    """A port of 127.0.0.1 that is free, of TCP and UDP, which the kernel gives only to who asks for it by number."""
    ephemeral_first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(min(PORT_FIRST, ephemeral_first - PORTS_MIN), ephemeral_first)
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def serving(row: Row, cpu: int | None) -> Iterator[RunningServer]:
    """Run the row's server on `cpu` for the block; None: wherever it likes. Raises ServerError, with its output."""
    with tempfile.TemporaryDirectory(prefix="stellane-bench-") as directory_name:
        directory = Path(directory_name)
        log = directory / "output.txt"
        port = free_port()
        # The directory is also the working directory, so no configuration file is picked up by chance.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS_OF_SERVERS)}
        with log.open("wb") as output, contextlib.nullcontext() if cpu is None else running_on(cpu):
            process = subprocess.Popen(
                row.command(port, directory),
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            head = _wait_ready(process, port, row)
            if not owns_listener(process.pid, port, datagrams=row.datagrams):
                raise ServerError(f"port {port} was answered by another program")
            if cpu is not None:
                assert_pinned(process.pid, cpu)
            _check_facts(row, process.pid, log.read_text(errors="replace"))
            _check_poller(row, process.pid)
            yield RunningServer(process.pid, port, head)
            if process.poll() is not None:
                raise ServerError(f"it ended by itself with status {process.returncode}")
        except NotRunError:
            raise NotRunError(log.read_text(errors="replace").strip().rpartition("\n")[2]) from None
        except (ServerError, RuntimeError, ProcessLookupError) as error:
            shown = log.read_text(errors="replace")[-2000:].strip() or "(nothing)"
            raise ServerError(f"{row.name}: {error}\nThe server's output:\n{shown}") from error
        finally:
            _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], port: int, row: Row) -> str:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() == NOT_RUN_STATUS:
            raise NotRunError
        if process.poll() is not None:
            raise ServerError(f"it ended with status {process.returncode} before it answered")
        with contextlib.suppress(ConnectionRefusedError):
            return row.ask(port) if row.ask is not None else ask_once(port, row.request)
        time.sleep(0.02)
    raise ServerError(f"it did not accept a connection within {READY_TIMEOUT_S} s")


def ask_once(port: int, request: Request) -> str:
    """Send one request on a connection of its own; return the response head.

    Raises ServerError unless the answer is a 200 with the expected body, and ConnectionRefusedError
    while nobody listens.
    """
    body = b"x" * request.body_bytes
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    head = f"{request.method} {request.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{length}Connection: close\r\n\r\n"
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=READY_TIMEOUT_S) as connection:
        try:
            connection.sendall(head.encode() + body)
            while chunk := connection.recv(65536):
                answer += chunk
        except OSError as error:
            raise ServerError(f"{request.method} {request.path}: {error}, after the bytes {answer[:500]!r}") from error
    answer_head, _, answer_body = answer.partition(b"\r\n\r\n")
    if not answer_head.startswith(b"HTTP/1.1 200") or answer_body != request.expected_body.encode():
        raise ServerError(f"{request.method} {request.path} was answered {answer[:500]!r}")
    return answer_head.decode("latin-1")


def _check_facts(row: Row, pid: int, output: str) -> None:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    for pattern in row.says:
        if not re.search(pattern, plain):
            raise ServerError(f"its start-up output does not match {pattern!r}, so it may not be what the row says")
    libraries = [path for path in mapped_files(pid) if ".so" in path]
    for part in row.maps:
        if not any(part in library for library in libraries):
            raise ServerError(f"it has loaded no library whose path contains {part!r}, so it is not what the row says")


def _check_poller(row: Row, pid: int) -> None:
    if not row.polls:
        return
    held = kernel_pollers(pid)
    if row.polls not in held or row.polls_not in held:
        raise ServerError(f"it holds the pollers {sorted(held)}, so it is not what the row says: {row.polls}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End every process of the server's group: ask, then kill."""
    _signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(ASK_TIMEOUT_S)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()
    _wait_gone(process.pid)


def _wait_gone(group: int) -> None:
    """A killed process runs on until it is next scheduled, and would take CPU of whoever is measured next."""
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while alive := living_in_group(group):
        if time.monotonic() > deadline:
            raise ServerError(f"the processes {alive} are alive {KILL_TIMEOUT_S} s after SIGKILL")
        time.sleep(0.001)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
