"""Backends that break one rule each, and the tests of the suite that must notice.

They prove the suite, not a backend: `BROKEN` maps each one to the tests that fail on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, ClassVar

from stellane.abc.backend import BackendStatistics, Capability, Priority
from stellane.builtin.asyncio_backend import AsyncioBackend
from stellane.builtin.loop_backend import LoopBackend
from stellane.builtin.scheduled import ScheduledFuture
from stellane.testing import broken_loops

Coro = Coroutine[Any, Any, Any]


class BrokenLoopBackend(AsyncioBackend):
    """A correct backend around a broken loop."""

    loop_type: type[asyncio.SelectorEventLoop]

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return self.loop_type()


class Undeclared(AsyncioBackend):
    """Declares capabilities as plain words."""

    capabilities = frozenset({"tcp", "unix"})  # type: ignore[arg-type]


class Hasty(AsyncioBackend):
    """run does not wait for stop."""

    def run(self) -> None:
        threading.Timer(0.02, self.stop).start()
        super().run()


class Modest(AsyncioBackend):
    """Never says that it runs."""

    def is_running(self) -> bool:
        return False


class StopsOnce(AsyncioBackend):
    """A second stop is an error."""

    def stop(self) -> None:
        if self._stop_requested:
            raise RuntimeError("stopped already")
        super().stop()


class ForgetsEarlyStop(AsyncioBackend):
    """A stop before run has no effect."""

    def run(self) -> None:
        self._stop_requested = False
        super().run()


class RunsAgain(AsyncioBackend):
    """May be run again after its end."""

    def run(self) -> None:
        if not self.is_running():
            LoopBackend.__init__(self)
        super().run()


class RunsAgainNever(AsyncioBackend):
    """Only one backend of this class ever runs in a process."""

    used: ClassVar[bool] = False

    def run(self) -> None:
        if RunsAgainNever.used:
            raise RuntimeError("used already")
        RunsAgainNever.used = True
        super().run()


class Abandoning(AsyncioBackend):
    """Closes its loop over unfinished tasks."""

    def run(self) -> None:
        with contextlib.suppress(_LeftError):
            super().run()

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _LeavesTasks()


class _LeftError(Exception):
    """Ends the clean-up before it has begun."""


class _LeavesTasks(asyncio.SelectorEventLoop):
    def run_until_complete(self, future: Any) -> Any:
        future.close()
        raise _LeftError


class SharesItsLoop(AsyncioBackend):
    """All instances run one loop."""

    loop: ClassVar[asyncio.AbstractEventLoop | None] = None

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        if SharesItsLoop.loop is None or SharesItsLoop.loop.is_closed():
            SharesItsLoop.loop = super().new_event_loop()
        return SharesItsLoop.loop


class Unstoppable(AsyncioBackend):
    """Keeps KeyboardInterrupt to itself."""

    def run(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            super().run()


class Uncounted(AsyncioBackend):
    """Does not count what it schedules."""

    def statistics(self) -> BackendStatistics:
        return replace(super().statistics(), scheduled_total=0)


class Leaky(AsyncioBackend):
    """Opens a pipe for each loop and forgets it."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        os.pipe()
        return super().new_event_loop()


class LastFirst(AsyncioBackend):
    """What was scheduled before run starts in the opposite order."""

    def run(self) -> None:
        self._waiting.reverse()
        super().run()


class Schedules(AsyncioBackend):
    """Base of the backends whose schedule is wrong, on the loop's thread or on others."""

    def schedule(
        self,
        coro: Coro,
        *,
        priority: Priority = Priority.NORMAL,
        key: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Future[Any]:
        def right() -> Any:
            return super(Schedules, self).schedule(coro, priority=priority, key=key, context=context)

        if not self.is_running():
            return right()  # type: ignore[no-any-return]
        if self._thread_id == threading.get_ident():
            return self.schedule_on_loop(coro, right)  # type: ignore[no-any-return]
        return self.schedule_from_thread(coro, right)  # type: ignore[no-any-return]

    def schedule_on_loop(self, coro: Coro, right: Any) -> Any:  # noqa: ARG002 - a default to override
        """`right()` does what is correct."""
        return right()

    def schedule_from_thread(self, coro: Coro, right: Any) -> Any:  # noqa: ARG002
        """`right()` does what is correct."""
        return right()


class NoTask(Schedules):
    """Gives a handle where the task is due."""

    def schedule_on_loop(self, coro: Coro, right: Any) -> Any:  # noqa: ARG002
        handle = ScheduledFuture()
        handle.follow(right())
        return handle


class Silent(Schedules):
    """Its handles never hear of the end."""

    def schedule_from_thread(self, coro: Coro, right: Any) -> Any:  # noqa: ARG002
        right()
        return ScheduledFuture()


class Careless(AsyncioBackend):
    """Leaves it to the loop to refer to its tasks."""

    def _keep(self, task: asyncio.Task[Any]) -> asyncio.Task[Any]:
        return task


class DeafHandles(Schedules):
    """Cancelling a handle does not reach the task."""

    def schedule_from_thread(self, coro: Coro, right: Any) -> Any:  # noqa: ARG002
        right()
        return ScheduledFuture()


class Losing(Schedules):
    """Loses one coroutine in a thousand."""

    def schedule_from_thread(self, coro: Coro, right: Any) -> Any:
        self._scheduled_total += 1
        if self._scheduled_total % 1000 == 0:
            coro.close()
            return ScheduledFuture()
        return right()


class Overtaking(Schedules):
    """Lets every tenth coroutine wait for the next turn."""

    def schedule_from_thread(self, coro: Coro, right: Any) -> Any:
        self._scheduled_total += 1
        if self._scheduled_total % 10 or self._loop is None:
            return right()
        loop = self._loop
        loop.call_soon_threadsafe(lambda: loop.call_later(0.001, loop.create_task, coro))
        return ScheduledFuture()


class Unclosing(AsyncioBackend):
    """Refuses a coroutine after the end and leaves it open."""

    def schedule(self, coro: Coro, **options: Any) -> asyncio.Future[Any]:
        if self._loop_class and not self.is_running():
            raise RuntimeError("closed")
        return super().schedule(coro, **options)


class Credulous(AsyncioBackend):
    """Takes anything for a coroutine."""

    def schedule(self, coro: Coro, **options: Any) -> asyncio.Future[Any]:
        if not asyncio.iscoroutine(coro):
            return ScheduledFuture()
        return super().schedule(coro, **options)


class Forgetful(AsyncioBackend):
    """Runs every coroutine in an empty context."""

    def start_task(self, coro: Coro, priority: Priority, key: str | None, context: Any) -> asyncio.Task[Any]:  # noqa: ARG002
        return super().start_task(coro, priority, key, contextvars.Context())


class Copying(AsyncioBackend):
    """Runs every coroutine in a copy of the given context."""

    def start_task(self, coro: Coro, priority: Priority, key: str | None, context: Any) -> asyncio.Task[Any]:
        return super().start_task(coro, priority, key, None if context is None else context.copy())


class Entering(AsyncioBackend):
    """Enters the given context although the caller may be in it."""

    def start_task(self, coro: Coro, priority: Priority, key: str | None, context: Any) -> asyncio.Task[Any]:
        if context is None:
            return super().start_task(coro, priority, key, context)
        task: asyncio.Task[Any] = context.run(super().start_task, coro, priority, key, None)
        return task


class Choosy(AsyncioBackend):
    """Knows one priority."""

    def schedule(self, coro: Coro, *, priority: Priority = Priority.NORMAL, **options: Any) -> asyncio.Future[Any]:
        if priority is not Priority.NORMAL:
            coro.close()
            raise ValueError("normal only")
        return super().schedule(coro, **options)


class Unhurried(AsyncioBackend):
    """Starts every coroutine at the next turn."""

    def start_task(self, coro: Coro, priority: Priority, key: str | None, context: Any) -> asyncio.Task[Any]:  # noqa: ARG002
        assert self._loop is not None
        self._scheduled_total += 1
        return self._loop.create_task(coro, context=context)


class Fragile(AsyncioBackend):
    """Stops when a coroutine fails."""

    def start_task(self, coro: Coro, priority: Priority, key: str | None, context: Any) -> asyncio.Task[Any]:
        task = super().start_task(coro, priority, key, context)
        task.add_done_callback(lambda done: self.stop() if not done.cancelled() and done.exception() else None)
        return task


class Indifferent(AsyncioBackend):
    """Declares an order, and runs callbacks as they come."""

    capabilities = AsyncioBackend.capabilities | {Capability.OWN_READY_QUEUE}


class Ruthless(Indifferent):
    """Orders by priority and by nothing else, and ends no turn before its callbacks have run."""

    priority_variable = broken_loops.urgency

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return broken_loops.MostUrgentOnly()


BROKEN: dict[type[AsyncioBackend], tuple[str, ...]] = {
    Undeclared: ("test_declares_itself",),
    Hasty: ("test_run_blocks_until_stop",),
    Modest: ("test_is_running_tells_the_truth",),
    StopsOnce: ("test_stop_is_idempotent",),
    ForgetsEarlyStop: ("test_stop_before_run",),
    RunsAgain: ("test_run_twice_is_refused",),
    RunsAgainNever: ("test_another_backend_may_follow",),
    Abandoning: ("test_leftovers_are_cancelled",),
    SharesItsLoop: ("test_two_threads_run_two_backends",),
    Unstoppable: ("test_an_interrupt_leaves_run",),
    Uncounted: ("test_statistics_are_true",),
    Leaky: ("test_nothing_is_leaked",),
    LastFirst: ("test_schedule_before_run",),
    NoTask: ("test_schedule_on_the_loop_gives_the_task",),
    Careless: ("test_a_scheduled_task_is_kept",),
    Silent: ("test_schedule_from_a_thread_gives_a_handle",),
    DeafHandles: ("test_cancelling_a_handle_cancels_the_task",),
    Losing: ("test_schedule_from_many_threads",),
    Overtaking: ("test_schedule_from_many_threads",),
    Unclosing: ("test_schedule_after_the_end_is_refused",),
    Credulous: ("test_schedule_takes_coroutines_only",),
    Forgetful: ("test_the_scheduler_s_context_is_copied",),
    Copying: ("test_a_given_context_is_used",),
    Entering: ("test_a_context_may_be_shared",),
    Choosy: ("test_priority_and_key_are_accepted",),
    Unhurried: ("test_coroutines_start_eagerly",),
    Fragile: ("test_a_failed_coroutine_stops_nobody",),
    Indifferent: ("test_the_most_urgent_goes_on_first", "test_the_most_urgent_starts_first"),
    Ruthless: ("test_urgent_work_starves_nobody", "test_what_arrives_overtakes_a_flood"),
}
"""Each broken backend and the tests that must catch it."""

BROKEN_LOOPS: dict[type[asyncio.SelectorEventLoop], tuple[str, ...]] = {
    broken_loops.NewestFirst: ("test_callbacks_run_in_order",),
    broken_loops.EarlyTimers: ("test_timers_fire_in_order",),
    broken_loops.Drowsy: (
        "test_threads_wake_the_loop",
        "test_schedule_wakes_an_idle_loop",
        "test_stop_from_another_thread",
        "test_stop_from_a_signal_handler",
    ),
    broken_loops.StopsOnErrors: ("test_a_failed_callback_stops_nobody",),
    broken_loops.EdgeTriggered: ("test_readers_are_level_triggered", "test_writers_are_level_triggered"),
    broken_loops.Untold: ("test_removing_tells_what_was_there",),
    broken_loops.Blocking: ("test_executors_work_beside_the_loop",),
    broken_loops.Uncancellable: ("test_timeouts_end_a_wait", "test_task_groups_end_together"),
    broken_loops.Deaf: ("test_signals_reach_the_loop",),
    broken_loops.AlwaysWell: ("test_processes_talk_and_end", "test_processes_can_be_killed"),
    broken_loops.ForgetsGenerators: ("test_asynchronous_generators_are_closed",),
    broken_loops.ForgetsExecutor: ("test_the_executor_is_waited_for",),
    broken_loops.Unclosed: ("test_the_loop_is_closed", "test_nothing_is_leaked"),
    broken_loops.FullClose: ("test_tcp_echo_with_half_close", "test_unix_echo"),
    broken_loops.Hoarding: ("test_tcp_back_pressure",),
    broken_loops.Eager: ("test_tcp_pause_reading",),
    broken_loops.Discreet: ("test_tcp_peer_reset",),
    broken_loops.SlowAbort: ("test_tcp_abort_is_at_once",),
    broken_loops.Evasive: ("test_tcp_connection_refused",),
    broken_loops.Anonymous: ("test_tcp_transports_know_their_addresses",),
    broken_loops.BytesOnly: ("test_tcp_any_buffer_can_be_written",),
    broken_loops.OwnSockets: ("test_tcp_server_on_a_given_socket",),
    broken_loops.Truncating: ("test_socket_calls", "test_udp_echo"),
}
"""Each broken loop, in a correct backend, and the tests that must catch it."""


def around(loop_type: type[asyncio.SelectorEventLoop]) -> BrokenLoopBackend:
    """A correct backend around a broken loop."""
    backend = BrokenLoopBackend()
    backend.loop_type = loop_type
    return backend
