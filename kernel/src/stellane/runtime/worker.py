"""One worker: one event loop, its parts, and its life from start to stop.

Start: parts → resources or lifespan → journals opened and their live sets loaded → accept →
replay beside live traffic. Stop: readiness gone, drain delay, no new connections, requests in
hand finish, what is left is cancelled (and stays pending in the journal), resources closed,
journals closed with CLEAN.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stellane.abc import Backend, Durability, Protocol, RecoveryPolicy
from stellane.app.target import load_target
from stellane.config import Config
from stellane.config.loader import LoadedConfig, with_application_defaults
from stellane.errors import StellaneError
from stellane.factory import RuntimeFactory
from stellane.logging import get_logger
from stellane.recovery.context import CrashInfo
from stellane.recovery.forked_child import SocketOfThisProcess
from stellane.recovery.journal import Journal
from stellane.recovery.recorder import Recorder
from stellane.recovery.replay import Replayer, recover_all
from stellane.runtime.application import Application
from stellane.runtime.dispatcher import Dispatcher
from stellane.runtime.spine import Spine
from stellane.supervisor.adoption import find_adopted_slots
from stellane.supervisor.handover import Handover
from stellane.supervisor.messages import EXIT_JOURNAL, sign_interval_s

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_STARTUP = 3
"""Exit code when the application, a plugin or a resource fails at start-up."""

_log = get_logger("stellane.worker")


class Worker:
    """One event loop and everything on it. `run` blocks until the worker has stopped.

    `on_ready` is told the facts of the banner once connections are accepted, `on_failed` the
    error that kept the worker from it. `listeners` are bound, listening and non-blocking.
    With `on_leaving`, which is told why, a worker whose journal fails stops by itself and `run`
    returns EXIT_JOURNAL; without, nobody would replace it, and it refuses what must be journaled.
    `on_turning` is called by the loop, every `sign_interval_s`, from then on.
    With `handover` the connections are shared among the workers by runtime.dispatch.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        target: str,
        *,
        app_dir: str,
        listeners: Sequence[socket.socket],
        slot: int = 0,
        slots: int = 1,
        handover: Handover | None = None,
        crashes: Sequence[CrashInfo] = (),
        on_ready: Callable[[dict[str, Any]], None] = lambda _facts: None,
        on_failed: Callable[[BaseException], None] = lambda _error: None,
        on_leaving: Callable[[str], None] | None = None,
        on_turning: Callable[[], None] | None = None,
        control: socket.socket | None = None,
    ) -> None:
        self.slot = slot
        self._target = target
        self._listeners = listeners
        self._slots = slots
        self._handover = handover
        self._dispatcher: Dispatcher | None = None
        self._crashes = crashes
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._on_leaving = on_leaving
        self._on_turning = on_turning
        self._control = control
        self._exit_code = 0
        self._stop = asyncio.Event()
        self._journals: list[Journal] = []
        self._recorder: Recorder | None = None
        self._policy: RecoveryPolicy | None = None
        self._replay: asyncio.Task[None] | None = None

        # A child that the application forks may outlive this worker: with our sockets in it nobody could listen there.
        sockets = (*listeners, *([control] if control is not None else []))
        self._sockets = [SocketOfThisProcess(each) for each in sockets]

        sys.path.insert(0, app_dir)
        self.application: Application = load_target(target)
        loaded = with_application_defaults(loaded, self.application.recovery_defaults())
        self.config: Config = loaded.config
        self.application.configure(self.config)
        self.factory = RuntimeFactory(self.config, loaded.origins)
        self.backend: Backend = self.factory.create_backend()
        self.protocol: Protocol = self.factory.create_protocol()
        self._scheduler = self.factory.create_scheduler()
        self.factory.load_extensions()
        if self.config.recovery.enabled and self.config.recovery.durability != Durability.NONE:
            self._policy = self.factory.create_policy()
            self.factory.create_journal().close()  # a missing or unusable engine ends the start here

    def run(self) -> int:
        """Run until stopped; return the exit code."""
        self.backend.schedule(self._main())
        self.backend.run()
        return self._exit_code

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._asked_to_stop, loop)
        if self._control is not None:
            self._control.setblocking(False)
            loop.add_reader(self._control, self._supervisor_gone)
        try:
            await self._live()
        except Exception as error:
            self._exit_code = EXIT_STARTUP
            self._on_failed(error)
        finally:
            self.backend.stop()

    async def _live(self) -> None:
        hook = self.factory.pm.hook
        loop = asyncio.get_running_loop()
        async with contextlib.AsyncExitStack() as stack:
            hook.stellane_worker_starting(worker=self)
            stack.push_async_callback(self._shutdown_application)
            await self.application.startup()
            self._open_journals(loop)
            stack.callback(self._close_journals)
            spine = Spine(
                self.application,
                self._scheduler,
                loop=loop,
                tasks_max=self.config.runtime.max_tasks_per_loop,
                recorder=self._recorder,
            )
            factory = self.protocol.connection_factory(spine.begin, config=self.config, loop=loop)
            servers = await self._accept(loop, factory, stack)
            if self._journals:
                self._replay = loop.create_task(recover_all([self._replayer(j, spine) for j in self._journals]))
                self._replay.add_done_callback(_log_outcome)
            # What start-up made lives as long as the process: the collector need not look at it again.
            gc.collect()
            gc.freeze()
            hook.stellane_worker_started(worker=self)
            self._on_ready(self.facts())
            self._tell_that_it_turns(loop)
            await self._stop.wait()
            hook.stellane_worker_stopping(worker=self)
            await self._drain(servers, spine)
        hook.stellane_worker_stopped(worker=self)

    async def _accept(
        self,
        loop: asyncio.AbstractEventLoop,
        factory: Callable[[], asyncio.Protocol],
        stack: contextlib.AsyncExitStack,
    ) -> list[asyncio.Server]:
        if self._handover is None:
            return [await self._serve(loop, factory, listener) for listener in self._listeners]
        dispatcher = self._dispatcher = Dispatcher(
            self._handover, self.slot, listeners=self._listeners, factory=factory, loop=loop
        )
        self.protocol.watch_connections(dispatcher.count)
        stack.callback(dispatcher.close)
        dispatcher.open()
        return []

    async def _serve(
        self, loop: asyncio.AbstractEventLoop, factory: Callable[[], asyncio.Protocol], listener: socket.socket
    ) -> asyncio.Server:
        backlog = self.config.server.backlog
        if listener.family == socket.AF_UNIX:
            # The socket's file belongs to whoever bound it; from 3.13 on asyncio would remove it.
            keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
            return await loop.create_unix_server(factory, sock=listener, backlog=backlog, **keep)
        return await loop.create_server(factory, sock=listener, backlog=backlog)

    async def _drain(self, servers: Sequence[asyncio.Server], spine: Spine) -> None:
        shutdown = self.config.shutdown
        if self._exit_code != EXIT_JOURNAL:
            # The delay is for load balancers; who leaves because its journal failed would only refuse more meanwhile.
            await asyncio.sleep(shutdown.drain_delay_s)
        for server in servers:
            server.close()
        if self._dispatcher is not None:
            await self._dispatcher.drain(pass_on=self._exit_code == EXIT_JOURNAL)
        if self._replay is not None:
            self._replay.cancel()
        await self._drain_protocol()
        try:
            async with asyncio.timeout(shutdown.graceful_timeout_s):
                await self._wait_finished(spine)
        except TimeoutError:
            running = spine.statistics().running
            _log.warning("graceful timeout: cancelling requests", running=running, slot=self.slot)
            spine.cancel()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(shutdown.hard_timeout_s / 2):
                    await spine.wait_idle()
            self.protocol.abort()
        if self._recorder is not None:
            await self._recorder.close()

    async def _wait_finished(self, spine: Spine) -> None:
        """Until nothing is left. A wait may end when something has begun that an earlier one was for."""
        await spine.wait_idle()
        await self.protocol.wait_drained()
        if self._dispatcher is not None:
            # Somebody may have handed one over in the turn that the drain took; from here on they take it back.
            await self._dispatcher.finish()
            await self.protocol.wait_drained()
        # A connection that the drain kept open may have brought a request, which goes on behind its answer: without
        # its DONE it would be run again.
        await spine.wait_idle()

    async def _drain_protocol(self) -> None:
        """Once the loop has handed over what it has received.

        It may have read before it tells (io_uring): such a request is neither the protocol's yet nor the kernel's any
        more, and its connection looks idle. What is due now runs between what a poll found and the next poll.
        """
        loop = asyncio.get_running_loop()
        drained = loop.create_future()

        def drain() -> None:
            try:
                self.protocol.drain()
            except Exception as error:
                drained.set_exception(error)
            else:
                drained.set_result(None)

        loop.call_later(0, drain)
        await drained

    async def _shutdown_application(self) -> None:
        await self.application.shutdown()

    # --- Recovery -------------------------------------------------------------------------------

    def _open_journals(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._policy is None:
            return
        recovery = self.config.recovery
        root = Path(recovery.journal_path)
        # Journals of slots that this run does not have belong to one of its workers each.
        for slot in (self.slot, *find_adopted_slots(root, self.slot, self._slots)):
            journal = Journal.open(
                root / f"w{slot}",
                engine_name=recovery.journal_backend,
                engine=self.factory.create_journal(),
                durability=recovery.durability,
                snapshot_bytes=recovery.snapshot_bytes,
                body_bytes_max=recovery.body_bytes_max,
                redact_headers=recovery.redact_headers,
            )
            journal.on_poisoned = self._journal_failed
            self._journals.append(journal)
        self._recorder = Recorder(
            self._journals[0], self._policy, self.application, loop=loop, body_bytes_max=recovery.body_bytes_max
        )

    def _replayer(self, journal: Journal, spine: Spine) -> Replayer:
        assert self._policy is not None
        recovery = self.config.recovery
        return Replayer(
            journal,
            self._policy,
            self.application,
            max_attempts=recovery.max_recovery_attempts,
            attempt_timeout_s=recovery.attempt_timeout_s,
            concurrency=recovery.concurrency,
            crashes=self._crashes,
            run=spine.start,
            hooks=self.factory.pm.hook,
            stopping=lambda: spine.cancelled,
        )

    def _close_journals(self) -> None:
        for journal in self._journals:
            try:
                journal.close()
            except StellaneError as error:
                _log.error("the journal was not closed cleanly", path=str(journal.path), error=str(error))

    def _journal_failed(self, error: BaseException) -> None:
        """A journal takes nothing more from this process: make room for one that opens it anew."""
        if self._on_leaving is None or self._stop.is_set():
            return
        _log.error("the journal failed: this worker stops accepting and ends", slot=self.slot, error=str(error))
        self._exit_code = EXIT_JOURNAL
        self._stop.set()
        self._on_leaving(f"its journal failed: {error}")

    def _asked_to_stop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stop.set()
        if self._control is None:
            # No supervisor ends this process when its stop hangs: a second signal does.
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)

    # --- Telling ----------------------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the start-up banner says."""
        recovery = self.config.recovery
        why = {choice.kind: choice.why for choice in self.factory.choices}
        return {
            "target": self._target,
            "application": self.application.kind,
            "backend": next(c.name for c in self.factory.choices if c.kind == "backend"),
            "backend_why": why["backend"],
            "loop": self.backend.statistics().loop_class,
            "codec": self.protocol.codec,
            "workers": self.config.runtime.worker_threads,
            "dispatch": self._dispatch(),
            "journal": recovery.journal_backend if self._policy is not None else "off",
            "journal_path": recovery.journal_path,
            "durability": recovery.durability if self._policy is not None else "none",
            "pending": sum(len(journal.pending()) for journal in self._journals),
        }

    def _tell_that_it_turns(self, loop: asyncio.AbstractEventLoop) -> None:
        interval_s = sign_interval_s(self.config.runtime.hang_timeout_s)
        if self._on_turning is not None and interval_s:
            self._on_turning()
            loop.call_later(interval_s, self._tell_that_it_turns, loop)

    def _dispatch(self) -> str:
        """With one worker every mode is the same."""
        chosen = self.config.runtime.dispatch
        return "shared" if chosen == "auto" or self._slots == 1 else chosen

    def _supervisor_gone(self) -> None:
        assert self._control is not None
        with contextlib.suppress(BlockingIOError):
            if not self._control.recv(1):
                _log.error("the supervisor is gone: this worker ends", slot=self.slot)
                os.kill(os.getpid(), signal.SIGKILL)


def _log_outcome(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("recovery ended with an error", exc_info=error)
