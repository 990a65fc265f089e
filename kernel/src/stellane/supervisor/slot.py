"""One place for a worker: the process in it now, and what became of those before."""

from __future__ import annotations

from collections import deque

import msgspec

from stellane.recovery.context import CrashInfo
from stellane.supervisor.messages import Failed, MessageReader, WorkerMessage
from stellane.supervisor.processes import WorkerProcess
from stellane.supervisor.restart import RestartPolicy

CRASHES_MAX = 16
"""Ends of earlier processes told to a replacement; older ones are forgotten."""


class Slot:
    """State of one slot. All times are seconds of time.monotonic, given by the caller."""

    def __init__(self, number: int, policy: RestartPolicy) -> None:
        self.number = number
        self.process: WorkerProcess | None = None
        self.start_number = 0
        self.crashes: deque[CrashInfo] = deque(maxlen=CRASHES_MAX)
        self.restart_at: float | None = None
        self.kill_at: float | None = None
        self.failed: Failed | None = None
        self.silent_s = 0.0
        """How long the process has given no sign, as HangWatch counts it."""
        self.gave_sign = False
        self.watched = False
        """Its silence means something: it is listened to, and has not been found to hang."""
        self.hung = False
        self._policy = policy
        self._started_at = 0.0
        self._ready_at: float | None = None
        self._reader = MessageReader()

    @property
    def ready(self) -> bool:
        """The process in the slot has said that it accepts connections."""
        return self._ready_at is not None

    def occupy(self, process: WorkerProcess, now: float) -> None:
        """A process has been started."""
        self.process = process
        self.failed = None
        self.silent_s = 0.0
        self.gave_sign = self.watched = True
        self.hung = False
        self._started_at = now
        self._ready_at = None
        self._reader = MessageReader()

    def mark_ready(self, now: float) -> None:
        """The process accepts connections."""
        self._ready_at = now
        self.gave_sign = True

    def receive(self) -> list[WorkerMessage] | None:
        """Read what the process has sent; None when its end of the socket is closed.

        Raises ValueError for what is no message.
        """
        assert self.process is not None
        messages: list[WorkerMessage] = []
        while True:
            try:
                data = self.process.control.recv(65_536)
            except BlockingIOError:
                return messages
            except ConnectionResetError:
                data = b""
            if not data:
                return messages or None
            messages += self._reader.feed(data)

    def vacate(self, end: CrashInfo) -> CrashInfo:
        """The process has been reaped. How it ended, in the light of what is known of it here."""
        if self.hung and end.cause == "signal":
            end = msgspec.structs.replace(end, cause="hang")
        self.crashes.append(end)
        self.process = None
        self.kill_at = None
        return end

    def kill_by(self, when: float) -> None:
        """Kill it at `when`, on the clock of time.monotonic(); what was to happen sooner stays so."""
        self.kill_at = when if self.kill_at is None else min(self.kill_at, when)

    def lived_s(self, now: float) -> float:
        """Seconds since the last process was started."""
        return now - self._started_at

    def plan_restart(self, now: float) -> float:
        """Set the time of the next start; return the delay in seconds."""
        delay = self._policy.delay_after_death(None if self._ready_at is None else now - self._ready_at)
        self._ready_at = None
        self.restart_at = now + delay
        return delay
