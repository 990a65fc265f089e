"""Rules of the loop itself: callbacks, timers, readiness, tasks, signals, processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from stellane.abc.backend import Backend, Capability
from stellane.testing.backend_runner import BackendRules

WAKE_UPS = 20
RESOLUTION_S = 0.002
"""A loop may round a timer to its clock's ticks; libuv's and epoll's are milliseconds."""


class LoopRules(BackendRules):
    """What asyncio promises its users, as far as servers depend on it."""

    def test_callbacks_run_in_order(self) -> None:
        """call_soon is first in, first out; what a callback adds runs after what was already waiting."""
        log: list[str] = []

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()

            def first() -> None:
                log.append("first")
                loop.call_soon(log.append, "added by first")

            loop.call_soon(first)
            for word in ("second", "third"):
                loop.call_soon(log.append, word)
            await asyncio.sleep(0.01)

        self.run_main(main)
        assert log == ["first", "second", "third", "added by first"]

    def test_timers_fire_in_order(self) -> None:
        """Timers fire by their time, not by when they were made; never early, and not when cancelled."""
        fired: list[tuple[float, float]] = []

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            start = loop.time()

            def fire(due: float) -> None:
                fired.append((due, loop.time() - start))

            for delay_s in (0.06, 0.02, 0.1, 0.04, 0.08):
                loop.call_at(start + delay_s, fire, delay_s)
            loop.call_at(start + 0.05, fired.append, (0.05, 0.0)).cancel()
            while len(fired) < 5:
                await asyncio.sleep(0.01)

        self.run_main(main)
        assert [due for due, _ in fired] == [0.02, 0.04, 0.06, 0.08, 0.1]
        for due, elapsed in fired:
            assert elapsed >= due - RESOLUTION_S

    def test_threads_wake_the_loop(self) -> None:
        """call_soon_threadsafe runs its callback soon although the loop sleeps."""

        async def loop_of() -> asyncio.AbstractEventLoop:
            return asyncio.get_running_loop()

        with self.running() as backend:
            loop = backend.schedule(loop_of()).result(self.deadline_s)  # type: ignore[call-arg]
            for _ in range(WAKE_UPS):
                ran = threading.Event()
                time.sleep(0.002)
                loop.call_soon_threadsafe(ran.set)
                assert ran.wait(self.soon_s), "the loop slept on"

    def test_a_failed_callback_stops_nobody(self) -> None:
        """An exception in a callback reaches the loop's exception handler, and the loop goes on."""
        caught: list[Any] = []

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: caught.append(context["exception"]))
            error = LookupError("as told")

            def fail() -> None:
                raise error

            loop.call_soon(fail)
            loop.call_later(0.001, fail)
            await asyncio.sleep(0.02)
            assert caught == [error, error]

        self.run_main(main)

    def test_readers_are_level_triggered(self) -> None:
        """A reader that takes 1 byte of 10 is called 10 times, and no more after remove_reader."""
        ours, theirs = socket.socketpair()
        taken: list[bytes] = []

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            ours.setblocking(False)
            done = loop.create_future()

            def take() -> None:
                taken.append(ours.recv(1))
                if len(taken) == 10:
                    done.set_result(None)

            loop.add_reader(ours, take)
            theirs.send(b"0123456789")
            await asyncio.wait_for(done, self.soon_s)
            loop.remove_reader(ours)
            theirs.send(b"unread")
            await asyncio.sleep(0.02)

        with ours, theirs:
            self.run_main(main)
            assert b"".join(taken) == b"0123456789"

    def test_writers_are_level_triggered(self) -> None:
        """A writer is called again and again while there is room, and no more after remove_writer."""
        ours, theirs = socket.socketpair()
        calls: list[None] = []

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            ours.setblocking(False)
            done = loop.create_future()

            def count() -> None:
                calls.append(None)
                if len(calls) == 10:
                    done.set_result(None)
                    loop.remove_writer(ours)

            loop.add_writer(ours, count)
            await asyncio.wait_for(done, self.soon_s)
            await asyncio.sleep(0.02)

        with ours, theirs:
            self.run_main(main)
            assert len(calls) == 10

    def test_removing_tells_what_was_there(self) -> None:
        """remove_reader and remove_writer return whether there was something to remove."""
        ours, theirs = socket.socketpair()

        async def main(_: Backend) -> list[bool]:
            loop = asyncio.get_running_loop()
            ours.setblocking(False)
            loop.add_reader(ours, int)
            loop.add_writer(ours, int)
            return [remove(ours) for remove in 2 * (loop.remove_reader, loop.remove_writer)]

        with ours, theirs:
            assert self.run_main(main) == [True, True, False, False]

    def test_executors_work_beside_the_loop(self) -> None:
        """run_in_executor runs a blocking function in another thread; timers go on meanwhile."""

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            release = threading.Event()

            def block() -> int:
                assert release.wait(self.soon_s), "the loop stood still meanwhile"
                return threading.get_ident()

            future = loop.run_in_executor(None, block)
            await asyncio.sleep(0.01)
            release.set()
            assert await future != threading.get_ident()

        self.run_main(main)

    def test_timeouts_end_a_wait(self) -> None:
        """asyncio.timeout cancels what is inside it, and only that."""

        async def main(backend: Backend) -> str:
            async def impatient() -> str:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await asyncio.Event().wait()
                await asyncio.sleep(0)
                return "went on"

            return str(await backend.schedule(impatient()))

        assert self.run_main(main) == "went on"

    def test_task_groups_end_together(self) -> None:
        """A failing member of a TaskGroup cancels the others, and the group waits for them."""
        log: list[str] = []

        async def fail() -> None:
            await asyncio.sleep(0.01)
            raise LookupError("as told")

        async def wait() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                log.append("cancelled")

        async def main(backend: Backend) -> None:
            async def group() -> None:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(wait())
                    tasks.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await backend.schedule(group())
            assert [type(error) for error in caught.value.exceptions] == [LookupError]
            assert log == ["cancelled"]

        self.run_main(main)

    @pytest.mark.requires(Capability.SIGNALS)
    def test_signals_reach_the_loop(self) -> None:
        """add_signal_handler runs its callback on the loop for each signal, until remove_signal_handler."""
        caught: list[int] = []

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            threads: list[int] = []
            loop.add_signal_handler(signal.SIGUSR1, lambda: threads.append(threading.get_ident()))
            for count in (1, 2):
                os.kill(os.getpid(), signal.SIGUSR1)
                deadline = loop.time() + self.soon_s
                while len(threads) < count and loop.time() < deadline:
                    await asyncio.sleep(0.001)
            assert threads == [threading.get_ident()] * 2
            assert loop.remove_signal_handler(signal.SIGUSR1)
            assert not loop.remove_signal_handler(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, lambda number, _: caught.append(number))
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0.01)
            assert len(threads) == 2

        # Without a handler SIGUSR1 would end the test run when a backend fails to install one.
        previous = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            self.run_main(main)
        finally:
            signal.signal(signal.SIGUSR1, previous)
        assert caught == [signal.SIGUSR1]

    @pytest.mark.requires(Capability.SUBPROCESS)
    def test_processes_talk_and_end(self) -> None:
        """A process is fed through stdin, read from stdout and stderr, and its exit code is known."""
        program = (
            "import sys; text = sys.stdin.read(); print(text.upper()); print('error', file=sys.stderr); sys.exit(3)"
        )

        async def main(_: Backend) -> None:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                program,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            out, err = await process.communicate(b"text" * 50_000)
            assert (out.strip(), err.strip(), process.returncode) == (b"TEXT" * 50_000, b"error", 3)

        self.run_main(main)

    @pytest.mark.requires(Capability.SUBPROCESS)
    def test_processes_can_be_killed(self) -> None:
        """wait returns the negative number of the signal that ended a process."""

        async def main(_: Backend) -> int:
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(60)")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(process.wait(), 0.05)
            process.kill()
            return await asyncio.wait_for(process.wait(), self.soon_s)

        assert self.run_main(main) == -signal.SIGKILL
