"""TLS over stream transports where the network is at its worst."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest
from loop.tests.leaks import contexts, settled


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of the server and of the client."""
    server, client = contexts()
    if server is None or client is None:
        pytest.skip("not run: trustme is not installed")
    return server, client


async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything, a byte a turn; then the end of it."""
    while data := await reader.read(1 << 16):
        for place in range(len(data)):
            writer.write(data[place : place + 1])
            await asyncio.sleep(0)
    writer.write_eof()


def test_records_that_arrive_byte_by_byte_are_whole_and_close_notify_is_told(run, tls):
    async def main() -> None:
        ended = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"<" + await reader.readuntil(b"!") + b">")
            ended.set_result(await reader.read())
            writer.close()

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(dribble(reader, onward_writer), dribble(onward_reader, writer))
            onward_writer.close()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls[0])
        port = server.sockets[0].getsockname()[1]
        proxy = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        idle = asyncio.get_running_loop().statistics().open
        reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname(), ssl=tls[1])
        question = bytes(range(34, 127)) * 20
        writer.write(question + b"!")
        assert await reader.readexactly(len(question) + 3) == b"<" + question + b"!>"
        writer.close()
        assert await asyncio.wait_for(ended, 10) == b""
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await settled(asyncio.get_running_loop(), idle)
        assert asyncio.get_running_loop().statistics().open == idle
        server.close()
        proxy.close()

    run(main())


def test_who_was_accepted_before_the_server_closed_is_greeted_afterwards(run, tls, poller):
    """Its handshake is a task of its own, which begins when the server has told everybody that it is closed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict] = []
        idle = loop.statistics().open
        loop.set_exception_handler(lambda _loop, context: told.append(context))

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls[0])
        await asyncio.sleep(0.01)
        peer = socket.create_connection(server.sockets[0].getsockname(), timeout=10)
        # It runs between the poll that finds the connection and what that poll would tell.
        loop.call_soon(server.close)
        await asyncio.sleep(0)
        await asyncio.wait_for(server.wait_closed(), 10)
        if poller == "epoll":  # nothing was accepted, and the kernel refuses what waited
            peer.close()
            return
        peer.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=peer, ssl=tls[1], server_hostname="127.0.0.1")
        writer.write(b"asked")
        assert await reader.read() == b"asked"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await settled(loop, idle)
        assert told == []

    run(main())
