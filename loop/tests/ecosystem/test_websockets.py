"""websockets' asyncio server and client: plain, TLS and UNIX sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import TLS, Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload

require("websockets")
from websockets.asyncio import client, server  # noqa: E402
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK  # noqa: E402

Run = Callable[[Program], Any]
Connect = Callable[[], client.connect]


async def echo(connection: server.ServerConnection) -> None:
    async for message in connection:
        if message == "drop":
            connection.transport.abort()
        elif message == "bye":
            await connection.close(4000, "as you wish")
        else:
            await connection.send(message)


@asynccontextmanager
async def served(how: str, tls: TLS, path: Path) -> AsyncIterator[Connect]:
    limits = {"max_size": 2 * LARGE_BYTES, "compression": None}
    if how == "unix":
        async with server.unix_serve(echo, str(path), **limits):
            yield lambda: client.unix_connect(str(path), "ws://localhost/", **limits)
    else:
        secured = how == "tls"
        async with server.serve(echo, "127.0.0.1", 0, ssl=tls.server if secured else None, **limits) as listening:
            port = listening.sockets[0].getsockname()[1]
            url = f"{'wss' if secured else 'ws'}://127.0.0.1:{port}/"
            yield lambda: client.connect(url, ssl=tls.client if secured else None, proxy=None, **limits)


@pytest.fixture(params=["plain", "tls", "unix"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_many_connections(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        async with served(how, tls, tmp_path / "socket") as connect:

            async def talk(seed: int) -> None:
                async with connect() as connection:
                    for number in range(20):
                        sent = payload(seed * 100 + number, seed)
                        await connection.send(sent)
                        assert await connection.recv() == sent
                    assert await (await connection.ping()) >= 0

            await asyncio.gather(*map(talk, range(30)))

    run(program())


def test_large_messages_in_one_piece_and_in_many(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        async with served(how, tls, tmp_path / "socket") as connect, connect() as connection:
            sent = payload(LARGE_BYTES)
            await connection.send(sent)
            assert await connection.recv() == sent
            await connection.send(sent[start : start + 100_000] for start in range(0, len(sent), 100_000))
            assert await connection.recv() == sent

    run(program())


def test_every_end_of_a_connection_has_its_error(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        async with served(how, tls, tmp_path / "socket") as connect:
            async with connect() as connection:
                await connection.send("bye")
                with pytest.raises(ConnectionClosedError) as closed:
                    await connection.recv()
                assert closed.value.rcvd is not None
                assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4000, "as you wish")
            async with connect() as connection:
                await connection.send("drop")
                with pytest.raises(ConnectionClosedError) as dropped:
                    await connection.recv()
                assert dropped.value.rcvd is None
            async with connect() as connection:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await connection.recv()
                await connection.send("still here")
                assert await connection.recv() == "still here"
                await connection.close()
                with pytest.raises(ConnectionClosedOK):
                    await connection.recv()

    run(program())


def test_a_server_that_closes_ends_its_connections(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        async with served(how, tls, tmp_path / "socket") as connect:
            connections = [await connect() for _ in range(10)]
        for connection in connections:
            with pytest.raises(ConnectionClosedOK):  # 1001, going away
                await connection.recv()
            await connection.wait_closed()

    run(program())
