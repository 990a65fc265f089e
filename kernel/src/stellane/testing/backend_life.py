"""Rules of a backend's life: run, stop, what is left behind."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stellane.abc.backend import Backend, Capability
from stellane.testing.backend_runner import BackendRules
from stellane.testing.leaks import Resources
from stellane.testing.watchdog import watchdog

AFTER_S = 0.1


class LifeRules(BackendRules):
    """new, running, closing, closed."""

    def test_declares_itself(self) -> None:
        """capabilities is a frozenset of Capability, and new_event_loop gives a new asyncio loop each time."""
        backend = self.make_backend()
        assert isinstance(backend, Backend)
        assert isinstance(backend.capabilities, frozenset)
        assert all(isinstance(capability, Capability) for capability in backend.capabilities)
        loops = [backend.new_event_loop(), backend.new_event_loop()]
        try:
            assert loops[0] is not loops[1]
            for loop in loops:
                assert isinstance(loop, asyncio.AbstractEventLoop)
                assert not loop.is_running()
                assert not loop.is_closed()
        finally:
            for loop in loops:
                loop.close()

    def test_run_blocks_until_stop(self) -> None:
        """run returns after stop and not before, whether or not there is something to do."""
        backend = self.make_backend()
        timer = threading.Timer(AFTER_S, backend.stop)
        began = time.monotonic()
        timer.start()
        with watchdog(self.deadline_s):
            backend.run()
        assert time.monotonic() - began >= AFTER_S
        timer.join()

    def test_is_running_tells_the_truth(self) -> None:
        """is_running is True exactly while run executes, seen from any thread."""
        backend = self.make_backend()
        assert not backend.is_running()

        async def main(backend: Backend) -> tuple[bool, bool]:
            return backend.is_running(), await asyncio.to_thread(backend.is_running)

        assert self.run_main(main, backend) == (True, True)
        assert not backend.is_running()

    def test_stop_from_another_thread(self) -> None:
        """stop wakes a loop that is idle."""
        with self.running() as backend:
            time.sleep(AFTER_S)
            began = time.monotonic()
            backend.stop()
            while backend.is_running() and time.monotonic() - began < self.soon_s:
                time.sleep(0.001)
            assert not backend.is_running(), f"still running {self.soon_s} s after stop"

    def test_stop_is_idempotent(self) -> None:
        """stop may be called again: while running, by several threads, and after the end."""
        failures: list[BaseException] = []

        def stop(backend: Backend) -> None:
            try:
                backend.stop()
            except BaseException as error:
                failures.append(error)

        with self.running() as backend:
            threads = [threading.Thread(target=stop, args=(backend,)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        stop(backend)
        assert failures == []

    def test_stop_before_run(self) -> None:
        """After an early stop run returns at once; what was scheduled is cancelled and never starts."""
        backend = self.make_backend()
        started = []

        async def work() -> None:
            started.append(True)

        coroutine = work()
        handle = backend.schedule(coroutine)
        backend.stop()
        with watchdog(self.deadline_s):
            backend.run()
        assert started == []
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        assert handle.cancelled()

    def test_stop_from_a_signal_handler(self) -> None:
        """A Python signal handler that calls stop ends run, also when the loop is idle."""
        backend = self.make_backend()
        previous = signal.signal(signal.SIGUSR1, lambda *_: backend.stop())
        timer = threading.Timer(AFTER_S, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            with watchdog(self.deadline_s):
                backend.run()
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, previous)
        assert not backend.is_running()

    def test_run_twice_is_refused(self) -> None:
        """run raises RuntimeError while it runs, in any thread, and after it has ended."""
        backend = self.make_backend()

        async def main(backend: Backend) -> None:
            with pytest.raises(RuntimeError):
                backend.run()
            with pytest.raises(RuntimeError):
                await asyncio.to_thread(backend.run)

        self.run_main(main, backend)
        with watchdog(self.deadline_s), pytest.raises(RuntimeError):
            backend.run()

    def test_leftovers_are_cancelled(self) -> None:
        """Tasks that are unfinished at stop are cancelled and may clean up, awaiting; so may what they start."""
        log: list[str] = []

        async def deeper() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("deeper cleaned up")

        async def leftover() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)
                log.append("cleaned up")
                keep.append(asyncio.get_running_loop().create_task(deeper()))
                await asyncio.sleep(0)
                raise

        keep: list[asyncio.Task[None]] = []
        handles: list[asyncio.Future[Any]] = []

        async def main(backend: Backend) -> None:
            handles.append(backend.schedule(leftover()))
            await asyncio.sleep(0)

        self.run_main(main)
        assert log == ["cleaned up", "deeper cleaned up"]
        assert handles[0].cancelled()
        assert keep[0].cancelled()

    def test_asynchronous_generators_are_closed(self) -> None:
        """A generator that was left half-way runs its finally block, which may await, before run returns."""
        log = []

        async def numbers() -> AsyncIterator[int]:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                log.append("closed")

        generator = numbers()

        async def main(_: Backend) -> int:
            return await anext(generator)

        assert self.run_main(main) == 1
        assert log == ["closed"]

    def test_the_executor_is_waited_for(self) -> None:
        """Functions that still run in the default executor end before run returns, and so do its threads."""
        log = []
        began = threading.Event()

        def work() -> None:
            began.set()
            time.sleep(3 * AFTER_S)
            log.append("done")

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            futures.append(loop.run_in_executor(None, work))
            while not began.is_set():
                await asyncio.sleep(0.001)

        futures: list[asyncio.Future[None]] = []
        before = Resources.now().threads
        self.run_main(main)
        assert log == ["done"]
        assert Resources.now().threads - before == frozenset()

    def test_the_loop_is_closed(self) -> None:
        """After run the loop is closed, and this thread is inside no loop."""

        async def main(_: Backend) -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        loop = self.run_main(main)
        assert loop.is_closed()
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()

    def test_another_backend_may_follow(self) -> None:
        """A thread may run one backend after another; each has a loop of its own."""

        async def main(_: Backend) -> asyncio.AbstractEventLoop:
            await asyncio.sleep(0.001)
            return asyncio.get_running_loop()

        loops = [self.run_main(main) for _ in range(3)]
        assert len({id(loop) for loop in loops}) == 3

    def test_two_threads_run_two_backends(self) -> None:
        """Backends of one kind know nothing of each other: one may stop while the other goes on."""

        async def which() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        with self.running() as one:
            with self.running() as other:
                loops = [backend.schedule(which()).result(self.deadline_s) for backend in (one, other)]  # type: ignore[call-arg]
                assert loops[0] is not loops[1]
            assert not other.is_running()
            assert one.is_running()
            assert one.schedule(which()).result(self.deadline_s) is loops[0]  # type: ignore[call-arg]

    def test_an_interrupt_leaves_run(self) -> None:
        """KeyboardInterrupt in a coroutine comes out of run, after the same clean-up as ever."""
        backend = self.make_backend()
        log = []

        async def leftover() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("cleaned up")

        async def interrupted() -> None:
            await asyncio.sleep(0.01)
            raise KeyboardInterrupt("as if typed")

        backend.schedule(leftover())
        backend.schedule(interrupted())
        with watchdog(self.deadline_s), pytest.raises(KeyboardInterrupt, match="as if typed"):
            backend.run()
        assert log == ["cleaned up"]
        assert not backend.is_running()

    def test_statistics_are_true(self) -> None:
        """running, tasks, scheduled_total and loop_class are what they say."""
        backend = self.make_backend()
        assert (backend.statistics().running, backend.statistics().scheduled_total) == (False, 0)

        async def main(backend: Backend) -> None:
            before = backend.statistics()
            for _ in range(5):
                backend.schedule(asyncio.sleep(60))
            found = backend.statistics()
            assert (before.running, before.tasks, before.scheduled_total) == (True, 1, 1)
            assert (found.running, found.tasks, found.scheduled_total) == (True, 6, 6)
            assert found.loop_class.endswith(type(asyncio.get_running_loop()).__qualname__)

        self.run_main(main, backend)
        found = backend.statistics()
        assert (found.running, found.tasks, found.scheduled_total) == (False, 0, 6)

    def test_nothing_is_leaked(self) -> None:
        """After run the process has the descriptors and threads it had before."""

        async def main(_: Backend) -> None:
            await asyncio.to_thread(time.sleep, 0)
            here, there = await asyncio.get_running_loop().run_in_executor(None, os.pipe)
            os.close(here)
            os.close(there)

        self.run_main(main)  # what is made once for the whole process is not a leak
        before = Resources.now()
        for _ in range(3):
            self.run_main(main)
        assert before.leaked(deadline_s=self.soon_s) == []
