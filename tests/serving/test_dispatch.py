"""Which worker serves a connection, by runtime.dispatch: with real workers, which are stopped, killed and replaced.

A worker that is stopped (SIGSTOP) accepts nothing, so the other one accepts every connection and what
it hands over waits in the stopped one's inbox: that is how a burst is made the same every time. Of nine
connections it keeps the first and the last, so once it has five of them open the other four are in the inbox.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stellane.supervisor.load_table import LoadTable

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
DEADLINE_S = 20.0


class Site:
    """A server of two workers and the clients' side of its connections."""

    def __init__(self, server: Any, address: Any) -> None:
        self.server = server
        self.address = address
        self.clients: list[socket.socket] = []
        self._stopped: set[int] = set()

    def stop(self, worker: int) -> None:
        """SIGSTOP, until `resume` or the end of the test."""
        os.kill(worker, signal.SIGSTOP)
        self._stopped.add(worker)

    def resume(self, worker: int) -> None:
        os.kill(worker, signal.SIGCONT)
        self._stopped.remove(worker)

    def kill(self, worker: int) -> None:
        os.kill(worker, signal.SIGKILL)
        self._stopped.discard(worker)

    def connect(self, source: str = "") -> socket.socket:
        if isinstance(self.address, str):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(DEADLINE_S)
            client.connect(self.address)
        else:
            client = socket.create_connection(self.address, DEADLINE_S, source_address=(source, 0) if source else None)
        self.clients.append(client)
        return client

    def begin(self, count: int) -> list[socket.socket]:
        """So many connections, each with a request on it that nobody has answered yet."""
        clients = [self.connect() for _ in range(count)]
        for client in clients:
            client.sendall(REQUEST)
        return clients

    def ask(self, source: str = "") -> tuple[socket.socket, int]:
        """A new connection, and the worker that answers on it."""
        client = self.connect(source)
        client.sendall(REQUEST)
        return client, answer(client)

    def table(self) -> LoadTable:
        """The workers' load table, through the supervisor's descriptor of it."""
        for entry in Path(f"/proc/{self.server.pid}/fd").iterdir():
            if str(entry.readlink()).startswith("/memfd:stellane-load-table"):
                descriptor = os.open(entry, os.O_RDWR)
                try:
                    return LoadTable(descriptor, 2)
                finally:
                    os.close(descriptor)
        raise AssertionError("no load table")

    def wait_for(self, what: str, seen: Callable[[LoadTable], bool]) -> None:
        table = self.table()
        deadline = time.monotonic() + DEADLINE_S
        while not seen(table):
            assert time.monotonic() < deadline, what
            time.sleep(0.005)
        table.close()

    def wait_for_loads(self, *loads: int) -> None:
        """Wait until the workers have so many connections open, in any order."""
        self.wait_for(f"loads {loads}", lambda table: sorted(map(table.open_in, range(2))) == sorted(loads))

    def hang_up(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    def close(self) -> None:
        self.hang_up()
        for worker in self._stopped:
            os.kill(worker, signal.SIGCONT)


def answer(client: socket.socket) -> int:
    """The worker that has answered; an AssertionError when the connection was cut instead."""
    head, _, body = client.recv(65_536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    return int(body)


def balanced(answers: list[int]) -> bool:
    """Whether two workers have answered, and as often as each other, give or take one."""
    counts = Counter(answers).values()
    return len(counts) == 2 and max(counts) - min(counts) <= 1


@pytest.fixture
def site(stellane: Any) -> Iterator[Callable[..., Site]]:
    """`site("least_loaded")`: a server with two workers; further arguments go to `stellane run`."""
    sites: list[Site] = []

    def start(mode: str, *arguments: str, **environ: str) -> Site:
        environ = {"STELLANE_RUNTIME_DISPATCH": mode, "STELLANE_RUNTIME_RESTART_DELAY_S": "0", **environ}
        server = stellane("pid_app.py:server", "--workers", "2", *arguments, environ=environ)
        server.wait_for(rf"(?m)^workers +2 processes; dispatch {mode} *$")
        uds = arguments[arguments.index("--uds") + 1] if "--uds" in arguments else None
        sites.append(Site(server, uds or ("127.0.0.1", server.port)))
        return sites[-1]

    yield start
    for each in sites:
        each.close()


def test_a_few_long_connections_are_balanced(backend: str, site: Callable[..., Site]) -> None:
    """8 keep-alive connections, 2 workers: as many on each, one after another, in a burst, and after some have gone.

    And when all are told to stop, what has been handed over and not been taken is answered.
    """
    here = site("least_loaded", "--backend", backend)
    served = [here.ask() for _ in range(8)]
    assert balanced([pid for _, pid in served])
    here.wait_for_loads(4, 4)

    left = served[0][1]
    for client, pid in served:
        if pid == left:
            client.close()
    here.wait_for_loads(0, 4)
    assert [here.ask()[1] for _ in range(4)] == [left] * 4
    here.hang_up()
    here.wait_for_loads(0, 0)

    # Both accept at once here, and each may decide once by what the other is about to change.
    one, other = here.server.workers()
    counts = Counter(answer(client) for client in here.begin(8))
    assert abs(counts[one] - counts[other]) <= 2
    here.hang_up()
    here.wait_for_loads(0, 0)

    here.stop(other)
    clients = here.begin(9)
    here.wait_for_loads(0, 5)
    here.server.signal(signal.SIGTERM)
    here.wait_for("one worker drains", lambda table: not all(map(table.is_accepting, range(2))))
    # One serves what waits for the other too, which might never have come back.
    assert Counter(map(answer, clients)) == {one: 9}
    here.resume(other)
    here.hang_up()
    assert here.server.wait() == 0


def test_what_is_in_an_inbox_is_answered_whatever_becomes_of_its_worker(site: Callable[..., Site]) -> None:
    """Killed: by the other one. Told to stop: by itself or the other one."""
    here = site("least_loaded", STELLANE_RUNTIME_RESTART_DELAY_S="30")
    one, other = here.server.workers()
    here.stop(other)
    clients = here.begin(9)
    here.wait_for_loads(0, 5)
    here.kill(other)
    assert Counter(map(answer, clients)) == {one: 9}
    here.server.wait_for("worker ready again")
    (successor,) = set(here.server.workers()) - {one}
    assert successor != other
    here.hang_up()
    here.wait_for_loads(0, 0)

    here.stop(one)
    clients = here.begin(9)
    here.wait_for_loads(0, 5)
    os.kill(one, signal.SIGTERM)
    here.resume(one)
    assert set(map(answer, clients)) <= {one, successor}
    here.hang_up()
    here.server.wait_for("(?s)worker ready again.*worker ready again")
    here.wait_for_loads(0, 0)

    (first,) = set(here.server.workers()) - {successor}
    assert {here.ask()[1] for _ in range(2)} == {first, successor}
    here.stop(successor)
    clients = here.begin(9)
    here.wait_for_loads(1, 6)
    here.kill(successor)
    assert Counter(map(answer, clients)) == {first: 9}
    # The connection that died with its worker does not count any more.
    here.wait_for_loads(0, 10)


def test_a_client_keeps_its_worker(site: Callable[..., Site]) -> None:
    """affinity: by address without port; while its worker is away the other one serves it, and nobody else moves."""
    here = site("affinity")
    sources = [f"127.0.0.{number}" for number in range(1, 9)]
    first = {source: here.ask(source)[1] for source in sources}
    assert {source: here.ask(source)[1] for source in sources} == first
    assert len(set(first.values())) == 2
    gone, stays = first[sources[0]], next(pid for pid in first.values() if pid != first[sources[0]])

    here.hang_up()
    here.kill(gone)
    here.server.wait_for("worker died")
    while_away = {source: here.ask(source)[1] for source in sources}
    assert all(while_away[source] == stays for source, pid in first.items() if pid == stays)
    here.server.wait_for("worker ready again")
    (successor,) = set(here.server.workers()) - {stays}
    assert set(while_away.values()) <= {stays, successor}
    assert {source: here.ask(source)[1] for source in sources} == {
        source: successor if pid == gone else pid for source, pid in first.items()
    }


def test_a_listener_for_each_worker(site: Callable[..., Site]) -> None:
    """reuseport: both get connections; what waits for one that is killed is served by its successor."""
    here = site("reuseport")
    one, other = here.server.workers()
    here.stop(other)
    clients = here.begin(24)
    here.kill(other)
    answers = Counter(map(answer, clients))
    assert answers[one]
    assert other not in answers
    assert len(answers) == 2


def test_a_unix_socket_and_the_limit_of_connections(site: Callable[..., Site], tmp_path: Path) -> None:
    """runtime.max_connections is each worker's in every mode: two workers, twice as many."""
    path = tmp_path / "stellane.sock"
    here = site("round_robin", "--uds", str(path), STELLANE_RUNTIME_MAX_CONNECTIONS="2")
    served = [here.ask()[1] for _ in range(4)]
    assert Counter(served) == dict.fromkeys(here.server.workers(), 2)
    assert served[0] != served[1]
    assert here.connect().recv(65_536).startswith(b"HTTP/1.1 503")
