"""The supervisor with real processes: a real driver process, real workers, real deaths.

The workers are supervisor_worker.py beside this file rather than stellane.runtime: they speak
the supervisor's protocol, answer lines on the listener they were given, and die when told to.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stellane.config import Config, RuntimeConfig, ShutdownConfig
from stellane.supervisor.oom import find_counter_file

DEADLINE_S = 15.0
# The workers here do not tell that they are well.
RUNTIME: dict[str, Any] = {"restart_delay_s": 0.05, "restart_delay_s_max": 0.4, "hang_timeout_s": 0.0}
WORKER = Path(__file__).with_name("supervisor_worker.py")
DRIVER = Path(__file__).with_name("supervisor_driver.py")


def poll(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Wait until `condition` is true and return its value."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.01)
    return value


def alive(pid: int) -> bool:
    """A zombie is dead: in a container nobody may be there to reap an orphan."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


class Site:
    """One running driver: its process, its log, connections to its workers."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    def lines(self, event: str) -> list[dict[str, Any]]:
        """Log lines whose event, and driver's sayings whose word, begin like this."""
        found = []
        for line in self._log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("event", entry.get("said", "")).startswith(event):
                    found.append(entry)
        return found

    def wait_line(self, event: str, count: int = 1) -> dict[str, Any]:
        def seen() -> dict[str, Any] | None:
            found = self.lines(event)
            return found[count - 1] if len(found) >= count else None

        try:
            entry: dict[str, Any] = poll(seen, f"{count} x {event!r}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._log.read_text()}") from None
        return entry

    @property
    def port(self) -> int:
        port: int = self.wait_line("port")["value"]
        return port

    def ask(self, line: str, timeout_s: float = DEADLINE_S) -> Any:
        """Send one line over a new connection; None when the worker dies before it answers."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as client:
            client.sendall(line.encode() + b"\n")
            try:
                answer = client.makefile().readline()
            except ConnectionResetError:
                return None
        return json.loads(answer) if answer else None

    def begin_slow_request(self, duration_s: float) -> socket.socket:
        """Return a connection whose request a worker is in the middle of."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)
        client.sendall(b"who\n")
        assert client.makefile().readline()  # accepted
        client.sendall(f"slow {duration_s}\n".encode())
        time.sleep(0.2)  # nothing tells from outside that the line has been read
        return client

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        return self.process.wait(timeout_s)

    def pids(self) -> list[int]:
        """Of the first workers, by slot."""
        return [worker["pid"] for worker in self.wait_line("ready")["value"]["workers"]]


Launch = Callable[..., Site]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a driver; whatever is left of it is killed at the end."""
    sites: list[Site] = []

    def start(
        target: str = "serve",
        *,
        runtime: dict[str, Any] | None = None,
        shutdown: dict[str, Any] | None = None,
        command: list[str] | None = None,
        prefix: tuple[str, ...] = (),
        wait_ready: bool = True,
    ) -> Site:
        config = Config(
            server=msgspec.structs.replace(Config().server, port=0),
            runtime=RuntimeConfig(**RUNTIME | (runtime or {})),
            shutdown=ShutdownConfig(**{"graceful_timeout_s": 5.0} | (shutdown or {})),
        )
        worker = command or [sys.executable, str(WORKER)]
        driver = [sys.executable, str(DRIVER)]
        log = tmp_path / "log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [*prefix, *driver, msgspec.json.encode(config).decode(), target, str(tmp_path), *worker],
                stdout=out,
                stderr=out,
                text=True,
                start_new_session=True,
            )
        site = Site(process, log)
        sites.append(site)
        if wait_ready:
            site.wait_line("ready")
        return site

    yield start
    for site in sites:
        if site.process.poll() is None:
            os.killpg(site.process.pid, signal.SIGKILL)
        site.process.wait()


def test_ready_is_reported_once_with_every_worker_in_order(launch: Launch) -> None:
    site = launch(runtime={"worker_threads": 2})
    started = site.wait_line("ready")["value"]
    assert started["addresses"] == [f"http://127.0.0.1:{site.port}"]
    assert [worker["facts"] for worker in started["workers"]] == [{"slot": n, "codec": "lines"} for n in (0, 1)]
    os.kill(site.pids()[0], signal.SIGKILL)
    site.wait_line("worker ready again")
    assert len(site.lines("ready")) == 1


def test_a_killed_worker_is_replaced_and_its_signal_reported(launch: Launch) -> None:
    """One log line says what died of what; the replacement is told, and the other slot is left alone."""
    site = launch(runtime={"worker_threads": 2})
    first, second = site.pids()
    os.kill(first, signal.SIGKILL)
    report = site.wait_line("worker died")
    assert (report["slot"], report["pid"]) == (0, first)
    assert report["cause"] == "killed by signal 9 (SIGKILL)"
    assert report["restart_in_s"] == 0.0
    assert report["lived_s"] > 0
    replaced = site.wait_line("worker ready again")
    assert (replaced["slot"], replaced["start_number"]) == (0, 2)
    spec = poll(lambda: (answer := site.ask("who"))["slot"] == 0 and answer, "an answer from slot 0")
    assert [(c["slot"], c["pid"], c["cause"], c["signal"]) for c in spec["crashes"]] == [(0, first, "signal", 9)]
    assert spec["crashes"][0]["at_ns"] == pytest.approx(time.time_ns(), abs=60e9)
    assert not alive(first)
    assert alive(second)


def test_the_exit_code_of_a_dead_worker_is_reported(launch: Launch) -> None:
    site = launch()
    assert site.ask("who")["crashes"] == []
    assert site.ask("exit 42") is None
    assert site.wait_line("worker died")["cause"] == "exited with code 42"
    crash = site.ask("who")["crashes"][0]
    assert (crash["cause"], crash["exit_code"], crash["signal"]) == ("exit", 42, 0)


def test_leaving_without_being_asked_is_a_death_even_with_code_0(launch: Launch) -> None:
    site = launch()
    site.ask("exit 0")
    assert site.wait_line("worker died")["cause"] == "exited with code 0"
    assert site.ask("who")["start_number"] == 2


def test_no_replacement_starts_before_the_old_process_is_reaped(launch: Launch) -> None:
    """At the moment of each spawn /proc has no trace of any earlier process of the slot."""
    site = launch(runtime={"worker_threads": 2, "restart_delay_s": 0.0})
    for count in range(1, 5):
        os.kill(site.ask("who")["pid"], signal.SIGKILL)
        site.wait_line("worker ready again", count)
    spawns = [entry["value"] for entry in site.lines("spawn")]
    assert len(spawns) == 6
    assert [spawn["unreaped"] for spawn in spawns] == [[]] * 6


def test_what_a_worker_forked_goes_with_it(launch: Launch) -> None:
    """A fork of a dead worker could hold its journal's lock, or go on with its request."""
    site = launch()
    child = site.ask("fork")
    assert alive(child)
    os.kill(site.pids()[0], signal.SIGKILL)
    site.wait_line("worker died")
    poll(lambda: not alive(child), "the fork's end")


def test_all_workers_killed_at_once_refuse_nobody(launch: Launch) -> None:
    """The listener outlives the workers: who connects during a back-off of 0.5 s is answered after it."""
    site = launch(runtime={"worker_threads": 2, "restart_delay_s": 0.5, "restart_delay_s_max": 0.5})
    pids = site.pids()
    for generation in (1, 2):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        # Reaped: a thread of a dying worker may still accept a connection and take it along.
        site.wait_line("worker died", 2 * generation)
        if generation == 1:
            site.wait_line("worker ready again", 2)
            pids = [line["pid"] for line in site.lines("worker ready again")]
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", site.port), timeout=DEADLINE_S))
            for _ in range(20)
        ]
        assert len(site.lines("worker ready again")) == 2  # nobody is there yet
        assert [line["restart_in_s"] for line in site.lines("worker died")] == [0.0, 0.0, 0.5, 0.5]
        for client in clients:
            client.sendall(b"who\n")
            assert json.loads(client.makefile().readline())["start_number"] == 3


def test_a_worker_that_dies_again_and_again_waits_longer_each_time(launch: Launch) -> None:
    """Never ready, no word why: the delay doubles to its maximum, and there is no last attempt."""
    site = launch("die", wait_ready=False)
    site.wait_line("worker died", 5)
    deaths = site.lines("worker died")[:5]
    assert [death["restart_in_s"] for death in deaths] == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.4])
    assert {death["cause"] for death in deaths} == {"exited with code 7"}
    site.signal(signal.SIGTERM)
    assert site.wait() == 0


def test_a_failure_at_the_first_start_ends_everything_with_its_code(launch: Launch) -> None:
    site = launch("fail:1", runtime={"worker_threads": 2}, wait_ready=False)
    assert site.wait() == 3
    assert [entry["value"] for entry in site.lines("failed")] == ["nothing to serve"]
    assert site.lines("ready") == []
    assert site.lines("worker died") == []
    assert len(site.lines("spawn")) == 2


def test_a_failure_later_on_is_tried_again(launch: Launch) -> None:
    """The server has run once, so its code can run: the failure may pass (a database that is away)."""
    site = launch("fail:2", runtime={"worker_threads": 2})
    os.kill(site.pids()[0], signal.SIGKILL)
    report = site.wait_line("worker cannot start")
    assert (report["slot"], report["kind"], report["error"]) == (0, "TargetError", "nothing to serve")
    assert site.wait_line("worker ready again")["start_number"] == 3
    assert site.lines("failed") == []


def test_workers_that_leave_together_are_replaced_and_refuse_nobody(launch: Launch) -> None:
    """As when the disk of all their journals fails: who connects meanwhile waits for a successor."""
    site = launch(runtime={"worker_threads": 2})
    left: list[int | None] = []  # None: accepted by one that was on its way out

    def leave() -> list[dict[str, Any]]:
        left.append(site.ask("leave"))
        return site.lines("worker died")

    poll(lambda: leave() and {0, 1} <= set(left), "the end of both")
    poll(lambda: (answer := site.ask("who")) and answer["start_number"] >= 2, "an answer of a successor")
    assert site.wait_line("worker leaves and will be replaced")["reason"] == "the disk is bad"
    # Young deaths in a row are bounded like any others.
    poll(lambda: any(death["restart_in_s"] for death in leave()), "a back-off")
    assert {death["cause"] for death in site.lines("worker died")} == {"exited with code 74 (its journal failed)"}


def test_a_worker_that_leaves_and_does_not_end_is_killed(launch: Launch) -> None:
    """Nobody has told it to stop, but it is overdue like one who was."""
    site = launch(shutdown={"graceful_timeout_s": 0.1, "hard_timeout_s": 0.1})
    site.ask("leave never")
    assert site.wait_line("worker died")["cause"] == "killed by signal 9 (SIGKILL)"
    assert site.ask("who")["start_number"] == 2


def test_a_worker_that_hangs_is_killed_and_replaced(launch: Launch) -> None:
    """It was ready, and has said nothing since."""
    site = launch(runtime={"hang_timeout_s": 0.2})
    report = site.wait_line("worker hangs")
    assert (report["pid"], report["limit"]) == (site.pids()[0], "hang_timeout_s")
    assert report["silent_s"] >= 0.2
    assert site.wait_line("worker died")["cause"] == "killed because it hung"
    assert site.wait_line("worker ready again")["start_number"] == 2


def test_a_worker_that_does_not_get_ready_is_killed_and_started_again(launch: Launch) -> None:
    site = launch("mute", runtime={"start_timeout_s": 0.2}, wait_ready=False)
    assert site.wait_line("worker does not get ready")["limit"] == "start_timeout_s"
    assert site.wait_line("worker died")["cause"] == "killed because it hung"


def test_no_process_at_the_first_start_ends_with_71(launch: Launch, tmp_path: Path) -> None:
    site = launch(command=[str(tmp_path / "missing-python")], wait_ready=False)
    assert site.wait() == 71
    assert "cannot start a worker process" in site.wait_line("failed")["value"]


def test_requests_in_flight_finish_on_sigterm(launch: Launch) -> None:
    """Exit code 0, a full answer, and then nobody listens any more."""
    site = launch(runtime={"worker_threads": 2})
    client = site.begin_slow_request(0.8)
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
    with client:
        assert client.makefile().read() == '"slept"\n'
    assert not any(alive(pid) for pid in site.pids())
    assert len(site.lines("worker stopped")) == 2
    with pytest.raises(ConnectionRefusedError):
        site.ask("who")


def test_ctrl_c_reaches_the_workers_only_through_the_supervisor(launch: Launch) -> None:
    """A terminal signals the foreground process group; the workers have groups of their own."""
    site = launch()
    who = site.ask("who")
    assert who["pgid"] == who["pid"]
    client = site.begin_slow_request(0.8)
    os.killpg(site.process.pid, signal.SIGINT)
    assert site.wait() == 0
    with client:
        assert client.makefile().read() == '"slept"\n'


def test_a_worker_that_ignores_sigterm_is_killed_at_the_hard_deadline(launch: Launch) -> None:
    """Not before drain + graceful + hard have passed, and not long after."""
    times = {"drain_delay_s": 0.1, "graceful_timeout_s": 0.2, "hard_timeout_s": 0.3}
    site = launch("stubborn", shutdown=times)
    (pid,) = site.pids()
    start = time.monotonic()
    site.signal(signal.SIGTERM)
    assert site.wait() == 1
    assert time.monotonic() - start >= 0.6
    assert site.wait_line("worker did not stop in time: killing it")["pid"] == pid
    assert not alive(pid)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_kills_at_once(launch: Launch, number: signal.Signals, code: int) -> None:
    site = launch("stubborn", shutdown={"graceful_timeout_s": 600.0})
    site.signal(signal.SIGTERM)
    site.wait_line("stopping")
    site.signal(number)
    assert site.wait() == code
    assert not alive(site.pids()[0])


def test_a_worker_that_fails_while_stopping_makes_the_exit_code_1(launch: Launch) -> None:
    site = launch("sour")
    site.signal(signal.SIGTERM)
    assert site.wait() == 1
    assert site.wait_line("worker stopped")["cause"] == "exited with code 5"


def test_a_stop_during_a_back_off_does_not_wait_for_it(launch: Launch) -> None:
    site = launch("die", runtime={"restart_delay_s": 600.0, "restart_delay_s_max": 600.0}, wait_ready=False)
    site.wait_line("worker died")
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
    assert len(site.lines("spawn")) == 1


def test_no_worker_is_started_while_stopping(launch: Launch) -> None:
    """One slot is in its back-off when the signal comes, the other takes its time to stop."""
    times = {"graceful_timeout_s": 0.5, "hard_timeout_s": 0.5}
    site = launch("stubborn", runtime={"worker_threads": 2, "restart_delay_s": 0.4}, shutdown=times)
    os.kill(site.pids()[0], signal.SIGKILL)
    os.kill(site.wait_line("worker ready again")["pid"], signal.SIGKILL)
    assert site.wait_line("worker died", 2)["restart_in_s"] == 0.4
    site.signal(signal.SIGTERM)
    assert site.wait() == 1
    assert len(site.lines("spawn")) == 3


def test_workers_die_with_a_killed_supervisor(launch: Launch) -> None:
    """The workers of these tests do not watch their control socket: it is the kernel that ends them."""
    site = launch(runtime={"worker_threads": 2})
    pids = site.pids()
    site.signal(signal.SIGKILL)
    site.wait()
    poll(lambda: not any(alive(pid) for pid in pids), "the workers' end", deadline_s=5)


def test_a_worker_born_after_its_supervisor_died_does_not_live(tmp_path: Path) -> None:
    """The parent is another process than the specification says: PDEATHSIG would never come."""
    code = "import sys; from stellane.supervisor.parent_death import die_with_parent; die_with_parent(int(sys.argv[1]))"
    stranger = subprocess.run([sys.executable, "-c", code, "1" if os.getpid() != 1 else "2"], check=False)
    assert stranger.returncode == -signal.SIGKILL
    child = subprocess.run([sys.executable, "-c", code, str(os.getpid())], check=False)
    assert child.returncode == 0


def test_sighup_changes_nothing_and_says_so(launch: Launch) -> None:
    site = launch()
    before = site.ask("who")["pid"]
    site.signal(signal.SIGHUP)
    assert "reload is not built yet" in site.wait_line("SIGHUP")["event"]
    assert site.ask("who")["pid"] == before


def test_a_worker_that_babbles_is_reported_and_goes_on_serving(launch: Launch) -> None:
    site = launch()
    assert site.ask("babble") == "babbled"
    assert site.wait_line("worker sent an unreadable message")["pid"] == site.pids()[0]
    assert site.ask("who")["pid"] == site.pids()[0]
    site.ask("exit 9")
    assert site.wait_line("worker died")["cause"] == "exited with code 9"


def test_a_log_nobody_reads_does_not_stop_the_supervisor(launch: Launch) -> None:
    """Its standard output and error are a pipe whose reader has gone: every write is EPIPE."""
    reader = 'for line in 1 2 3 4; do IFS= read -r text; printf "%s\\n" "$text"; done'
    site = launch(prefix=("sh", "-c", f'"$@" 2>&1 | {{ {reader}; }}', "sh"))
    for start_number in (1, 2, 3):
        # None: accepted by the one that was being killed.
        worker = poll(lambda: site.ask("who"), "an answer")
        assert worker["start_number"] == start_number
        if start_number < 3:
            os.kill(worker["pid"], signal.SIGKILL)
            poll(lambda pid=worker["pid"]: not alive(pid), "its end")
    os.kill(worker["supervisor_pid"], signal.SIGTERM)
    poll(lambda: not alive(worker["supervisor_pid"]), "the supervisor's end")


def test_the_supervisor_imports_no_user_code(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "victim.py").write_text(
        "import os, pathlib\n(pathlib.Path(__file__).parent / f'imported-{os.getpid()}').touch()\n"
    )
    site = launch("import:victim", runtime={"worker_threads": 2})
    imported = {path.name for path in tmp_path.glob("imported-*")}
    assert imported == {f"imported-{pid}" for pid in site.pids()}


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup below ours with a limit, where this machine allows one."""
    counter = find_counter_file(Path("/proc/self"))
    if counter is None:
        pytest.skip("not run: this process's memory cgroup has no readable oom_kill counter")
    group = counter.parent / f"stellane-test-{os.getpid()}"
    limit = "memory.max" if counter.name == "memory.events" else "memory.limit_in_bytes"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"not run: cannot make a memory cgroup: {error}")
    try:
        try:
            (group / limit).write_text(str(160 * 1024 * 1024))
        except OSError as error:
            pytest.skip(f"not run: cannot limit the memory of a cgroup: {error}")
        for swap in ("memory.swap.max", "memory.swappiness"):
            if (group / swap).exists():
                (group / swap).write_text("0")
        yield group
        poll(lambda: not (group / "cgroup.procs").read_text().split(), "an empty cgroup")
    finally:
        group.rmdir()


def test_out_of_memory_is_told_from_a_kill_by_hand(memory_cgroup: Path, launch: Launch) -> None:
    """The kernel kills the worker that eats; then a SIGKILL by hand is a signal again."""
    join = ("sh", "-c", f'echo $$ > {memory_cgroup}/cgroup.procs && exec "$@"', "sh")
    site = launch(prefix=join)
    assert site.ask("eat") is None
    assert site.wait_line("worker died")["cause"] == "killed by the kernel: out of memory"
    who = site.ask("who")
    assert who["crashes"][0]["cause"] == "oom"
    os.kill(who["pid"], signal.SIGKILL)
    assert site.wait_line("worker died", 2)["cause"] == "killed by signal 9 (SIGKILL)"
    site.signal(signal.SIGTERM)
    assert site.wait() == 0
