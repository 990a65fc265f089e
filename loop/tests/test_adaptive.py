"""Adaptive polling: off unless asked for, harmless when idle, and the same bytes when it is on."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest

CONNECTIONS = 32
ROUNDS = 50
IDLE_S = 0.6
ENGAGE_S = 1.2
"""Within which looking begins where it pays: CPU time is sampled each half second, and three windows have to agree."""
SLEEP_S = 0.001
SILENCE_S = 0.3
IDLE_CPU_MAX = 0.005
ALLOWED = os.sched_getaffinity(0)

CLIENT = """
import socket, sys
peer = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
message = b"x" * 64
while True:
    peer.sendall(message)
    if not peer.recv(64):
        break
"""


def has_quota() -> bool:
    """Whether the cgroup may use fewer CPUs than the affinity mask has (cgroup v2, cpu.max)."""
    path = Path("/sys/fs/cgroup/cpu.max")
    return path.exists() and not path.read_text().startswith("max")


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


@pytest.mark.skipif(len(ALLOWED) < 2, reason="not run: one CPU, which is never spare")
@pytest.mark.skipif(has_quota(), reason="not run: a quota of CPU time, of which nothing may be left")
def test_waits_and_cpus_are_told_to_the_controller(run):
    """Whatever else the machine does: it leaves this loop at least what the loop itself uses."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_adaptive_polling(0, 50)
        assert loop._adaptive_state()["wake_ns"] == 0  # only looking needs to know
        loop.set_adaptive_polling(50)
        first = loop._adaptive_state()
        assert first["wake_ns"] > 0
        assert (first["spare_cpus"], first["caught"], first["missed"]) == (0, 0, 0)
        # Half a wake-up is taken off a wait that was slept through: where it takes that long, this one may seem short.
        counts = ("missed",) if first["wake_ns"] < SLEEP_S * 1e9 else ("missed", "caught")
        seen = []
        async with asyncio.timeout(10):
            while not (seen and seen[-1]["spare_cpus"] > 0 and any(state[count] for state in seen for count in counts)):
                await asyncio.sleep(SLEEP_S)
                seen.append(loop._adaptive_state())
        assert seen[-1]["spare_cpus"] <= len(ALLOWED) * 1.1

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


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


def idle_and_own_s() -> float:
    """CPU time that the CPUs of this process idled, and that this thread used, since some time, seconds."""
    names = {f"cpu{number}" for number in ALLOWED}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = sum(int(fields[4]) + int(fields[5]) for fields in lines if fields[0] in names)
    return ticks / os.sysconf("SC_CLK_TCK") + time.thread_time()


async def until_it_looks(loop) -> str:
    """Wait for the loop to look; why it had no reason to, when it does not, and nothing when it had."""
    caught = missed = 0
    most_spare = 0.0
    begin_s, spare_s = time.monotonic(), idle_and_own_s()
    while time.monotonic() < begin_s + ENGAGE_S:
        await asyncio.sleep(0.02)
        if loop._next_wait()[0] > 0:
            return ""
        state = loop._adaptive_state()
        caught, missed = caught + state["caught"], missed + state["missed"]
        most_spare = max(most_spare, state["spare_cpus"])
    spare = (idle_and_own_s() - spare_s) / (time.monotonic() - begin_s)
    if spare < 1.4:  # one of the two samples that the loop took may have been a third of a CPU less
        return f"others left {spare:.1f} CPUs of {len(ALLOWED)}, and it takes the loop's own and some of another"
    if caught < 50:
        return f"it hardly waits: {caught + missed} waits seen; the client seems to share its CPU"
    if caught < 10 * missed:
        us = 2 * loop._adaptive_state()["wake_ns"] // 1000
        return f"the client's answers take longer than a look of {us} us: {caught} of {caught + missed} do not"
    raise AssertionError(f"{spare:.1f} CPUs spare ({most_spare:.1f} seen), {caught} of {caught + missed} waits short")


async def used_in_silence() -> float:
    """What the process uses of a CPU while nothing happens; the least of a few counts, for garbage is collected too."""
    before_s, begin_s = time.process_time(), time.monotonic()
    await asyncio.sleep(SILENCE_S)
    return (time.process_time() - before_s) / (time.monotonic() - begin_s)


@pytest.mark.quiet
def test_dense_requests_are_looked_for_and_silence_is_not(loop):
    """One client that asks as soon as it has its answer, while a CPU is spare; and then nobody."""

    async def main() -> None:
        loop.set_adaptive_polling()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, str(port))
        try:
            reason = await until_it_looks(loop)
        finally:
            client.kill()
            await client.wait()
        server.close()
        await asyncio.sleep(0.05)
        used = min([await used_in_silence() for _ in range(3)])
        assert used <= IDLE_CPU_MAX, f"{used:.2%} of a CPU while nothing happened"
        assert loop._next_wait()[0] == 0
        if reason:
            pytest.skip(f"not run: {reason}")

    loop.run_until_complete(main())


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
