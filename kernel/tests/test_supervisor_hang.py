"""When a worker counts as hanging: its silence is counted fairly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from stellane.supervisor import Supervisor
from stellane.supervisor.hang import HangWatch
from stellane.supervisor.messages import Turning
from stellane.supervisor.processes import WorkerProcess
from stellane.supervisor.restart import RestartPolicy
from stellane.supervisor.slot import Slot

HANG_S, START_S = 8.0, 20.0  # looked at every 2 s


class Bench:
    """A watch, a slot whose worker may be stopped, and a clock."""

    def __init__(self, *, ready: bool = True, **timeouts: float) -> None:
        self.now = 100.0
        self.watch = HangWatch(**{"hang_timeout_s": HANG_S, "start_timeout_s": START_S} | timeouts)
        self.slot = Slot(0, RestartPolicy(0.1, 1.0, 10.0))
        self.process = SimpleNamespace(stopped=False)
        process: Any = self.process
        self.slot.occupy(process, self.now)
        if ready:
            self.slot.mark_ready(self.now)
        self.hangs()

    def hangs(self, after_s: float = 0.0) -> bool:
        """Whether it is found to hang at once, after that many seconds of the clock."""
        self.now += after_s
        return bool(self.watch.look(self.now, [self.slot]))

    def hangs_after_s(self, at_most_s: float = 60.0) -> float | None:
        """After how many seconds of silence it is found to hang, when it is looked at as often as it should be."""
        begun = self.now
        while self.now - begun < at_most_s:
            at = self.watch.next_look(self.now)
            if at is None:
                return None
            if self.hangs(max(0.0, at - self.now)):
                return self.now - begun
        return None


def test_silence_is_counted_and_not_for_less_than_the_limit() -> None:
    assert HANG_S < (Bench().hangs_after_s() or 0) <= HANG_S + 2 * 2
    assert START_S < (Bench(ready=False).hangs_after_s() or 0) <= START_S + 2 * 2


def test_a_sign_of_life_starts_the_count_over() -> None:
    bench = Bench()
    for _ in range(20):
        assert not bench.hangs(2.0)
        assert not bench.hangs(2.0)
        assert not bench.hangs(2.0)
        bench.slot.gave_sign = True
    assert (bench.hangs_after_s() or 0) >= HANG_S


def test_a_turning_loop_is_a_sign_of_life() -> None:
    bench = Bench()
    slot: Any = bench.slot
    slot.receive = lambda: [Turning()]
    Supervisor._on_message(SimpleNamespace(), slot, bench.process)  # type: ignore[arg-type]
    assert slot.gave_sign


def test_time_in_which_the_worker_is_stopped_does_not_count() -> None:
    """SIGSTOP or a debugger; when it goes on it has the whole time again."""
    bench = Bench()
    bench.hangs(2.0)
    bench.process.stopped = True
    assert bench.hangs_after_s() is None
    bench.process.stopped = False
    assert (bench.hangs_after_s() or 0) >= HANG_S


def test_time_in_which_the_supervisor_was_away_does_not_count() -> None:
    """A suspended machine: neither could speak or hear."""
    bench = Bench()
    for _ in range(4):
        assert not bench.hangs(2.0)
    assert not bench.hangs(3600.0)
    assert (bench.hangs_after_s() or 0) >= HANG_S


@pytest.mark.parametrize("ready", [True, False])
def test_zero_is_never(ready: bool) -> None:
    """Of one of them, or of both, and then nobody wakes up for it."""
    assert Bench(ready=ready, **{"hang_timeout_s" if ready else "start_timeout_s": 0.0}).hangs_after_s() is None
    assert Bench(ready=ready, hang_timeout_s=0.0, start_timeout_s=0.0).watch.next_look(0.0) is None


def test_a_hang_is_found_once() -> None:
    """The kernel may take its time with the end of a killed process."""
    bench = Bench()
    assert bench.hangs_after_s() is not None
    bench.process.pid = os.getpid()
    bench.process.send_signal = lambda _number: None
    Supervisor._on_hang(SimpleNamespace(), bench.slot)  # type: ignore[arg-type]
    bench.slot.kill_at = None  # it has had its SIGKILL
    assert bench.hangs_after_s() is None


def test_who_is_not_listened_to_is_not_judged() -> None:
    """It has sent what is no message, and may be well."""

    def receive() -> list[Any]:
        raise ValueError("no message")

    bench = Bench()
    slot: Any = bench.slot
    slot.receive = receive
    bench.process.pid = os.getpid()
    bench.process.control = SimpleNamespace(close=lambda: None)
    supervisor: Any = SimpleNamespace(_selector=SimpleNamespace(unregister=lambda _: None))
    Supervisor._on_message(supervisor, slot, bench.process)  # type: ignore[arg-type]
    assert bench.hangs_after_s() is None


def test_who_is_to_end_anyway_has_a_deadline_of_its_own() -> None:
    bench = Bench()
    bench.slot.kill_at = 1e9
    assert bench.hangs_after_s() is None


@pytest.mark.parametrize("ready", [True, False])
def test_a_new_process_begins_with_no_silence(ready: bool) -> None:
    """Neither that of the one before counts, nor the time since the last look before it was started."""
    bench = Bench(ready=ready)
    limit_s = HANG_S if ready else START_S
    for _ in range(int(limit_s / 2)):
        bench.hangs(2.0)
    bench.now += 1.5
    process: Any = bench.process
    bench.slot.occupy(process, bench.now)
    if ready:
        bench.slot.mark_ready(bench.now)
    assert (bench.hangs_after_s() or 0) >= limit_s


def test_a_stopped_process_is_seen_as_such() -> None:
    """From outside, and only while it is stopped."""
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    own, theirs = socket.socketpair()
    theirs.close()
    worker = WorkerProcess(0, process, own)
    try:
        assert not worker.stopped
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert worker.stopped
        process.send_signal(signal.SIGCONT)
        os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        assert not worker.stopped
    finally:
        process.kill()
        process.wait()
        os.close(worker.pidfd)
        own.close()
    assert not worker.stopped
