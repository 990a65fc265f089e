"""One worker process: started, watched, signalled, reaped.

A worker is the leader of a process group of its own. The terminal's Ctrl-C therefore reaches
the supervisor only, which passes it on as SIGTERM, and what a worker has forked can be ended
with it. The price: a worker is in the background of the terminal and cannot read from it;
debuggers need `stellane run --no-supervisor`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from stellane.recovery.context import CrashInfo
from stellane.supervisor.messages import WorkerSpec, write_spec
from stellane.supervisor.oom import OomKillCounter

WORKER_COMMAND = (sys.executable, "-P", "-m", "stellane.runtime.worker_process")
"""-P keeps the working directory off sys.path, where a stray json.py would break the worker."""


class WorkerProcess:
    """A running worker, or one that has ended and waits to be reaped.

    `process` must be an unreaped child of the calling process. Its control socket is
    non-blocking.
    """

    def __init__(self, slot: int, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.slot = slot
        self.pid = process.pid
        self.control = control
        # The child is not reaped yet, so its number cannot belong to another process by now.
        self.pidfd = os.pidfd_open(process.pid)
        self._process = process

    def send_signal(self, number: int) -> None:
        """Signal the worker itself; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    @property
    def stopped(self) -> bool:
        """Whether it is stopped by a signal or a debugger (proc_pid_stat(5))."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        except OSError:
            return False
        return state in (b"T", b"t")

    def reap(self, oom_kills: OomKillCounter) -> CrashInfo:
        """Collect the ended worker, end what it left in its process group, close its descriptors.

        Processes forked by the worker must go first: they may still hold its journal's lock, or
        go on with the very request that the replacement is about to run again.
        """
        # Until the worker is reaped it is a zombie that keeps its group's number from reuse,
        # so this cannot hit a stranger. One that left the group (setsid) is left alone.
        # PermissionError: all that is left of the group runs as another user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        status = self._process.wait()
        os.close(self.pidfd)
        self.control.close()
        return describe_end(self.slot, self.pid, status, oom_kills)


def describe_end(slot: int, pid: int, status: int, oom_kills: OomKillCounter) -> CrashInfo:
    """Turn a return code as subprocess reports it (negative for a signal) into a CrashInfo."""
    at_ns = time.time_ns()
    if status >= 0:
        return CrashInfo(slot=slot, pid=pid, cause="exit", exit_code=status, at_ns=at_ns)
    killed = -status == signal.SIGKILL and oom_kills.claim()
    return CrashInfo(slot=slot, pid=pid, cause="oom" if killed else "signal", signal=-status, at_ns=at_ns)


def spawn_worker(spec: WorkerSpec, command: Sequence[str] = WORKER_COMMAND) -> WorkerProcess:
    """Start `command --spec-fd N` with the listeners, the specification and a control socket.

    `spec.control_fd` and `spec.supervisor_pid` are filled in here. Standard input is empty;
    output and error are the supervisor's. Call it from the main thread (see `die_with_parent`).
    Raises OSError when the process cannot be made.
    """
    own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    spec_fd = os.memfd_create("stellane-worker-spec")
    try:
        spec = msgspec.structs.replace(spec, control_fd=theirs.fileno(), supervisor_pid=os.getpid())
        write_spec(spec, spec_fd)
        own.setblocking(False)
        process = subprocess.Popen(  # noqa: S603 - the command is ours, not a request's
            [*command, "--spec-fd", str(spec_fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(spec_fd, theirs.fileno(), *spec.inherited()),
            process_group=0,
        )
    except BaseException:
        own.close()
        raise
    finally:
        # Our copy of their end must go, or the end of the worker would not be seen on ours.
        theirs.close()
        os.close(spec_fd)
    try:
        return WorkerProcess(spec.slot, process, own)
    except OSError:
        process.kill()
        process.wait()
        own.close()
        raise
