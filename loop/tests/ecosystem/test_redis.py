"""redis-py's asyncio client against Redis: over TCP and a UNIX socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload
from loop.tests.ecosystem.servers import Address

require("redis")
import redis.asyncio as redis  # noqa: E402

Run = Callable[[Program], Any]


@pytest.fixture(params=["tcp", "unix"])
def url(request: pytest.FixtureRequest, redis_address: Address) -> str:
    if request.param == "tcp":
        return f"redis://127.0.0.1:{redis_address.port}"
    return f"unix://{redis_address.socket_directory}/redis.sock"


def test_many_commands_at_once(run: Run, url: str) -> None:
    async def program() -> None:
        async with redis.from_url(url, max_connections=20) as client:
            await client.delete("count")
            limit = asyncio.Semaphore(20)

            async def increment() -> int:
                async with limit:
                    return await client.incr("count")

            assert sorted(await asyncio.gather(*(increment() for _ in range(500)))) == list(range(1, 501))
            async with client.pipeline(transaction=True) as pipeline:
                for number in range(1000):
                    pipeline.rpush("list", number)
                pipeline.lrange("list", 0, -1).delete("list")
                results = await pipeline.execute()
            assert results[1000] == [str(number).encode() for number in range(1000)]

    run(program())


def test_large_values_both_ways(run: Run, url: str) -> None:
    async def program() -> None:
        async with redis.from_url(url) as client:
            for seed in range(2):
                sent = payload(LARGE_BYTES, seed)
                assert await client.set("blob", sent)
                assert await client.get("blob") == sent
            await client.delete("blob")

    run(program())


def test_messages_arrive_in_order(run: Run, url: str) -> None:
    async def program() -> None:
        async with redis.from_url(url) as client, client.pubsub() as subscription:
            await subscription.subscribe("news")
            heard = []

            async def listen() -> None:
                async for message in subscription.listen():
                    if message["type"] == "message":
                        heard.append(int(message["data"]))
                        if len(heard) == 500:
                            return

            listening = asyncio.create_task(listen())
            for number in range(500):
                await client.publish("news", number)
            await listening
            assert heard == list(range(500))
            await subscription.unsubscribe("news")

    run(program())


def test_a_command_that_is_cancelled_does_not_answer_the_next(run: Run, url: str) -> None:
    async def program() -> None:
        async with redis.from_url(url) as client:
            await client.set("key", "value")
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await client.blpop(["nothing"], timeout=60)
                assert await client.get("key") == b"value"

    run(program())
