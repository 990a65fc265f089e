"""asyncpg against PostgreSQL: over TCP, TLS (by loop.start_tls) and a UNIX socket."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import TLS, Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload
from loop.tests.ecosystem.servers import Address

require("asyncpg")
import asyncpg  # noqa: E402

Run = Callable[[Program], Any]


@pytest.fixture(params=["tcp", "tls", "unix"])
def where(request: pytest.FixtureRequest, postgres: Address, tls: TLS) -> dict[str, Any]:
    """Arguments of asyncpg.connect()."""
    how = {
        "tcp": {"host": "127.0.0.1", "ssl": False},
        "tls": {"host": "127.0.0.1", "ssl": tls.client},
        "unix": {"host": str(postgres.socket_directory)},
    }
    return {"port": postgres.port, "user": "stellane", "database": "postgres", **how[request.param]}


def test_rows_from_many_connections(run: Run, where: dict[str, Any]) -> None:
    async def program() -> None:
        async with asyncpg.create_pool(min_size=2, max_size=8, **where) as pool:

            async def square(number: int) -> int:
                return await pool.fetchval("SELECT $1::int * $1::int", number)

            assert await asyncio.gather(*map(square, range(300))) == [number * number for number in range(300)]

    run(program())


def test_large_values_both_ways(run: Run, where: dict[str, Any]) -> None:
    async def program() -> None:
        connection = await asyncpg.connect(**where)
        try:
            sent = payload(LARGE_BYTES)
            assert await connection.fetchval("SELECT $1::bytea", sent) == sent
            await connection.execute("CREATE TEMPORARY TABLE numbers (n int, text text)")
            rows = [(number, f"row {number}") for number in range(20_000)]
            await connection.copy_records_to_table("numbers", records=rows)
            copied = io.BytesIO()
            await connection.copy_from_query("SELECT n, text FROM numbers ORDER BY n", output=copied, format="csv")
            assert copied.getvalue().decode().splitlines() == [f"{number},{text}" for number, text in rows]
            async with connection.transaction():
                seen = [row["n"] async for row in connection.cursor("SELECT n FROM numbers ORDER BY n", prefetch=100)]
            assert seen == list(range(20_000))
        finally:
            await connection.close()

    run(program())


def test_a_query_that_is_cancelled_leaves_a_usable_connection(run: Run, where: dict[str, Any]) -> None:
    async def program() -> None:
        connection = await asyncpg.connect(**where)
        try:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await connection.execute("SELECT pg_sleep(60)")
                assert await connection.fetchval("SELECT 1") == 1
            task = asyncio.create_task(connection.execute("SELECT pg_sleep(60)"))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await connection.fetchval("SELECT 2") == 2
        finally:
            await connection.close()

    run(program())


def test_notifications_arrive_in_order(run: Run, where: dict[str, Any]) -> None:
    async def program() -> None:
        listener = await asyncpg.connect(**where)
        speaker = await asyncpg.connect(**where)
        heard: asyncio.Queue[str] = asyncio.Queue()

        def hear(_connection: Any, _pid: int, _channel: str, text: str) -> None:
            heard.put_nowait(text)

        await listener.add_listener("news", hear)
        for number in range(200):
            await speaker.execute("SELECT pg_notify('news', $1)", str(number))
        assert [await heard.get() for _ in range(200)] == [str(number) for number in range(200)]
        await listener.remove_listener("news", hear)
        await asyncio.gather(listener.close(), speaker.close())

    run(program())


def test_a_connection_that_the_server_ends_says_so(run: Run, where: dict[str, Any]) -> None:
    async def program() -> None:
        victim = await asyncpg.connect(**where)
        other = await asyncpg.connect(**where)
        waiting = asyncio.create_task(victim.execute("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.05)
        assert await other.fetchval("SELECT pg_terminate_backend($1)", victim.get_server_pid())
        with pytest.raises((asyncpg.AdminShutdownError, asyncpg.ConnectionDoesNotExistError)):
            await waiting
        while not victim.is_closed():
            await asyncio.sleep(0.01)
        await other.close()

    run(program())
