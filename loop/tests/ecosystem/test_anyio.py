"""anyio's asyncio backend: streams, TLS, threads in both directions, cancel scopes, processes."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loop.tests.conformance.loops import Factory
from loop.tests.ecosystem.conftest import TLS, Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload

require("anyio")
import anyio  # noqa: E402
from anyio import from_thread, to_process, to_thread  # noqa: E402
from anyio.abc import ByteStream, SocketAttribute  # noqa: E402
from anyio.streams.tls import TLSListener, TLSStream  # noqa: E402

Run = Callable[[Program], Any]


async def echo(stream: ByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def exchange(stream: ByteStream, sent: bytes) -> None:
    """Send all of it and read it back, at the same time."""
    received = bytearray()

    async def receive() -> None:
        while len(received) < len(sent):
            received.extend(await stream.receive(1 << 16))

    async with stream, anyio.create_task_group() as group:
        group.start_soon(receive)
        await stream.send(sent)
    assert bytes(received) == sent


async def overfill(stream: ByteStream) -> None:
    """Send, and read nothing, until the buffers are full; and then wait in vain."""
    with anyio.fail_after(0.1):
        while True:
            await stream.send(bytes(1 << 20))


def test_tcp(run: Run) -> None:
    async def program() -> None:
        async with (
            await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
            anyio.create_task_group() as group,
        ):
            group.start_soon(listener.serve, echo)
            port = listener.extra(SocketAttribute.local_port)
            async with anyio.create_task_group() as clients:
                for seed in range(20):
                    stream = await anyio.connect_tcp("127.0.0.1", port)
                    clients.start_soon(exchange, stream, payload(500_000, seed))
            await exchange(await anyio.connect_tcp("127.0.0.1", port), payload(LARGE_BYTES))
            group.cancel_scope.cancel()

    run(program())


def test_unix(run: Run, tmp_path: Path) -> None:
    async def program() -> None:
        path = tmp_path / "socket"
        async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with anyio.create_task_group() as clients:
                for seed in range(20):
                    clients.start_soon(exchange, await anyio.connect_unix(path), payload(500_000, seed))
            group.cancel_scope.cancel()

    run(program())


def test_tls(run: Run, tls: TLS) -> None:
    async def program() -> None:
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
        async with TLSListener(plain, tls.server) as listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            port = plain.extra(SocketAttribute.local_port)

            async def client(seed: int) -> None:
                stream = await anyio.connect_tcp("127.0.0.1", port)
                wrapped = await TLSStream.wrap(stream, hostname="127.0.0.1", ssl_context=tls.client)
                await exchange(wrapped, payload(300_000, seed))

            async with anyio.create_task_group() as clients:
                for seed in range(10):
                    clients.start_soon(client, seed)
            group.cancel_scope.cancel()

    run(program())


def test_udp(run: Run) -> None:
    async def program() -> None:
        async with (
            await anyio.create_udp_socket(local_host="127.0.0.1") as one,
            await anyio.create_connected_udp_socket("127.0.0.1", one.extra(SocketAttribute.local_port)) as other,
        ):
            for number in range(100):
                await other.send(f"{number}".encode())
                data, (host, port) = await one.receive()
                assert data == f"{number}".encode()
                await one.sendto(data * 2, host, port)
                assert await other.receive() == data * 2

    run(program())


def test_threads_in_both_directions(run: Run) -> None:
    async def program() -> None:
        main = threading.get_ident()

        async def back(number: int) -> int:
            await anyio.sleep(0)
            assert threading.get_ident() == main
            return number * 2

        def work(number: int) -> int:
            assert threading.get_ident() != main
            assert from_thread.run_sync(threading.get_ident) == main
            return from_thread.run(back, number) + 1

        async def one(number: int) -> None:
            results[number] = await to_thread.run_sync(work, number)

        results: dict[int, int] = {}
        async with anyio.create_task_group() as group:
            for number in range(100):
                group.start_soon(one, number)
        assert results == {number: number * 2 + 1 for number in range(100)}

    run(program())


def test_a_portal_runs_the_loop_in_another_thread(new_loop: Factory, watched: None) -> None:
    async def which() -> type:
        return type(asyncio.get_running_loop())

    loop = new_loop()
    expected = type(loop)
    loop.close()
    with from_thread.start_blocking_portal("asyncio", {"loop_factory": new_loop}) as portal:
        assert portal.call(which) is expected
        futures = [portal.start_task_soon(anyio.sleep, 0.01) for _ in range(50)]
        forever = portal.start_task_soon(anyio.sleep_forever)
        for future in futures:
            future.result(10)
        forever.cancel()
    assert anyio.run(which, backend_options={"loop_factory": new_loop}) is expected


def test_cancel_scopes_end_what_waits(run: Run) -> None:
    async def program() -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                for number in range(20):
                    with anyio.move_on_after(0.005) as scope:
                        await stream.receive()
                    assert scope.cancelled_caught
                    await stream.send(b"%d" % number)
                    assert await stream.receive() == b"%d" % number
                with pytest.raises(TimeoutError):
                    await overfill(stream)
            group.cancel_scope.cancel()

    run(program())


def test_processes(run: Run) -> None:
    async def program() -> None:
        sent = payload(1 << 20)
        completed = await anyio.run_process(["cat"], input=sent)
        assert completed.stdout == sent
        async with await anyio.open_process([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
            with anyio.move_on_after(0.05) as scope:
                await process.wait()
            assert scope.cancelled_caught
            process.kill()
            assert await process.wait() == -9

    run(program())


def test_worker_processes(new_loop: Factory, watched: None) -> None:
    """Not by `run`: anyio ends its pool of processes with the loop, by a task of its own."""

    async def program() -> None:
        for _ in range(3):
            assert await to_process.run_sync(divmod, 17, 5) == (3, 2)

    anyio.run(program, backend_options={"loop_factory": new_loop})
