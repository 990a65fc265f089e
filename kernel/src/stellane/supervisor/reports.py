"""What the supervisor says in the log, one line an event.

A supervisor that cannot write its log (terminal closed, pipe broken, disk full) goes on
supervising: the handlers of the standard library's logging swallow such errors.
"""

from __future__ import annotations

import signal

from stellane.logging import get_logger
from stellane.recovery.context import CrashInfo
from stellane.supervisor.messages import EXIT_JOURNAL

_log = get_logger("stellane.supervisor")


def cause_of(end: CrashInfo) -> str:
    """`killed by signal 9 (SIGKILL)`, `exited with code 3`, …"""
    if end.cause == "exit" and end.exit_code == EXIT_JOURNAL:
        return f"{end} (its journal failed)"
    if end.cause != "signal":
        return str(end)
    try:
        return f"{end} ({signal.Signals(end.signal).name})"
    except ValueError:  # a real-time signal has no name
        return str(end)


def worker_died(end: CrashInfo, *, lived_s: float, restart_in_s: float) -> None:
    """A worker ended that nobody had told to."""
    values = {"slot": end.slot, "pid": end.pid, "cause": cause_of(end)}
    _log.error("worker died", **values, lived_s=round(lived_s, 3), restart_in_s=restart_in_s)


def worker_restarted(slot: int, pid: int, start_number: int) -> None:
    """The replacement accepts connections."""
    _log.info("worker ready again", slot=slot, pid=pid, start_number=start_number)


def worker_failed(slot: int, pid: int, kind: str, text: str) -> None:
    """A replacement says that it cannot start; it is tried again after the back-off."""
    _log.error("worker cannot start", slot=slot, pid=pid, kind=kind, error=text)


def worker_leaving(slot: int, pid: int, reason: str, deadline_s: float) -> None:
    """A worker has stopped accepting; after `deadline_s` seconds it is killed, and replaced in any case."""
    _log.error("worker leaves and will be replaced", slot=slot, pid=pid, reason=reason, deadline_s=deadline_s)


def worker_hangs(slot: int, pid: int, silent_s: float, *, ready: bool) -> None:
    """A worker is there and gives no sign: it is asked where it stands, and killed."""
    key = "hang_timeout_s" if ready else "start_timeout_s"
    what = "worker hangs: its loop does not turn" if ready else "worker does not get ready"
    _log.error(f"{what}; where it stands is on standard error", slot=slot, pid=pid, silent_s=silent_s, limit=key)


def spawn_failed(slot: int, error: OSError, restart_in_s: float) -> None:
    """The operating system did not make a process."""
    _log.error("worker process not created", slot=slot, error=str(error), restart_in_s=restart_in_s)


def control_broken(slot: int, pid: int, error: Exception) -> None:
    """A worker sent something that is no message; it is not listened to any more."""
    _log.error("worker sent an unreadable message", slot=slot, pid=pid, error=str(error))


def stop_begun(cause: str, deadline_s: float) -> None:
    """The workers have been told to stop; after `deadline_s` seconds they are killed."""
    _log.info("stopping", cause=cause, deadline_s=deadline_s)


def worker_stopped(end: CrashInfo, *, clean: bool) -> None:
    """A worker ended after it had been told to."""
    method = _log.info if clean else _log.error
    method("worker stopped", slot=end.slot, pid=end.pid, cause=cause_of(end))


def worker_overdue(slot: int, pid: int) -> None:
    """A worker did not end in time and is killed."""
    _log.error("worker did not stop in time: killing it", slot=slot, pid=pid)


def stop_forced(signal_name: str) -> None:
    """A second signal came: no more waiting."""
    _log.warning("second signal: killing the workers", signal=signal_name)


def reload_not_built() -> None:
    """SIGHUP came."""
    _log.warning("SIGHUP ignored: reload is not built yet; restart the server to change its configuration")
