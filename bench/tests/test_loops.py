"""The loop benchmark tells the truth: what a row is, what its work did, what is counted, how bars come out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench.build import compile_program
from bench.cpu import owns_listener, read_cpu, read_rss_bytes
from bench.loops import callbacks, control, memory
from bench.loops.__main__ import Run, all_rows, main
from bench.loops.bars import all_held, check_bars, check_idle, check_memory, check_system_calls
from bench.loops.counting import Witness, count, find_witness, has_open, parse_total
from bench.loops.loops import LOOPS, MODES
from bench.loops.modes import SECTIONS, ModeMeasurement, ModeSection, measure_mode, measure_section, summarize_modes
from bench.loops.workloads import ECHO, WORKLOADS, rows_of
from bench.measure import Measurement, Settings
from bench.rows import Row
from bench.servers import NOT_RUN_STATUS, ServerError, serving
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parents[2]
CPU = min(os.sched_getaffinity(0))
SETTINGS = Settings(rounds=1, seconds=0.5, connections=4, server_cpu=CPU, load_cpu=max(os.sched_getaffinity(0)))


def row_named(name: str) -> Row:
    return next(row for row in all_rows() if row.name == name)


def test_every_workload_has_a_row_for_every_loop_and_no_name_is_used_twice() -> None:
    names = [row.name for row in all_rows()]
    assert len(set(names)) == len(names)
    for workload in WORKLOADS:
        assert {f"{workload.name}/{loop.name}" for loop in workload.loops} <= set(names)
    for loop in (*LOOPS, *MODES):
        assert any(name.endswith(f"/{loop.name}") for name in names)


@pytest.mark.parametrize(
    "workload", [w.name for w in WORKLOADS if w.loops is LOOPS and w.name not in {"tls-1k", "timers"}]
)
def test_row_of_the_standard_loop_starts_and_is_what_it_says(build: Path, workload: str) -> None:
    """The server process of every workload answers rightly and shows its loop, its file and its poller."""
    del build
    with serving(row_named(f"{workload}/asyncio"), CPU) as server:
        datagrams = "datagrams" in workload
        assert owns_listener(server.pid, server.port, datagrams=datagrams)
        assert not owns_listener(server.pid, server.port, datagrams=not datagrams)


@pytest.mark.parametrize(
    ("claim", "complaint"),
    [
        ({"says": (r"(?m)^loop uvloop\.Loop$",)}, "does not match"),
        ({"says": (r"(?m)^module .*/uvloop/",)}, "does not match"),
        ({"maps": ("/uvloop/",)}, "loaded no library"),
        ({"polls": "io_uring", "polls_not": ""}, r"holds the pollers \['epoll'\]"),
        ({"polls_not": "epoll"}, r"holds the pollers \['epoll'\]"),
    ],
)
def test_row_that_runs_another_loop_than_it_says_is_refused(claim: dict[str, Any], complaint: str) -> None:
    lying = dataclasses.replace(row_named("echo-protocol-1k/asyncio"), **claim)
    with pytest.raises(ServerError, match=complaint), serving(lying, CPU):
        pass


def test_ring_is_seen(build: Path) -> None:
    """A server on io_uring shows its ring, though it goes by a registered index."""
    ring = Row(
        "ring", "ring", lambda port, _d: [str(build / "uring_echo"), str(port), "4096"], polls="io_uring",
        polls_not="epoll", ask=rows_of(ECHO)[0].ask,
    )  # fmt: skip
    with serving(ring, CPU) as server:
        assert owns_listener(server.pid, server.port)


def test_loop_that_cannot_do_it_is_not_run_with_its_own_reason() -> None:
    program = f"import sys; print('noise'); print('no TLS here'); sys.exit({NOT_RUN_STATUS})"
    row = Row("x/y", "y", lambda _port, _directory: [sys.executable, "-c", program])
    missing = Row("x/z", "z", lambda _port, _directory: [], distributions=("no-such-loop",))
    run = Run(SETTINGS)
    assert run.runnable([row, missing]) == []
    assert run.not_run["x/y"] == "no TLS here"
    assert "no-such-loop, which is not installed" in run.not_run["x/z"]


def test_loop_that_fails_otherwise_ends_the_run() -> None:
    broken = Row("x/y", "y", lambda _port, _directory: [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(ServerError, match="status 1"):
        Run(SETTINGS).runnable([broken])


class LastInFirstOut(asyncio.SelectorEventLoop):
    """Runs the newest callback first."""

    def _run_once(self) -> None:
        self._ready.reverse()  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class NoCancel(asyncio.SelectorEventLoop):
    """Cancelled timers fire."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        super().call_later(delay, callback, *args, context=context)
        return types.SimpleNamespace(cancel=lambda: None)


class Early(asyncio.SelectorEventLoop):
    """Timers fire too soon."""

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return super().call_later(delay / 2, callback, *args, context=context)


@pytest.mark.parametrize(
    ("loop_type", "work", "complaint"),
    [
        (LastInFirstOut, callbacks.Chain, "order"),
        (LastInFirstOut, callbacks.Batch, "in order"),
        (NoCancel, callbacks.Timers, "cancelled"),
        (Early, callbacks.Timers, "early"),
    ],
)
def test_loop_that_does_the_work_wrongly_is_found(
    loop_type: type[asyncio.SelectorEventLoop], work: Callable[[], control.Work], complaint: str
) -> None:
    right, wrong = asyncio.SelectorEventLoop(), loop_type()
    try:
        work().check(right)
        with pytest.raises(RuntimeError, match=complaint):
            work().check(wrong)
    finally:
        right.close()
        wrong.close()


def test_callbacks_of_threads_are_counted_and_their_order_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks, "POSTS", 500)
    loop = asyncio.SelectorEventLoop()
    assert callbacks.Threadsafe().run(loop) == 2000
    held: list[tuple[Any, ...]] = []

    def swapping(*call: Any) -> Any:
        """Each thread's first two callbacks change places."""
        if call[2] == 0:
            held.append(call)
            return None
        handle = asyncio.SelectorEventLoop.call_soon_threadsafe(loop, *call)
        for late in [h for h in held if h[1] == call[1]]:
            held.remove(late)
            asyncio.SelectorEventLoop.call_soon_threadsafe(loop, *late)
        return handle

    loop.call_soon_threadsafe = swapping  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of order"):
        callbacks.Threadsafe().run(loop)
    loop.close()


class Counting:
    """Work of three operations a pass."""

    passes = 0

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing to check."""

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        del loop
        time.sleep(0.01)
        self.passes += 1
        return 3


def test_operations_of_whole_passes_are_counted() -> None:
    work = Counting()
    loop = asyncio.SelectorEventLoop()
    result = control.run_for(loop, work, 0.1)
    assert result["operations"] == work.passes * 3 >= 3
    assert 0.1 <= result["elapsed_s"] < 5
    assert control.run_for(loop, work, 0)["operations"] == 3
    loop.close()


def test_time_of_children_counts_when_their_server_waited_for_them() -> None:
    """And only when it is asked for."""
    burn = "import time; s = time.process_time()\nwhile time.process_time() - s < 0.4: pass"
    program = f"import subprocess, sys; input(); subprocess.run([sys.executable, '-c', {burn!r}]); print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        before, before_all = read_cpu(process.pid), read_cpu(process.pid, reaped=True)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        own = read_cpu(process.pid).since(before)
        everything = read_cpu(process.pid, reaped=True).since(before_all)
        process.kill()
    assert own < 0.25
    assert everything - own >= 0.35


def test_resident_memory_is_read() -> None:
    program = "print(flush=True); input(); x = bytearray(b'x') * (64 << 20); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = read_rss_bytes(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        grown = read_rss_bytes(process.pid) - before
        process.kill()
    assert grown == pytest.approx(64 << 20, rel=0.1)


def test_idle_memory_is_of_connections_that_are_open_and_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A StreamReader's buffer on every connection would show; here it is the standard loop's transports."""
    monkeypatch.setattr(memory, "CONNECTIONS", 500)
    compile_program("echo_load")
    each, empty = memory.measure_idle(row_named("idle-memory/asyncio"), SETTINGS)
    assert 500 < each < 50_000
    assert empty > 1_000_000


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_modes_are_measured_under_load_and_in_silence(section: ModeSection) -> None:
    pytest.importorskip("stellane_loop")
    compile_program("echo_load")
    rows = section.rows()[-2:]
    for row in rows:
        try:
            with serving(row, CPU):
                pass
        except ServerError as error:
            pytest.skip(f"not run: {error}")
    for seconds in (1.5, 8):
        try:
            found = measure_section(section, rows, dataclasses.replace(SETTINGS, seconds=seconds))
            break
        except ServerError as error:  # one client on a crowded machine leaves the server little to do
            if seconds > 1.5 or "too little to measure" not in str(error):
                raise
    assert [s.row for s in summarize_modes(rows, found)] == rows
    for m in found:
        assert m.requests > 100
        assert 0 < m.p50_us <= m.p99_us
        assert 0 < m.system_calls < 10
        assert m.idle_cpu < 0.05
        assert "+" in m.row or (m.spin_us, m.wait_events) == (0, 1)


def test_loop_that_does_not_sleep_when_idle_is_found(tmp_path: Path) -> None:
    """The silence is measured with the connections open, after the load."""
    compile_program("echo_load")
    server = tmp_path / "burning.py"
    server.write_text(
        "import asyncio, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from bench.loops import server\n"
        "class Loop(asyncio.SelectorEventLoop):\n"
        "    def _next_wait(self): return 50000, 1, 0\n"
        "    def statistics(self):\n"
        "        self.calls = getattr(self, 'calls', 0) + 1\n"
        "        return type('', (), {'system_calls': self.calls})\n"
        "    def _run_once(self):\n"
        "        self.call_soon(int)\n"
        "        super()._run_once()\n"
        "loop = Loop()\n"
        "server.serve(loop, 'protocol', int(sys.argv[1]), None)\n"
    )
    row = Row("x/burning+spin", "burning", lambda port, _d: [sys.executable, str(server), str(port)],
              ask=rows_of(ECHO)[0].ask)  # fmt: skip
    found = measure_mode(row, SECTIONS[1], dataclasses.replace(SETTINGS, seconds=1.0), 0)
    assert found.idle_cpu > 0.05
    assert found.spin_us == 50
    [summary] = summarize_modes([row], [found])
    assert summary.at_work == 1
    outcomes = check_idle({"stellane-epoll+spin": found.idle_cpu, "stellane-io_uring+spin": 0.0}, "adaptive-polling")
    assert [outcome.held for outcome in outcomes] == [False, True]


def test_a_mode_is_compared_round_by_round() -> None:
    """The machine was twice as slow in the second round: the mode takes half the time in each, and twice the CPU."""
    off, on = SECTIONS[0].rows()[:2]

    def measured(row: Row, round_number: int, p50_us: float, cpu_us: float) -> ModeMeasurement:
        return ModeMeasurement(row.name, round_number, 1000, cpu_us, 1.0, p50_us, p50_us, 1.0, 0.0, 0.0, 1, 0.0)

    found = [measured(off, 0, 10, 4), measured(on, 0, 5, 8), measured(off, 1, 20, 8), measured(on, 1, 10, 16)]
    found.append(measured(on, 2, 99, 99))  # without the other it is compared with nothing
    plain, spinning = summarize_modes([off, on], found)
    assert (plain.p50_ratio, plain.cpu_ratio) == (None, None)
    assert (spinning.p50_ratio, spinning.cpu_ratio) == (0.5, 2.0)
    assert spinning.rounds == 3


PERF = "# started\n\n137710,,raw_syscalls:sys_enter,1001234,100.00,,\n"
STRACE = "    calls syscall\n--------- -------\n     1200 recvfrom\n      800 sendto\n--------- ---\n     2000 total\n"


def test_witnesses_totals_are_read() -> None:
    assert parse_total("perf", PERF) == 137710
    assert parse_total("strace", STRACE) == 2000
    with pytest.raises(ServerError, match="counted nothing"):
        parse_total("perf", PERF.replace("137710", "<not counted>"))


def test_descriptors_that_close_while_they_are_read_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The witness opens and closes files while it starts; its list is old as soon as it is read."""
    links: list[Path] = []

    def readlink(path: Path) -> str:
        links.append(path)
        if len(links) == 1:
            raise FileNotFoundError(path)
        return "anon_inode:[perf_event]"

    monkeypatch.setattr(os, "readlink", readlink)
    assert has_open(os.getpid(), "perf_event")
    assert len(links) == 2


def test_witness_that_cannot_count_is_not_left_running(tmp_path: Path) -> None:
    """Its process is ended on every way out of a count, also while it waits to be attached."""
    program = find_witness()
    if program is None:
        pytest.skip("not run: neither perf nor strace can count system calls here")
    with subprocess.Popen(["sleep", "60"]) as asleep:
        witness = Witness(program.program)
        witness.attach(asleep.pid, tmp_path / "count.txt")
        assert witness._process is not None
        counting = witness._process
        witness.close()
        assert counting.returncode is not None
        asleep.kill()


def test_system_calls_of_the_bare_server_are_counted(build: Path) -> None:
    """One receive and one send a request, and a wait for one or more of them."""
    del build
    witness = find_witness()
    if witness is None:
        pytest.skip("not run: neither perf nor strace can count system calls here")
    for program in ("echo_load", "epoll_echo"):
        compile_program(program)
    counted = count(row_named("system-calls/bare-epoll"), ECHO, SETTINGS, witness)
    assert 2.0 < counted.witnessed <= 3.1
    assert counted.own is None
    assert 0.05 < counted.busy < 1.1


def test_bars_are_for_each_poller_or_for_the_better_one() -> None:
    cpu = {
        "echo-protocol-1k": {
            "bare-epoll": 4.2, "bare-io_uring": 4.0, "uvloop": 5.0, "stellane-epoll": 5.1, "stellane-io_uring": 4.5,
        }
    }  # fmt: skip
    found = {(o.loop, o.against, o.limit): o for o in check_bars(cpu)}
    assert not found["stellane-epoll", "x uvloop", 1.0].held
    assert found["stellane-io_uring", "x uvloop", 1.0].held
    assert found["stellane-io_uring", "x uvloop", 0.93].held
    to_c = found["stellane-io_uring", "x bare C", 1.12]
    assert to_c.ratio == pytest.approx(4.5 / 4.0), "the cheaper C server is the unit"
    assert not to_c.held
    assert to_c.sentence().startswith("missed")
    assert len(found) == 4


def test_bar_that_was_not_run_is_not_held() -> None:
    outcomes = check_bars({"timers": {"uvloop": 1.0, "stellane-epoll": 0.5}})
    assert [o.held for o in outcomes if o.loop == "stellane-epoll"] == [True, True]
    assert [o.ratio for o in outcomes if o.loop == "stellane-io_uring"] == [None, None]
    assert not all_held(outcomes)
    assert not all_held([])
    assert not all_held(check_system_calls({}, "system-calls"))
    assert all_held(check_system_calls({"stellane-io_uring": 0.125}, "system-calls"))
    assert not all_held(check_system_calls({"stellane-io_uring": 0.126}, "system-calls"))


def test_memory_of_idle_connections_has_a_bar_for_each_poller() -> None:
    found = {"uvloop": 1000.0, "stellane-epoll": 1000.0, "stellane-io_uring": 1001.0, "rloop": 1.0}
    assert {o.loop: o.held for o in check_memory(found, "m")} == {"stellane-epoll": True, "stellane-io_uring": False}
    assert [o.ratio for o in check_memory({"stellane-epoll": 1.0}, "m")] == [None, None]


@pytest.mark.parametrize(
    ("epoll", "rounds"), [(0.5, 3), (0.77, 9), (0.83, 9), (1.2, 3)], ids=["held", "just held", "just missed", "missed"]
)
def test_a_ratio_close_to_its_bar_takes_more_rounds_of_the_whole_workload(
    epoll: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = {"timers/uvloop": 1.0, "timers/stellane-epoll": epoll, "timers/stellane-io_uring": 0.5}
    rows = [row_named(name) for name in cpu]

    def measured(row: Row, _settings: Settings, number: int) -> Measurement:
        return Measurement(row.name, number, 1, 1.0, 1.0, cpu[row.name], 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, "")

    monkeypatch.setattr("bench.measure.measure", measured)
    monkeypatch.setattr(Run, "runnable", lambda _self, chosen: list(chosen))
    run = Run(dataclasses.replace(SETTINGS, rounds=3))
    run.measure(next(w for w in WORKLOADS if w.name == "timers"), rows)
    assert sorted((m.row, m.round) for m in run.measurements) == sorted((row, n) for row in cpu for n in range(rounds))
    assert {summary.rounds for summary in run.summaries["timers"]} == {rounds}


def test_command_measures_the_standard_loop(tmp_path: Path) -> None:
    """From the command line to the JSON file: a workload with a client and one without."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("not run: needs two CPUs")
    names = ["echo-protocol-1k/asyncio", "call-soon-chain/asyncio", "tls-1k/asyncio"]
    only = [argument for name in names for argument in ("--only", name)]
    options = ["--rounds", "1", "--seconds", "3", "--json", str(tmp_path / "out.json")]
    run = subprocess.run(
        [sys.executable, "-m", "bench.loops", *only, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "this is not a result: 1 of at least 5 rounds" in run.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert {m["row"] for m in document["measurements"]} == set(names)
    for measurement in document["measurements"]:
        assert measurement["requests"] > 1000
        assert measurement["cpu_us_per_request"] == pytest.approx(measurement["cpu_s"] / measurement["requests"] * 1e6)
    assert all(bar["held"] is False for bar in document["bars"]), "Stellane's loop was not run"


def test_check_refuses_too_few_rounds_and_unknown_rows_are_named() -> None:
    refused = CliRunner().invoke(main, ["--check", "--rounds", "4"])
    assert refused.exit_code == 2
    assert "--check needs --rounds 5" in refused.output
    unknown = CliRunner().invoke(main, ["--only", "echo/trio"])
    assert unknown.exit_code == 2
    assert "no row is called 'echo/trio'" in unknown.output
