"""Callbacks and timers: `call_soon`, `call_later`, `call_soon_threadsafe`."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading

CHAIN = 100_000
"""Callbacks one after the other, each scheduled by the one before."""
BATCH, BATCHES = 1000, 100
"""Callbacks scheduled together, and how often."""
TIMERS = 100_000
TIMER_MIN_S, TIMER_MAX_S = 0.05, 0.55
CHECKED = 1000
"""Timers of the pass that is verified one by one."""
THREADS, POSTS = 4, 25_000
"""Threads, and callbacks that each of them posts."""


class Chain:
    """`call_soon` of one callback by another; an operation is one callback."""

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        seen: list[int] = []
        for i in range(100):
            loop.call_soon(seen.append, i)
        loop.call_soon(loop.stop)
        loop.run_forever()
        if seen != list(range(100)):
            raise RuntimeError(f"callbacks ran in the order {seen}")
        self.run(loop)

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        left = CHAIN

        def step() -> None:
            nonlocal left
            left -= 1
            if left:
                loop.call_soon(step)
            else:
                loop.stop()

        loop.call_soon(step)
        loop.run_forever()
        if left:
            raise RuntimeError(f"the loop stopped with {left} callbacks left")
        return CHAIN


class Batch:
    """`call_soon` of many callbacks with an argument in one turn; an operation is one callback."""

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._pass(loop) != list(range(BATCH)) * BATCHES:
            raise RuntimeError("callbacks did not run in order, or not all of them")

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        count = len(self._pass(loop))
        if count != BATCH * BATCHES:
            raise RuntimeError(f"{count} callbacks ran of {BATCH * BATCHES}")
        return count

    def _pass(self, loop: asyncio.AbstractEventLoop) -> list[int]:
        done: list[int] = []
        take = done.append
        left = BATCHES

        def schedule() -> None:
            nonlocal left
            if not left:
                loop.stop()
                return
            left -= 1
            for i in range(BATCH):
                loop.call_soon(take, i)
            loop.call_soon(schedule)

        loop.call_soon(schedule)
        loop.run_forever()
        return done


class Timers:
    """100,000 `call_later`, every second one cancelled, the rest fired; an operation is one timer."""

    def __init__(self) -> None:
        # The same delays, in the same disorder, for every loop and round.
        shuffled = random.Random(3)
        step = (TIMER_MAX_S - TIMER_MIN_S) / TIMERS
        self.delays = [TIMER_MIN_S + step * i for i in range(TIMERS)]
        shuffled.shuffle(self.delays)

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Timers run in the order of their times, none early, none that was cancelled."""
        wrong: list[str] = []
        order: list[float] = []

        def fire(when: float) -> None:
            order.append(when)
            if loop.time() < when - tolerance_s:
                wrong.append(f"{when - loop.time():.6f} s early")

        start = loop.time()
        for delay in self.delays[:CHECKED]:
            loop.call_later(delay, fire, loop.time() + delay)
            loop.call_later(delay, wrong.append, "a cancelled timer fired").cancel()
        # libuv counts in milliseconds, from the time at which its turn began.
        tolerance_s = loop.time() - start + 0.002
        loop.call_later(TIMER_MAX_S + 0.05, loop.stop)
        loop.run_forever()
        if any(later < earlier - tolerance_s for earlier, later in itertools.pairwise(order)):
            wrong.append("timers fired out of order")
        if wrong or len(order) != CHECKED:
            raise RuntimeError(f"{len(order)} timers of {CHECKED} fired; {wrong[:3]}")

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        fired = cancelled_fired = 0

        def fire() -> None:
            nonlocal fired
            fired += 1
            if fired == TIMERS // 2:
                loop.stop()

        def must_not_fire() -> None:
            nonlocal cancelled_fired
            cancelled_fired += 1

        def create() -> None:
            for delay in self.delays[1::2]:
                loop.call_later(delay, fire)
            for handle in [loop.call_later(delay, must_not_fire) for delay in self.delays[::2]]:
                handle.cancel()

        loop.call_soon(create)
        loop.run_forever()
        if fired != TIMERS // 2 or cancelled_fired:
            raise RuntimeError(f"{fired} timers fired of {TIMERS // 2}, and {cancelled_fired} cancelled ones")
        return TIMERS


class Threadsafe:
    """`call_soon_threadsafe` from four threads at once; an operation is one callback."""

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        self.run(loop)

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        seen = [0] * THREADS
        out_of_order = 0
        left = THREADS * POSTS

        def take(thread: int, number: int) -> None:
            nonlocal left, out_of_order
            out_of_order += number != seen[thread]
            seen[thread] += 1
            left -= 1
            if not left:
                loop.stop()

        def post(thread: int) -> None:
            for number in range(POSTS):
                loop.call_soon_threadsafe(take, thread, number)

        threads = [threading.Thread(target=post, args=(i,)) for i in range(THREADS)]
        loop.call_soon(lambda: [thread.start() for thread in threads])
        loop.run_forever()
        for thread in threads:
            thread.join()
        if left or out_of_order:
            raise RuntimeError(f"{left} callbacks did not run, {out_of_order} ran out of order")
        return THREADS * POSTS
