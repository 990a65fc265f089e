"""Adaptive polling: off unless asked for, harmless when idle, and the same bytes when it is on."""

from __future__ import annotations

import asyncio
import time

import pytest

CONNECTIONS = 32
ROUNDS = 50
IDLE_S = 0.6


def test_off_until_asked_for(loop):
    assert loop._next_wait() == (0, 1, 0)
    loop.set_adaptive_polling(50, 50)
    loop.set_adaptive_polling(0, 0)
    assert loop._next_wait() == (0, 1, 0)


@pytest.mark.parametrize("name", ["spin_us_max", "batch_wait_us_max"])
@pytest.mark.parametrize("value", [-1, 10_001])
def test_limits_are_named(loop, name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; it is a number of microseconds from 0 to 10000"):
        loop.set_adaptive_polling(**{name: value})


def test_closed_loops_refuse(loop):
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.set_adaptive_polling()


async def echo_all() -> None:
    """Many connections at once, each answered byte for byte."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def client(number: int, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(ROUNDS):
            message = b"%d-%d;" % (number, turn) * 100
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*(client(number, port) for number in range(CONNECTIONS)))


@pytest.mark.parametrize("settings", [(50, 0), (0, 50), (50, 50)])
def test_every_byte_arrives(run, settings):
    async def main() -> None:
        asyncio.get_running_loop().set_adaptive_polling(*settings)
        await echo_all()

    run(main())


def test_load_is_batched(run, poller):
    """With batching on, the waits follow the load; the controller's arithmetic is under test in C."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_adaptive_polling(0, 50)
        await echo_all()
        _, min_events, min_wait_ns = loop._next_wait()
        assert (min_wait_ns == 50_000) == (min_events > 1)
        assert min_events > 1, f"{poller}: {CONNECTIONS} busy connections were no load"

    run(main())


def test_idle_costs_nothing(run):
    """An idle loop sleeps, whatever it did while it was busy."""

    async def main() -> float:
        asyncio.get_running_loop().set_adaptive_polling(10_000)
        await echo_all()
        before = time.process_time()
        await asyncio.sleep(IDLE_S)
        return time.process_time() - before

    assert run(main()) < IDLE_S / 5


def test_idle_after_a_load_that_was_batched_is_sleep(loop, poller):
    """With no timer to wait for either: a wait for many events is no reason to come back with none."""

    async def main() -> int:
        loop.set_adaptive_polling(0, 50)
        await echo_all()
        assert loop._next_wait()[1] > 1, f"{poller}: {CONNECTIONS} busy connections were no load"
        before = loop.statistics().turns
        await loop.run_in_executor(None, time.sleep, IDLE_S)
        return loop.statistics().turns - before

    assert loop.run_until_complete(main()) < IDLE_S / 50e-6 / 100


def test_a_wake_from_another_thread_is_not_missed(run):
    """While the loop looks, and while it sleeps."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_adaptive_polling(1000)
        for _ in range(200):
            assert await asyncio.to_thread(lambda: 7) == 7

    run(main())
