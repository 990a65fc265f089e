"""The backend contract: one event loop, owned by the thread that runs it.

A third-party backend is a page of code: subclass `LoopBackend`, return a loop from
`new_event_loop`, say in `probe` whether this machine can run it. The contract sits at
asyncio's Protocol and Transport level, because that is what every library already speaks.
"""

from __future__ import annotations

import abc
import asyncio
import contextvars
import enum
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any


class Capability(enum.StrEnum):
    """A declared, tested ability of a backend. The conformance suite runs the tests it names."""

    TCP = "tcp"
    UNIX = "unix"
    SIGNALS = "signals"
    SUBPROCESS = "subprocess"
    UDP = "udp"
    OWN_READY_QUEUE = "own-ready-queue"
    """It takes performance.ready_order, and orders by the priority that `schedule` is given."""
    ADAPTIVE_POLLING = "adaptive-polling"
    """It takes performance.adaptive_polling."""
    BATCHING = "batching"
    """It takes performance.batch_wait_us_max."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a plugin can run here. `reason` and `remedy` are for a person to read."""

    usable: bool
    reason: str = ""
    remedy: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BackendStatistics:
    """A snapshot of one backend."""

    loop_class: str
    running: bool
    tasks: int
    scheduled_total: int


class Priority(enum.IntEnum):
    """What a scheduler may order by; lower runs first."""

    URGENT = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


class Backend(abc.ABC):
    """One event loop. `run` blocks its thread until `stop`; every other verb is thread-safe."""

    capabilities: frozenset[Capability] = frozenset()

    @abc.abstractmethod
    def run(self) -> None:
        """Run the loop in this thread until `stop`; then cancel what is left and close the loop.

        Raises RuntimeError when it is already running or has been closed.
        """

    @abc.abstractmethod
    def stop(self) -> None:
        """Ask the loop to stop. Any thread; idempotent; before `run` it makes `run` return at once."""

    @abc.abstractmethod
    def schedule(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        priority: Priority = Priority.NORMAL,
        key: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Future[Any]:
        """Start `coro` as a task on this loop, from any thread.

        From the loop's own thread this is the `asyncio.Task` itself; from another thread it is
        an `asyncio.Future`-like handle that may be waited for with `result()` there
        (`concurrent.futures.Future`). Before `run`, the coroutine starts when the loop does. The
        backend keeps the task until it ends; the caller need not.
        Where callbacks are ordered (performance.ready_order) `priority` is that of every step of
        the task and, unless they are given their own, of the tasks it creates; a `context` that
        the caller is in keeps the priority it has. Elsewhere it has no effect.
        Raises RuntimeError, and closes the coroutine, when the backend is closed.
        """

    @abc.abstractmethod
    def is_running(self) -> bool:
        """Whether `run` is executing, in whatever thread."""

    @abc.abstractmethod
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A fresh loop, not yet running."""

    @abc.abstractmethod
    def statistics(self) -> BackendStatistics:
        """A snapshot; cheap, any thread."""
