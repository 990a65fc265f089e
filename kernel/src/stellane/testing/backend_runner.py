"""What the rules of the backend suite stand on: making a backend and running a coroutine on it."""

from __future__ import annotations

import abc
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from stellane.abc.backend import Backend
from stellane.testing.watchdog import watchdog


class BackendRules(abc.ABC):
    """Base of the rule classes."""

    expected_failures: ClassVar[dict[str, str]] = {}
    """Test name to the reason why this backend cannot pass it."""

    deadline_s: ClassVar[float] = 20.0
    """How long a run of the backend may take before the test fails."""

    @property
    def soon_s(self) -> float:
        """How long something may take that needs milliseconds, on a busy machine."""
        return min(self.deadline_s, 5.0)

    @abc.abstractmethod
    def make_backend(self) -> Backend:
        """A new backend, not running."""

    def make_ordered_backend(self) -> Backend:
        """A new backend, not running, as performance.ready_order = "priority" makes it."""
        raise NotImplementedError("define make_ordered_backend: the backend declares own-ready-queue")

    def run_main(self, main: Callable[[Backend], Awaitable[Any]], backend: Backend | None = None) -> Any:
        """Run `main(backend)` on a backend, stop it when that ends, and give its result or exception."""
        backend = backend or self.make_backend()
        outcome: list[tuple[Any, BaseException | None]] = []

        async def body() -> None:
            try:
                outcome.append((await main(backend), None))
            except BaseException as error:
                outcome.append((None, error))
                if not isinstance(error, Exception):
                    raise
            finally:
                backend.stop()

        backend.schedule(body())
        with watchdog(self.deadline_s):
            backend.run()
        assert outcome, "run returned before the scheduled coroutine had ended"
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    @contextmanager
    def running(self) -> Iterator[Backend]:
        """A backend that runs idle in a thread of its own; stopped and waited for at the end."""
        backend = self.make_backend()
        started = threading.Event()

        async def announce() -> None:
            started.set()

        backend.schedule(announce())
        thread = threading.Thread(target=backend.run, name="backend", daemon=True)
        thread.start()
        try:
            assert started.wait(self.deadline_s), "the backend did not start the coroutine it was given"
            yield backend
        finally:
            backend.stop()
            thread.join(self.deadline_s)
            assert not thread.is_alive(), "run did not return after stop"
