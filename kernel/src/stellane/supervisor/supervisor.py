"""The process that never serves: it starts the workers, sees them die, starts them again.

It imports no code of the user's and holds no request, so what kills a worker cannot kill it.
One loop waits for four things: a worker has ended (its pidfd is readable), a worker says
something (its control socket), a signal came, a time has come.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from stellane.config import Config, LoadedConfig
from stellane.recovery.context import CrashInfo
from stellane.supervisor import reports
from stellane.supervisor.handover import Handover
from stellane.supervisor.hang import HangWatch
from stellane.supervisor.listeners import Listeners
from stellane.supervisor.messages import DUMP_SIGNAL, Failed, Leaving, Ready, Turning, WorkerSpec
from stellane.supervisor.oom import OomKillCounter
from stellane.supervisor.processes import WORKER_COMMAND, WorkerProcess, spawn_worker
from stellane.supervisor.restart import RestartPolicy
from stellane.supervisor.slot import Slot
from stellane.supervisor.termination import SignalPipe, catch_signals

EXIT_STOPPED = 0
"""Every worker stopped by itself after SIGTERM or SIGINT."""
EXIT_UNCLEAN = 1
"""A worker had to be killed at the hard deadline, or ended with an error while stopping."""
EXIT_NO_PROCESS = 71
"""At the first start the system made no process; EX_OSERR of sysexits.h."""
EXIT_SIGNAL_BASE = 128
"""A second signal ended it all at once: 128 + the signal's number, as a shell would say."""

DUMP_S = 0.5
"""How long a worker that hangs has for writing where it stands before SIGKILL, seconds."""

_Handler = Callable[[], None]
# Within one turn what a worker said is heard before its death is judged. It spoke before it
# died, so the turn that has its death has its last words too.
_HEAR, _BURY = 0, 1


class Started(msgspec.Struct, frozen=True, kw_only=True):
    """All workers accept connections: what the banner is made of."""

    addresses: tuple[str, ...]
    workers: tuple[Ready, ...]
    """In the order of the slots."""


class Supervisor:
    """Runs `runtime.worker_threads` workers until told to stop. Use once, from the main thread.

    Start: if a worker reports, before all have been ready once, that it cannot start, the rest
    is stopped and `run` returns its exit code; `on_failed` gets the report. A worker that dies
    without a word is started again after a back-off, then and later, without end (see
    RestartPolicy); so is one that reports a failure later on, and one that leaves by itself.

    Stop: SIGTERM and SIGINT mean the same. The workers get SIGTERM and then have
    drain_delay_s + graceful_timeout_s + hard_timeout_s of [shutdown] before SIGKILL; a second
    signal is SIGKILL at once. SIGHUP is noted in the log and changes nothing.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        target: str,
        listeners: Listeners,
        *,
        app_dir: str,
        handover: Handover | None = None,
        on_ready: Callable[[Started], None] = lambda _started: None,
        on_failed: Callable[[Failed], None] = lambda _failed: None,
        worker_command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        config = loaded.config
        self._config: Config = config
        self._target = target
        self._app_dir = app_dir
        self._listeners = listeners
        self._handover = handover
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._worker_command = worker_command
        self._config_data: dict[str, Any] = msgspec.to_builtins(config)
        self._origins_data: dict[str, Any] = msgspec.to_builtins(loaded.origins)
        runtime = config.runtime
        self._slots = [
            Slot(number, RestartPolicy(runtime.restart_delay_s, runtime.restart_delay_s_max, runtime.restart_reset_s))
            for number in range(runtime.worker_threads)
        ]
        self._hang_watch = HangWatch(runtime.hang_timeout_s, runtime.start_timeout_s)
        self._first_ready: dict[int, Ready] = {}
        self._oom_kills = OomKillCounter()
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._exit_code = EXIT_STOPPED

    def run(self) -> int:
        """Start the workers, keep them running, return the exit code once all have ended.

        0: stopped in order. 1: a worker had to be killed or ended with an error while stopping.
        128 + n: a second signal n. The worker's own: it could not start. 71: no process could
        be made for it.
        """
        with self._selector, catch_signals() as signals:
            self._watch(signals, _HEAR, lambda: self._on_signals(signals))
            try:
                for slot in self._slots:
                    if not self._stopping:
                        self._start(slot)
                while not self._finished():
                    self._turn()
            finally:
                self._end_everything()
        return self._exit_code

    # --- The loop -----------------------------------------------------------------------------

    def _turn(self) -> None:
        times = [at for slot in self._slots for at in (slot.restart_at, slot.kill_at) if at is not None]
        if (look_at := self._hang_watch.next_look(time.monotonic())) is not None and not self._stopping:
            times.append(look_at)
        timeout = max(0.0, min(times) - time.monotonic()) if times else None
        events = [key.data for key, _ in self._selector.select(timeout)]
        for _, handle in sorted(events, key=lambda event: event[0]):
            handle()
        now = time.monotonic()
        for slot in self._slots:
            if slot.kill_at is not None and slot.kill_at <= now:
                self._kill_overdue(slot)
            if slot.restart_at is not None and slot.restart_at <= now:
                self._start(slot)
        for slot in self._hang_watch.look(now, self._slots):
            self._on_hang(slot)

    def _watch(self, source: SignalPipe | socket.socket | int, order: int, handle: _Handler) -> None:
        self._selector.register(source, selectors.EVENT_READ, (order, handle))

    def _finished(self) -> bool:
        return self._stopping and all(slot.process is None for slot in self._slots)

    def _end_everything(self) -> None:
        """Leave no worker behind, whatever ended the loop."""
        for slot in self._slots:
            if slot.process is not None:
                slot.process.send_signal(signal.SIGKILL)
                slot.process.reap(self._oom_kills)
                slot.process = None

    # --- A worker's life ------------------------------------------------------------------------

    def _start(self, slot: Slot) -> None:
        slot.restart_at = None
        slot.start_number += 1
        try:
            process = spawn_worker(self._specify(slot), self._worker_command)
        except OSError as error:
            self._on_no_process(slot, error)
            return
        slot.occupy(process, time.monotonic())
        self._watch(process.control, _HEAR, lambda: self._on_message(slot, process))
        self._watch(process.pidfd, _BURY, lambda: self._on_death(slot, process))

    def _specify(self, slot: Slot) -> WorkerSpec:
        return WorkerSpec(
            target=self._target,
            app_dir=self._app_dir,
            config=self._config_data,
            origins=self._origins_data,
            slot=slot.number,
            slots=len(self._slots),
            listener_fds=self._listeners.filenos(slot.number),
            control_fd=-1,
            supervisor_pid=os.getpid(),
            crashes=list(slot.crashes),
            start_number=slot.start_number,
            handover=self._handover.spec() if self._handover is not None else None,
        )

    def _on_no_process(self, slot: Slot, error: OSError) -> None:
        if self._starting():
            text = f"cannot start a worker process ({self._worker_command[0]}): {error}"
            self._give_up(Failed(kind=type(error).__name__, text=text, exit_code=EXIT_NO_PROCESS))
        else:
            delay = slot.plan_restart(time.monotonic())
            reports.spawn_failed(slot.number, error, delay)

    def _on_message(self, slot: Slot, process: WorkerProcess) -> None:
        try:
            messages = slot.receive()
        except ValueError as error:
            reports.control_broken(slot.number, process.pid, error)
            messages = None
        if messages is None:
            self._selector.unregister(process.control)
            process.control.close()
            slot.watched = False
            return
        for message in messages:
            if isinstance(message, Ready):
                self._on_worker_ready(slot, message)
            elif isinstance(message, Turning):
                slot.gave_sign = True
            elif isinstance(message, Leaving):
                self._on_worker_leaving(slot, process, message)
            else:
                self._on_worker_failed(slot, process, message)

    def _on_worker_ready(self, slot: Slot, message: Ready) -> None:
        slot.mark_ready(time.monotonic())
        if slot.start_number > 1:
            reports.worker_restarted(slot.number, message.pid, slot.start_number)
        if not self._starting():
            return
        self._first_ready.setdefault(slot.number, message)
        if not self._starting() and not self._stopping:
            workers = tuple(self._first_ready[number] for number in sorted(self._first_ready))
            # A banner that cannot be printed (closed pipe) is no reason to stop serving.
            with contextlib.suppress(OSError):
                self._on_ready(Started(addresses=self._listeners.addresses, workers=workers))

    def _on_worker_failed(self, slot: Slot, process: WorkerProcess, message: Failed) -> None:
        slot.failed = message
        if self._stopping:
            return
        # It says it is about to exit; should it hang instead, the slot would be lost.
        slot.kill_at = time.monotonic() + self._config.shutdown.hard_timeout_s
        if self._starting() and slot.number not in self._first_ready:
            self._give_up(message)
        else:
            reports.worker_failed(slot.number, process.pid, message.kind, message.text)

    def _on_worker_leaving(self, slot: Slot, process: WorkerProcess, message: Leaving) -> None:
        if self._stopping:
            return
        # Nobody has told it to stop, so nobody else would see it hang while it does.
        shutdown = self._config.shutdown
        deadline_s = shutdown.graceful_timeout_s + shutdown.hard_timeout_s
        slot.kill_by(time.monotonic() + deadline_s)
        reports.worker_leaving(slot.number, process.pid, message.reason, deadline_s)

    def _on_hang(self, slot: Slot) -> None:
        assert slot.process is not None
        reports.worker_hangs(slot.number, slot.process.pid, round(slot.silent_s, 1), ready=slot.ready)
        slot.hung = True
        slot.watched = False
        slot.process.send_signal(DUMP_SIGNAL)
        slot.kill_at = time.monotonic() + DUMP_S

    def _on_death(self, slot: Slot, process: WorkerProcess) -> None:
        self._selector.unregister(process.pidfd)
        if process.control.fileno() != -1:
            self._selector.unregister(process.control)
        end = process.reap(self._oom_kills)
        if self._handover is not None:
            # Not before it is reaped: until then the line is its own.
            self._handover.table.clear(slot.number)
        now = time.monotonic()
        was_ready = slot.ready
        end = slot.vacate(end)
        if self._stopping:
            self._on_stopped(slot, end, was_ready=was_ready)
            return
        lived_s = slot.lived_s(now)
        delay = slot.plan_restart(now)
        if self._handover is not None and (delay or self._handover.mode != "affinity"):
            # A successor may take long to import what it serves. Only clients that are to find the same worker wait for
            # one that starts at once.
            self._handover.pass_on(slot.number)
        reports.worker_died(end, lived_s=lived_s, restart_in_s=delay)

    def _starting(self) -> bool:
        return len(self._first_ready) < len(self._slots)

    # --- The end --------------------------------------------------------------------------------

    def _on_signals(self, signals: SignalPipe) -> None:
        for number in signals.read():
            if number == signal.SIGHUP:
                reports.reload_not_built()
            elif self._stopping:
                self._force_stop(number)
            else:
                self._begin_stop(number.name)

    def _give_up(self, failed: Failed) -> None:
        if self._stopping:
            return
        self._on_failed(failed)
        self._exit_code = failed.exit_code
        self._begin_stop("a worker cannot start")

    def _begin_stop(self, cause: str) -> None:
        self._stopping = True
        shutdown = self._config.shutdown
        deadline_s = shutdown.drain_delay_s + shutdown.graceful_timeout_s + shutdown.hard_timeout_s
        reports.stop_begun(cause, deadline_s)
        for slot in self._slots:
            slot.restart_at = None
            if slot.process is not None:
                slot.kill_by(time.monotonic() + deadline_s)
                slot.process.send_signal(signal.SIGTERM)

    def _force_stop(self, number: signal.Signals) -> None:
        reports.stop_forced(number.name)
        self._exit_code = EXIT_SIGNAL_BASE + number
        for slot in self._slots:
            slot.kill_at = None
            if slot.process is not None:
                slot.process.send_signal(signal.SIGKILL)

    def _kill_overdue(self, slot: Slot) -> None:
        assert slot.process is not None
        slot.kill_at = None
        if not slot.hung:
            reports.worker_overdue(slot.number, slot.process.pid)
        slot.process.send_signal(signal.SIGKILL)

    def _on_stopped(self, slot: Slot, end: CrashInfo, *, was_ready: bool) -> None:
        # A worker still importing has no handler for SIGTERM yet and dies of it, as it should.
        unhandled = end.cause == "signal" and end.signal == signal.SIGTERM and not was_ready
        announced = slot.failed is not None and end.cause == "exit"
        clean = end.cause == "exit" and end.exit_code == 0
        if not (clean or unhandled or announced) and self._exit_code == EXIT_STOPPED:
            self._exit_code = EXIT_UNCLEAN
        reports.worker_stopped(end, clean=clean or unhandled or announced)
