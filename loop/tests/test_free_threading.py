"""What threads may do to a loop at the same time: without the interpreter's lock only the loop's own care holds."""

from __future__ import annotations

import asyncio
import gc
import sys
import sysconfig
import threading

import pytest

import stellane_loop

THREADS = 4
CALLS = 3_000
"""A thread's; enough for the threads to meet many times without a lock, and a tenth of a second."""

LOOPS = 20 if sysconfig.get_config_var("Py_GIL_DISABLED") else 3
"""With the lock each takes a quarter of a second, and the lock keeps the threads apart anyway."""

without_lock = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="not run: the interpreter has its lock"
)


def in_threads(work) -> list[threading.Thread]:
    """`work` in THREADS threads that begin at once. They are to be joined."""
    together = threading.Barrier(THREADS)

    def begin(number: int) -> None:
        together.wait(30)
        work(number)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@without_lock
def test_the_lock_stays_off(loop: stellane_loop.Loop):
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not sys._is_gil_enabled()


@pytest.mark.parametrize("order", [None, stellane_loop.PriorityOrder], ids=["in turn", "by priority"])
def test_calls_of_many_threads_run_once_in_the_order_of_each(loop: stellane_loop.Loop, order):
    """Also those from before the loop ran, when its own thread schedules at the same time."""
    seen: dict[int, list[int]] = {number: [] for number in range(-1, THREADS)}
    if order is not None:
        loop.set_ready_order(order())

    def post(number: int) -> None:
        for call in range(CALLS):
            loop.call_soon_threadsafe(seen[number].append, call)

    threads = in_threads(post)
    for call in range(CALLS):
        loop.call_soon(seen[-1].append, call)

    async def all_of_them() -> None:
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.001)

    loop.run_until_complete(asyncio.wait_for(all_of_them(), 30))
    loop.run_until_complete(asyncio.sleep(0))
    join(threads)
    assert seen == {number: list(range(CALLS)) for number in range(-1, THREADS)}


class Call:
    """What only its handle keeps alive."""

    def __init__(self, counts: list[int], number: int) -> None:
        self.counts, self.number = counts, number

    def run(self) -> None:
        self.counts[self.number] += 1


def test_calls_that_another_thread_cancels_run_once_or_not_at_all(loop: stellane_loop.Loop):
    """Cancelled at any moment: before they run, while they do, and after."""
    errors: list[dict] = []
    loop.set_exception_handler(lambda _loop, context: errors.append(context))
    for behind in range(0, 100, 5):  # so that the two meet whichever of them is quicker
        counts = [0] * CALLS
        handles = [loop.call_soon_threadsafe(Call(counts, number).run) for number in range(CALLS)]
        together = threading.Barrier(2)

        def cancel(handles=handles, behind=behind, together=together) -> None:
            together.wait(30)
            for handle in handles[behind:]:
                handle.cancel()

        loop.call_soon(loop.stop)
        canceller = threading.Thread(target=cancel)
        canceller.start()
        together.wait(30)
        loop.run_forever()
        join([canceller])
        assert counts[:behind] == [1] * behind
        assert set(counts) <= {0, 1}
        assert not errors


def test_before_it_runs_the_order_of_all_that_is_scheduled_is_kept(loop: stellane_loop.Loop):
    seen: list[int] = []
    for number in range(4):
        (loop.call_soon, loop.call_soon_threadsafe)[number % 2](seen.append, number)
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(seen.append, 4))
    thread.start()
    join([thread])
    loop.call_soon(seen.append, 5)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == list(range(6))


def test_a_loop_may_be_closed_under_threads_that_call_it(new_loop):
    """Each call is taken or refused; none of them touches what was freed."""
    refused: list[int] = []
    for _ in range(LOOPS):
        loop = new_loop()

        def call_until_it_is_closed(_number: int, loop: stellane_loop.Loop = loop) -> None:
            while True:
                try:
                    loop.call_soon_threadsafe(int)
                except RuntimeError:
                    refused.append(1)
                    return

        threads = in_threads(call_until_it_is_closed)
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        join(threads)
    assert len(refused) == LOOPS * THREADS


def test_loops_serve_side_by_side(poller: str):
    """A loop in each thread, with streams, timers and tasks of its own, calling each other."""
    loops: dict[int, stellane_loop.Loop] = {}
    ready = threading.Barrier(THREADS)
    heard = [0] * THREADS
    failures: list[BaseException] = []

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def hear(number: int) -> None:
        heard[number] += 1

    async def client(port: int, size: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for turn in range(20):
            sent = bytes([turn]) * size
            writer.write(sent)
            assert await reader.readexactly(size) == sent
        writer.close()
        await writer.wait_closed()

    async def serve(number: int) -> None:
        loops[number] = asyncio.get_running_loop()
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        await asyncio.to_thread(ready.wait, 30)
        neighbour = loops[(number + 1) % THREADS]
        calls = [
            asyncio.wrap_future(asyncio.run_coroutine_threadsafe(hear((number + 1) % THREADS), neighbour))
            for _ in range(200)
        ]
        port = server.sockets[0].getsockname()[1]
        await asyncio.gather(*calls, *(client(port, size) for size in (1, 1000, 100_000)))
        await asyncio.to_thread(ready.wait, 30)
        server.close()

    def live(number: int) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(poller)) as runner:
                runner.run(asyncio.wait_for(serve(number), 30))
        except BaseException as error:
            failures.append(error)
            ready.abort()

    join(in_threads(live))
    assert not failures
    assert heard == [200] * THREADS
    loops.clear()
    gc.collect()
