"""The order of the ready queue: what is urgent overtakes, and nothing starves."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import socket
import threading
import time

import pytest

import stellane_loop


def test_priority_order_lets_what_is_urgent_overtake(run):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []

        def schedule(level, name):
            stellane_loop.priority.set(level)
            loop.call_soon(seen.append, name)

        loop.set_ready_order(stellane_loop.PriorityOrder(budget_s=1.0))
        for level, name in ((5, "low"), (0, "normal"), (-5, "urgent"), (0, "normal too")):
            contextvars.copy_context().run(schedule, level, name)
        await asyncio.sleep(0.01)
        assert seen == ["urgent", "normal", "normal too", "low"]

    run(main())


def test_what_is_urgent_overtakes_when_another_thread_schedules_it(run):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_ready_order(stellane_loop.PriorityOrder())
        seen = []

        def post() -> None:
            loop.call_soon_threadsafe(seen.append, "as it comes")
            urgent = contextvars.copy_context()
            urgent.run(stellane_loop.priority.set, -5)
            loop.call_soon_threadsafe(seen.append, "urgent", context=urgent)

        thread = threading.Thread(target=post)
        thread.start()
        thread.join()  # the loop has taken neither
        while len(seen) < 2:
            await asyncio.sleep(0)
        assert seen == ["urgent", "as it comes"]

    run(main())


def test_what_is_urgent_overtakes_a_flood_and_the_flood_still_gets_its_share(run):
    """Under strict priority the second half fails: urgent work that never ends would be all that runs."""
    flood, turns = 200, 2000

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_ready_order(stellane_loop.PriorityOrder(oldest_every=10))
        ran = []

        async def work(name, level):
            stellane_loop.priority.set(level)
            while len(ran) < turns:
                await asyncio.sleep(0)
                ran.append(name)

        low = [asyncio.create_task(work(number, 1)) for number in range(flood)]
        await asyncio.sleep(0)  # each of them waits in the queue now
        await asyncio.sleep(0)
        before = len(ran)
        urgent = asyncio.create_task(work("urgent", -1))
        await asyncio.gather(urgent, *low)
        first = ran.index("urgent")
        assert first - before < 5, "it waited behind the flood"
        after = ran[first:turns]
        assert 0.85 <= after.count("urgent") / len(after) <= 0.95
        shares = [after.count(number) for number in range(flood)]
        assert max(shares) - min(shares) <= 1, "the oldest is served first, so none is forgotten"

    run(main())


def test_a_ready_order_gives_way_to_io_when_its_budget_is_spent(run):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_ready_order(stellane_loop.PriorityOrder(budget_s=0.001))
        ran = []
        ours, theirs = socket.socketpair()
        with ours, theirs:
            loop.add_reader(ours, pytest.fail, "nothing was sent")  # without anything open there is nothing to poll for
            for _ in range(20):
                loop.call_soon(lambda: (time.sleep(0.002), ran.append(loop.statistics().polls)))
            await asyncio.sleep(0.2)
            loop.remove_reader(ours)
        assert len(set(ran)) == len(ran) == 20  # a poll between every two of them

    run(main())


def test_a_reader_that_waits_behind_what_is_urgent_is_called_once(run):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_ready_order(stellane_loop.PriorityOrder(budget_s=0.001))
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        called, lengths = [], []

        def read():
            called.append(None)
            with contextlib.suppress(BlockingIOError):
                ours.recv(10)

        def work(rest):
            time.sleep(0.002)
            lengths.append(loop.statistics().ready)
            if rest:
                loop.call_soon(work, rest - 1)

        urgent = contextvars.copy_context()
        urgent.run(stellane_loop.priority.set, -5)
        with ours, theirs:
            for _ in range(2):  # also once it has been called
                called.clear()
                loop.add_reader(ours, read)
                theirs.send(b"x")
                urgent.run(loop.call_soon, work, 30)
                while not called or len(lengths) % 31:
                    await asyncio.sleep(0.001)
                loop.remove_reader(ours)
                assert len(called) <= 2  # one poll may have been under way
        assert max(lengths) < 10

    run(main())


def test_a_reader_that_waited_in_an_order_is_called_without_one_and_in_the_next(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        called = asyncio.Event()
        with ours, theirs:
            theirs.send(b"x")
            loop.add_reader(ours, called.set)
            for order in (stellane_loop.PriorityOrder(budget_s=0.001), None, stellane_loop.PriorityOrder()):
                loop.set_ready_order(order)
                called.clear()
                await asyncio.wait_for(called.wait(), 5)
            loop.remove_reader(ours)

    run(main())


def test_an_order_that_never_serves_the_oldest_is_refused():
    with pytest.raises(ValueError, match="oldest_every is 0; it is a number of callbacks, at least 1"):
        stellane_loop.PriorityOrder(oldest_every=0)


def test_setting_no_order_again_keeps_what_was_scheduled(loop):
    seen = []
    loop.set_ready_order(stellane_loop.PriorityOrder())
    loop.call_soon(seen.append, 1)
    loop.set_ready_order(None)
    loop.call_soon(seen.append, 2)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [1, 2]
