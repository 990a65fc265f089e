"""Rules of `schedule`: from where, in which order, in which context."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from stellane.abc.backend import Backend, Priority
from stellane.testing.backend_runner import BackendRules

THREADS = 8
COROUTINES = 1000
WAKE_UPS = 20

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class ScheduleRules(BackendRules):
    """Any thread, at any time."""

    def test_schedule_before_run(self) -> None:
        """Coroutines scheduled before run start with it, in order."""
        backend = self.make_backend()
        log: list[int] = []

        async def work(number: int) -> None:
            log.append(number)

        for number in range(10):
            backend.schedule(work(number))
        assert log == []

        async def main(_: Backend) -> list[int]:
            return log.copy()

        assert self.run_main(main, backend) == list(range(10))

    def test_schedule_on_the_loop_gives_the_task(self) -> None:
        """On the loop's own thread schedule returns the asyncio.Task, to be awaited or cancelled."""

        async def main(backend: Backend) -> None:
            task = backend.schedule(asyncio.sleep(0.001, "slept"))
            assert isinstance(task, asyncio.Task)
            assert await task == "slept"
            task = backend.schedule(asyncio.sleep(60))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        self.run_main(main)

    def test_a_scheduled_task_is_kept(self) -> None:
        """A task that waits for what only itself refers to is not garbage, whoever scheduled it."""
        waited_for: list[weakref.ref[asyncio.Future[None]]] = []
        ended: list[str] = []

        async def wait(name: str) -> None:
            future = asyncio.get_running_loop().create_future()
            waited_for.append(weakref.ref(future))
            await future
            ended.append(name)

        async def main(backend: Backend) -> None:
            backend.schedule(wait("by the loop"))
            await asyncio.to_thread(lambda: backend.schedule(wait("by a thread")) and None)
            deadline = time.monotonic() + self.soon_s
            while len(waited_for) < 2 and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            gc.collect()
            for reference in waited_for:
                future = reference()
                assert future is not None, "a scheduled task was collected while it waited"
                future.set_result(None)
            del future
            while len(ended) < 2 and time.monotonic() < deadline:
                await asyncio.sleep(0.001)

        self.run_main(main)
        assert sorted(ended) == ["by a thread", "by the loop"]

    def test_schedule_from_a_thread_gives_a_handle(self) -> None:
        """In another thread the handle's result(timeout) waits for the result, or raises the exception."""

        async def answer() -> int:
            await asyncio.sleep(0.001)
            return 42

        async def fail() -> None:
            await asyncio.sleep(0.001)
            raise LookupError("as told")

        with self.running() as backend:
            assert backend.schedule(answer()).result(self.deadline_s) == 42  # type: ignore[call-arg]
            with pytest.raises(LookupError, match="as told"):
                backend.schedule(fail()).result(self.deadline_s)  # type: ignore[call-arg]

    def test_cancelling_a_handle_cancels_the_task(self) -> None:
        """handle.cancel() in another thread reaches the coroutine as CancelledError."""
        waiting, cancelled = threading.Event(), threading.Event()

        async def work() -> None:
            waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with self.running() as backend:
            handle = backend.schedule(work())
            assert waiting.wait(self.deadline_s)
            assert handle.cancel()
            assert cancelled.wait(self.soon_s), "the coroutine did not hear of it"

    def test_schedule_wakes_an_idle_loop(self) -> None:
        """A coroutine scheduled by another thread starts soon although the loop sleeps."""

        async def now() -> float:
            return time.monotonic()

        with self.running() as backend:
            for _ in range(WAKE_UPS):
                time.sleep(0.002)
                began = time.monotonic()
                started = backend.schedule(now()).result(self.deadline_s)  # type: ignore[call-arg]
                assert started - began < self.soon_s

    def test_schedule_from_many_threads(self) -> None:
        """8 threads schedule 1000 coroutines each: all of them run once, those of a thread in its order."""
        ran: list[tuple[int, int]] = []

        async def work(thread: int, number: int) -> None:
            ran.append((thread, number))

        def feed(backend: Backend, thread: int) -> None:
            for number in range(COROUTINES):
                backend.schedule(work(thread, number))

        with self.running() as backend:
            threads = [threading.Thread(target=feed, args=(backend, number)) for number in range(THREADS)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(self.deadline_s)
            deadline = time.monotonic() + self.deadline_s
            while len(ran) < THREADS * COROUTINES and time.monotonic() < deadline:
                time.sleep(0.005)
        assert len(ran) == THREADS * COROUTINES
        for number in range(THREADS):
            assert [item for thread, item in ran if thread == number] == list(range(COROUTINES))

    def test_schedule_after_the_end_is_refused(self) -> None:
        """RuntimeError once run has ended, and the coroutine is closed: nothing is left never awaited."""
        backend = self.make_backend()

        async def main(_: Backend) -> None:
            return None

        async def late() -> None:
            return None

        self.run_main(main, backend)
        coroutine = late()
        with pytest.raises(RuntimeError):
            backend.schedule(coroutine)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED

    def test_schedule_takes_coroutines_only(self) -> None:
        """A function that was not called, or a value, is a TypeError where schedule was called."""

        async def work() -> None:
            return None

        backend = self.make_backend()
        for mistake in (work, 42, None):
            with pytest.raises(TypeError):
                backend.schedule(mistake)  # type: ignore[arg-type]

        async def main(backend: Backend) -> None:
            with pytest.raises(TypeError):
                backend.schedule(work)  # type: ignore[arg-type]

        self.run_main(main, backend)

    def test_the_scheduler_s_context_is_copied(self) -> None:
        """A coroutine sees the context variables of whoever scheduled it, and its changes stay its own."""
        seen: dict[str, str] = {}

        async def look(where: str) -> None:
            seen[where] = variable.get()
            variable.set("changed inside")
            await asyncio.sleep(0)

        def schedule_with(value: str, backend: Backend) -> Any:
            variable.set(value)
            handle = backend.schedule(look(value))
            assert variable.get() == value
            return handle

        async def main(backend: Backend) -> None:
            await schedule_with("on the loop", backend)
            handle = await asyncio.to_thread(schedule_with, "in a thread", backend)
            await asyncio.wrap_future(handle)

        backend = self.make_backend()
        contextvars.copy_context().run(schedule_with, "before run", backend)
        self.run_main(main, backend)
        assert seen == {where: where for where in ("before run", "on the loop", "in a thread")}

    def test_a_given_context_is_used(self) -> None:
        """With context= the coroutine runs in that context itself: what it sets is found there afterwards."""
        contexts = [contextvars.copy_context() for _ in range(3)]

        async def leave(word: str) -> None:
            await asyncio.sleep(0)
            variable.set(word)

        async def main(backend: Backend) -> None:
            await backend.schedule(leave("on the loop"), context=contexts[1])
            handle = await asyncio.to_thread(backend.schedule, leave("in a thread"), context=contexts[2])
            await asyncio.wrap_future(handle)

        backend = self.make_backend()
        backend.schedule(leave("before run"), context=contexts[0])
        self.run_main(main, backend)
        assert [context[variable] for context in contexts] == ["before run", "on the loop", "in a thread"]
        assert variable.get() == "unset"

    def test_a_context_may_be_shared(self) -> None:
        """A coroutine may schedule another one into the very context it runs in."""
        shared = contextvars.copy_context()

        async def inner() -> None:
            variable.set("from inside")

        async def outer(backend: Backend) -> str:
            await backend.schedule(inner(), context=shared)
            return variable.get()

        async def main(backend: Backend) -> str:
            return str(await backend.schedule(outer(backend), context=shared))

        assert self.run_main(main) == "from inside"

    def test_priority_and_key_are_accepted(self) -> None:
        """Every priority and key is taken, whether or not the backend orders by them."""

        async def main(backend: Backend) -> list[int]:
            tasks = [backend.schedule(asyncio.sleep(0, int(word)), priority=word, key="k") for word in Priority]
            return [await task for task in tasks]

        assert self.run_main(main) == [0, 1, 2, 3]

    def test_coroutines_start_eagerly(self) -> None:
        """On the loop's thread a coroutine runs to its first wait, inside its own task, before schedule returns."""
        if sys.version_info < (3, 12):
            pytest.skip("not run: asyncio's tasks cannot start eagerly before CPython 3.12")
        log: list[Any] = []

        async def work() -> str:
            log.append(asyncio.current_task())
            await asyncio.sleep(0)
            log.append("went on")
            return "done"

        async def main(backend: Backend) -> None:
            outer = asyncio.current_task()
            task = backend.schedule(work())
            assert log == [task]
            assert asyncio.current_task() is outer
            assert await task == "done"
            assert log == [task, "went on"]

        self.run_main(main)

    def test_a_failed_coroutine_stops_nobody(self) -> None:
        """An exception goes to the coroutine's own task or handle; the loop and all others go on."""

        async def fail() -> None:
            raise LookupError("as told")

        async def fail_later() -> None:
            await asyncio.sleep(0)
            raise LookupError("as told later")

        async def main(backend: Backend) -> str:
            for coroutine in (fail(), fail_later()):
                task = backend.schedule(coroutine)
                with pytest.raises(LookupError):
                    await task
            make: Callable[[], Any] = fail
            handle = await asyncio.to_thread(lambda: backend.schedule(make()))
            with pytest.raises(LookupError):
                await asyncio.wrap_future(handle)
            await asyncio.sleep(0.01)
            return "went on"

        assert self.run_main(main) == "went on"
