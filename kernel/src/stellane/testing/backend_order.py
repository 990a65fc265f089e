"""Rules of a ready queue that is ordered by priority (Capability.OWN_READY_QUEUE)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from stellane.abc.backend import Backend, Capability, Priority
from stellane.testing.backend_runner import BackendRules

LEAST_URGENT_FIRST = tuple(sorted(Priority, reverse=True))
URGENT_STEPS_MAX = 20_000
"""Steps of urgent work beside which one task of low priority has to come to an end."""
LOW_STEPS = 20
FLOOD = 300
SENT_BY = 10
"""The step of the flood during which something arrives."""
FLOOD_STEP_S = 0.002
"""Longer than the least budget of a turn that a backend could be given, and than the default."""


class OrderRules(BackendRules):
    """What is urgent overtakes, and nothing starves."""

    @pytest.mark.requires(Capability.OWN_READY_QUEUE)
    def test_the_most_urgent_goes_on_first(self) -> None:
        """Tasks that wait for their next step take it in the order of their priority, equal ones as they came."""
        log: list[tuple[Priority, int]] = []

        async def work(priority: Priority, number: int) -> None:
            await asyncio.sleep(0)
            log.append((priority, number))

        async def main(backend: Backend) -> None:
            works = [(priority, number) for number in range(2) for priority in LEAST_URGENT_FIRST]
            await asyncio.gather(*(backend.schedule(work(*each), priority=each[0]) for each in works))

        self.run_main(main, self.make_ordered_backend())
        assert log == sorted(log)

    @pytest.mark.requires(Capability.OWN_READY_QUEUE)
    def test_the_most_urgent_starts_first(self) -> None:
        """Coroutines scheduled before run, or by another thread, start in the order of their priority."""
        log: list[Priority] = []

        async def work(priority: Priority) -> None:
            log.append(priority)

        def schedule_all(backend: Backend) -> None:
            for priority in LEAST_URGENT_FIRST:
                backend.schedule(work(priority), priority=priority)

        async def main(backend: Backend) -> list[Priority]:
            while len(log) < len(Priority):
                await asyncio.sleep(0)
            before_run = log.copy()
            log.clear()
            # The loop is kept from looking until all four are there.
            thread = threading.Thread(target=schedule_all, args=(backend,))
            thread.start()
            thread.join()
            while len(log) < len(Priority):
                await asyncio.sleep(0)
            return before_run

        backend = self.make_ordered_backend()
        schedule_all(backend)
        assert self.run_main(main, backend) == sorted(Priority)
        assert log == sorted(Priority)

    @pytest.mark.requires(Capability.OWN_READY_QUEUE)
    def test_urgent_work_starves_nobody(self) -> None:
        """A task of low priority comes to its end beside urgent ones that always have a next step."""
        urgent_steps = 0
        ended = False

        async def urgent() -> None:
            nonlocal urgent_steps
            while not ended and urgent_steps < URGENT_STEPS_MAX:
                urgent_steps += 1
                await asyncio.sleep(0)

        async def low() -> int:
            nonlocal ended
            for _ in range(LOW_STEPS):
                await asyncio.sleep(0)
            ended = True
            return urgent_steps

        async def main(backend: Backend) -> int:
            tasks = [backend.schedule(urgent(), priority=Priority.URGENT) for _ in range(3)]
            steps = await backend.schedule(low(), priority=Priority.LOW)
            await asyncio.gather(*tasks)
            return int(steps)

        assert self.run_main(main, self.make_ordered_backend()) < URGENT_STEPS_MAX

    @pytest.mark.requires(Capability.OWN_READY_QUEUE)
    def test_what_arrives_overtakes_a_flood(self) -> None:
        """Events are looked for in between: bytes for a normal task need not wait until all low ones have run."""
        steps = arrived = 0

        async def flood(theirs: socket.socket) -> None:
            nonlocal steps
            await asyncio.sleep(0)
            steps += 1
            if steps == SENT_BY:
                theirs.send(b"x")
            time.sleep(FLOOD_STEP_S)  # noqa: ASYNC251 - work that keeps the loop busy

        async def receive(ours: socket.socket) -> None:
            nonlocal arrived
            await asyncio.get_running_loop().sock_recv(ours, 1)
            arrived = steps

        async def main(backend: Backend) -> None:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with ours, theirs:
                received = backend.schedule(receive(ours))
                await asyncio.sleep(0)
                low: list[Any] = [backend.schedule(flood(theirs), priority=Priority.LOW) for _ in range(FLOOD)]
                await asyncio.gather(received, *low)

        self.run_main(main, self.make_ordered_backend())
        assert SENT_BY <= arrived < FLOOD // 4
