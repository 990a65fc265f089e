"""System calls a request under load: by the loop's own statistics, and by a witness outside the process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import PROC, CpuReading, read_cpu
from bench.load import LoadError, run_generator
from bench.loops.workloads import Workload, echo_command
from bench.measure import Settings
from bench.rows import Row
from bench.servers import ServerError, serving

COUNT_S = 1.0
"""Length of the counted window, seconds: a count needs no median."""
WITNESS_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Count:
    """System calls a request of one row. `own` is None where the loop has no statistics."""

    row: Row
    requests: int
    witnessed: float
    own: float | None
    busy: float
    """The part of the window in which the server used its CPU: well under 1 is not under load."""


def has_open(pid: int, what: str) -> bool:
    """Whether a process holds a descriptor whose link names `what`."""
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        # What was listed may be closed before it is read: the other process runs meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if what in str(descriptor.readlink()):
                return True
    return False


class Witness:
    """`perf stat` where it may count, else `strace -c`: every system call of all threads of a process."""

    def __init__(self, program: str) -> None:
        self.program = program
        self._process: subprocess.Popen[bytes] | None = None

    def attach(self, pid: int, output: Path) -> None:
        """Begin to count. Raises ServerError when the program cannot."""
        self._output = output
        if self.program == "perf":
            command = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "-o", str(output), "-p", str(pid)]
        else:
            command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(output), "-p", str(pid)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self._wait_attached(pid)

    def _wait_attached(self, pid: int) -> None:
        assert self._process is not None
        deadline = time.monotonic() + WITNESS_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                raise ServerError(f"{self.program} cannot count: {self._process.stderr.read().decode().strip()}")
            if self.program == "perf":
                # It opens its events within milliseconds and then sleeps; the first load comes after this.
                if has_open(self._process.pid, "perf_event"):
                    time.sleep(0.1)
                    return
            elif f"TracerPid:\t{self._process.pid}" in (PROC / str(pid) / "status").read_text():
                return
            time.sleep(0.01)
        raise ServerError(f"{self.program} did not attach within {WITNESS_TIMEOUT_S} s")

    def detach(self) -> None:
        """Stop counting; the file is complete afterwards."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=WITNESS_TIMEOUT_S)

    def close(self) -> None:
        """End it, whatever it is doing; what it counted may be lost. For every way out of a count."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def total(self) -> int:
        """The count. Raises ServerError when the file holds none."""
        return parse_total(self.program, self._output.read_text())


def parse_total(program: str, text: str) -> int:
    """The number of system calls in what the witness wrote."""
    if program == "perf":
        found = re.search(r"(?m)^(\d+),.*raw_syscalls:sys_enter", text)
    else:
        found = re.search(r"(?m)^\s*(\d+)\s+total$", text)
    if found is None:
        raise ServerError(f"{program} counted nothing: {text.strip()[:300]}")
    return int(found[1])


def find_witness() -> Witness | None:
    """What can count here, or None."""
    if shutil.which("perf"):
        probe = ["perf", "stat", "-x", ",", "-e", "raw_syscalls:sys_enter", "true"]
        run = subprocess.run(probe, capture_output=True, text=True, check=False)
        if run.returncode == 0 and re.search(r"(?m)^\d+,", run.stderr):
            return Witness("perf")
    return Witness("strace") if shutil.which("strace") else None


@dataclass(frozen=True, slots=True)
class Told:
    """What a server process says of its loop. None where the loop does not tell."""

    system_calls: int | None
    """Of its poller, so far."""
    next_wait: tuple[int, int, int] | None
    """How long it would look before it sleeps, how many events it would wait for and how long, ns."""


def ask_loop(pid: int, log: Path) -> Told:
    """Ask the server process. Raises ServerError when it does not answer."""
    told = re.compile(r"(?m)^next_wait (.*)\nsystem_calls (.*)\n")
    before = len(told.findall(log.read_text(errors="replace")))
    os.kill(pid, signal.SIGUSR2)
    deadline = time.monotonic() + WITNESS_TIMEOUT_S
    while time.monotonic() < deadline:
        found = told.findall(log.read_text(errors="replace"))
        if len(found) > before:
            wait, counted = (json.loads(text) for text in found[-1])
            return Told(counted, tuple(wait) if wait else None)
        time.sleep(0.02)
    raise ServerError("it did not tell what its loop has counted")


def count(row: Row, workload: Workload, settings: Settings, witness: Witness) -> Count:
    """One counted window on the row's server. Raises ServerError."""
    speaks = not row.name.rpartition("/")[2].startswith("bare-")
    own: list[int | None] = []
    used: list[CpuReading] = []
    with serving(row, settings.server_cpu) as server:
        log = PROC / str(server.pid) / "cwd" / "output.txt"
        output = log.with_name("count.txt").resolve()

        def at_start() -> None:
            own.append(ask_loop(server.pid, log).system_calls if speaks else None)
            witness.attach(server.pid, output)
            used.append(read_cpu(server.pid))

        def at_end() -> None:
            used.append(read_cpu(server.pid))
            witness.detach()
            own.append(ask_loop(server.pid, log).system_calls if speaks else None)

        command = echo_command(server.port, workload.connections, COUNT_S, workload.message_bytes)
        try:
            load = run_generator(command, cpu=settings.load_cpu, at_start=at_start, at_end=at_end)
        except LoadError as error:
            raise ServerError(f"while its system calls were counted: {error}") from error
        finally:
            witness.close()
        total = witness.total()
    first, last = own
    told = None if first is None or last is None else (last - first) / load.requests
    return Count(row, load.requests, total / load.requests, told, used[1].since(used[0]) / load.elapsed_s)


def count_all(rows: Sequence[Row], workload: Workload, settings: Settings, witness: Witness) -> list[Count]:
    """Every row once."""
    return [count(row, workload, settings, witness) for row in rows]
