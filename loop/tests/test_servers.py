"""Listening sockets: accepting, running out of descriptors, and leaving nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import resource
import socket
import sys
import time
from pathlib import Path

import pytest
from loop.tests.conftest import open_descriptors


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def ask(port: int, question: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    answer = await reader.readexactly(len(question))
    writer.close()
    await writer.wait_closed()
    return answer


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def port_of(server: asyncio.Server) -> int:
    return server.sockets[0].getsockname()[1]


def test_many_connections_each_get_their_own_bytes(run):
    async def main():
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        async with server:
            for _ in range(20):
                questions = [os.urandom(100) for _ in range(50)]
                assert await asyncio.gather(*(ask(port_of(server), question) for question in questions)) == questions

    run(main())


def test_connections_that_are_aborted_at_random_never_get_the_bytes_of_others(run):
    """Descriptor numbers are used anew all the time."""

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        port = port_of(server)

        async def visit(number):
            mark = number.to_bytes(4, "big") * 50
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(mark)
            if number % 3 == 0:
                writer.transport.abort()
            elif number % 3 == 1:
                assert await reader.readexactly(len(mark)) == mark
                writer.transport.abort()
            else:
                assert await reader.readexactly(len(mark)) == mark
                writer.close()
                await writer.wait_closed()

        async with server:
            for start in range(0, 3000, 100):
                await asyncio.gather(*(visit(start + number) for number in range(100)))

    run(main())


def test_a_closed_server_refuses_at_once_and_existing_connections_go_on(run):
    async def main():
        server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
        port = port_of(server)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        await reader.readexactly(1)
        server.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=2)
        writer.write(b"still")
        assert await reader.readexactly(5) == b"still"
        writer.close()
        await writer.wait_closed()
        await server.wait_closed()

    run(main())


def test_a_failing_protocol_factory_is_reported_and_the_server_goes_on(run):
    async def main():
        loop = asyncio.get_running_loop()
        reports, failing = [], True
        loop.set_exception_handler(lambda _, context: reports.append(context))

        def factory():
            if failing:
                raise LookupError("no protocol today")
            return Echo()

        async with await loop.create_server(factory, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
            assert await reader.read() == b""
            writer.close()
            assert isinstance(reports[0]["exception"], LookupError)
            failing = False
            assert await ask(port_of(server), b"works") == b"works"

    run(main())


def test_what_one_connection_sets_in_its_context_another_does_not_see(run):
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        seen = []

        class Marking(Echo):
            def data_received(self, data):
                seen.append(variable.get())
                variable.set(data)
                super().data_received(data)

        variable.set("server")
        async with await asyncio.get_running_loop().create_server(Marking, "127.0.0.1", 0) as server:
            await ask(port_of(server), b"first")
            await ask(port_of(server), b"second")
        assert seen == ["server", "server"]

    run(main())


def test_running_out_of_descriptors_neither_spins_nor_stops_the_server(run, monkeypatch):
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", 0.3)

    async def main():
        loop = asyncio.get_running_loop()
        reports = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        hogs = []
        try:
            # First the limit: io_uring takes note of it when an accept is armed.
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(open_descriptors()) + 20, before[1]))
            server = await loop.create_server(Echo, "127.0.0.1", 0)
            client = socket.socket()
            client.setblocking(False)
            await asyncio.sleep(0.01)
            try:
                while True:
                    hogs.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            await loop.sock_connect(client, server.sockets[0].getsockname())
            start_s = time.process_time()
            await asyncio.sleep(1)
            assert time.process_time() - start_s < 0.2
            assert 1 <= len(reports) <= 5
            assert "out of system resource" in reports[0]["message"]
        finally:
            for hog in hogs:
                os.close(hog)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        with client:
            await loop.sock_sendall(client, b"patient")
            assert await asyncio.wait_for(loop.sock_recv(client, 100), 5) == b"patient"
        server.close()
        await until(lambda: loop.statistics().open <= 2)

    run(main())


def test_connections_leave_no_descriptor_and_no_object_behind(run):
    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        await ask(port_of(server), b"warm")
        await asyncio.sleep(0.01)
        descriptors, objects = len(open_descriptors()), loop.statistics().open
        for _ in range(20):
            await asyncio.gather(*(ask(port_of(server), b"x" * 10) for _ in range(20)))
        await asyncio.sleep(0.05)
        assert len(open_descriptors()) == descriptors
        assert loop.statistics().open == objects
        server.close()
        await server.wait_closed()

    run(main())


def test_a_closed_loop_leaves_no_descriptor_behind(new_loop):
    before = open_descriptors()
    loop = new_loop()

    async def leave_open():
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        return server, await loop.create_connection(asyncio.Protocol, "127.0.0.1", port_of(server))

    def close_under_them():
        left = loop.run_until_complete(leave_open())
        loop.close()
        left[0].close()
        del left
        return open_descriptors()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        after = close_under_them()
    assert after == before


def test_the_socket_of_an_accepted_connection_is_known_to_be_nonblocking(run):
    async def main():
        timeouts = []

        class Asking(Echo):
            def connection_made(self, transport):
                super().connection_made(transport)
                timeouts.append(transport.get_extra_info("socket").gettimeout())

        async with await asyncio.get_running_loop().create_server(Asking, "127.0.0.1", 0) as server:
            assert await ask(port_of(server), b"x") == b"x"
        assert timeouts == [0.0]

    run(main())


def listener_on(host: str, directory: Path) -> socket.socket:
    if host == "unix":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(directory / "listener"))
        return listener
    try:
        return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        pytest.skip(f"not run: {host} is no address of this machine: {error}")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "unix"])
def test_addresses_of_an_accepted_connection_outlive_it(run, tmp_path, host):
    """Nobody asks for them before the peer has reset the connection, and again when its socket is closed."""
    names = []

    class Naming(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def connection_lost(self, exc):
            self.name()
            asyncio.get_running_loop().call_later(0.01, self.name)

        def name(self):
            names.append(tuple(map(self.transport.get_extra_info, ("sockname", "peername", "no such thing"))))

    async def main(listener):
        loop = asyncio.get_running_loop()
        async with await loop.create_server(Naming, sock=listener):
            client = socket.socket(listener.family)
            client.connect(listener.getsockname())
            ends = listener.getsockname(), client.getsockname(), None
            await asyncio.sleep(0.01)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            await asyncio.wait_for(until(lambda: len(names) == 2), 5)
            assert names == [ends, ends]

    run(main(listener_on(host, tmp_path)))


def test_who_was_accepted_before_the_server_closed_is_served_and_the_others_are_left_to_the_next(run, poller):
    """A poller may accept before it tells: such a connection is nobody else's. The listener may be held elsewhere."""
    clients = 5

    async def main() -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0), backlog=clients)
        held = listener.dup()
        server = await loop.create_server(Echo, sock=listener)
        await asyncio.sleep(0.01)
        peers = [socket.create_connection(held.getsockname(), timeout=10) for _ in range(clients)]
        for peer in peers:
            peer.sendall(b"asked")
        # It runs between the poll that finds them and what that poll would tell.
        loop.call_soon(server.close)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not server.is_serving()
        waiting = asyncio.ensure_future(server.wait_closed())
        left = 0
        held.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                held.accept()[0].close()
                left += 1
        answers = await asyncio.gather(*(asyncio.to_thread(answer_of, peer) for peer in peers))
        assert answers.count(b"asked") == clients - left
        assert left == (0 if poller == "io_uring" else clients)
        if sys.version_info >= (3, 12):
            assert waiting.done() == (left == clients)  # it counts them until they end
        for peer in peers:
            peer.close()
        await asyncio.wait_for(waiting, 10)
        held.close()

    def answer_of(peer: socket.socket) -> bytes:
        try:
            return peer.recv(100)
        except OSError:
            return b""

    run(main())
