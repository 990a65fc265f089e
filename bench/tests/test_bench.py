"""The harness tells the truth: CPU accounting, placement, the facts of a row, rounds, bars, the command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bench.cpu import assert_pinned, owns_listener, process_tree, read_cpu, running_on
from bench.http import finish, main
from bench.load import Request
from bench.measure import Summary, order_of_round
from bench.report import BARS, BarResult, check_bars
from bench.rows import Row, http_rows, select_rows
from bench.servers import ServerError, ask_once, serving
from click.testing import CliRunner

CPU = min(os.sched_getaffinity(0))

BUSY_CHILD = """
import sys, time
print("waiting", flush=True)
sys.stdin.readline()
start = time.process_time()
while time.process_time() - start < 0.5:
    pass
print(time.process_time() - start, flush=True)
sys.stdin.readline()
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"


def wait_for_tree(root: int, size: int) -> None:
    """Wait until the tree of `root` has `size` processes."""
    deadline = time.monotonic() + 5
    while len(process_tree(root)) != size:
        assert time.monotonic() < deadline, f"the tree is {process_tree(root)}, not {size} processes"
        time.sleep(0.005)


def test_cpu_time_of_a_busy_grandchild_is_counted() -> None:
    """A parent that sleeps and a child that burns 0.5 s: the tree's figure is right within 20 %."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, BUSY_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        before = read_cpu(process.pid)
        assert len(before.seconds) == 2
        process.stdin.write("go\n")
        process.stdin.flush()
        burned = float(process.stdout.readline())
        after = read_cpu(process.pid)
        process.stdin.close()
    assert after.since(before) == pytest.approx(burned, rel=0.2)


def test_cpu_time_is_refused_when_a_process_of_the_tree_ended() -> None:
    """Its time would be missing, and the server would look cheaper than it is."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT + "; sys.stdin.readline()", "pass; input()"], stdin=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        wait_for_tree(process.pid, 2)
        before = read_cpu(process.pid)
        os.kill(next(pid for pid in before.seconds if pid != process.pid), signal.SIGKILL)
        wait_for_tree(process.pid, 1)
        with pytest.raises(RuntimeError, match="processes changed"):
            read_cpu(process.pid).since(before)
        process.kill()


def test_process_that_may_run_elsewhere_is_found() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("not run: needs two CPUs")
    with running_on(CPU):
        process = subprocess.Popen(["sleep", "30"])
    assert os.sched_getaffinity(0) == allowed
    with process:
        assert_pinned(process.pid, CPU)
        os.sched_setaffinity(process.pid, allowed)
        with pytest.raises(RuntimeError, match="may run on CPUs"):
            assert_pinned(process.pid, CPU)
        process.kill()


def test_listener_of_another_program_is_told_apart() -> None:
    """Another server on the port would be measured as ours."""
    with socket.create_server(("127.0.0.1", 0)) as listener, subprocess.Popen(["sleep", "30"]) as other:
        port = listener.getsockname()[1]
        assert owns_listener(os.getpid(), port)
        assert not owns_listener(other.pid, port)
        other.kill()


def bare_row(build: Path, **changes: object) -> Row:
    fields: dict[str, object] = {"name": "bare", "title": "bare"}
    fields["command"] = lambda port, _directory: [str(build / "epoll_server"), str(port)]
    return Row(**(fields | changes))  # type: ignore[arg-type]


def test_row_is_refused_when_its_server_does_not_say_or_load_what_the_row_claims(build: Path) -> None:
    """This is what keeps a silent fallback out of the table; the same server passes without the claim."""
    with serving(bare_row(build, says=("listening",), maps=("libc",)), CPU) as server:
        assert server.response_head.startswith("HTTP/1.1 200")
    for claim in ({"says": ("backend io_uring",)}, {"maps": ("/uvloop/",)}):
        with pytest.raises(ServerError, match=r"not (be )?what the row says"), serving(bare_row(build, **claim), CPU):
            pass


def test_row_is_refused_when_the_server_answers_wrongly(build: Path) -> None:
    with (
        pytest.raises(ServerError, match="404"),
        serving(bare_row(build, request=Request(path="/missing")), CPU),
    ):
        pass


def test_answer_that_is_cut_off_is_the_servers_error() -> None:
    """A reset while the first answer is read names the request, instead of ending in a traceback."""

    def reset(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(1)  # the rest stays unread, so that close sends a reset
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=reset, args=(listener,))
        thread.start()
        with pytest.raises(ServerError, match=r"GET /: .*reset"):
            ask_once(listener.getsockname()[1], Request())
        thread.join(5)


def test_row_is_refused_when_the_server_ends_at_once() -> None:
    row = Row("gone", "gone", lambda _port, _directory: [sys.executable, "-c", "print('no such backend'); exit(3)"])
    with (
        pytest.raises(ServerError, match=r"status 3 before it answered\n.*\nno such backend"),
        serving(row, CPU),
    ):
        pass


def test_every_process_of_a_server_is_gone_afterwards(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those the server started itself, those that ignore SIGTERM, and those that SIGKILL finds without a CPU."""
    monkeypatch.setattr("bench.servers.ASK_TIMEOUT_S", 0.2)
    script = 'trap "" TERM; for n in $(seq 40); do nice -n 19 sh -c "while :; do :; done" & done; exec "$0" "$1"'

    def command(port: int, _directory: Path) -> list[str]:
        return ["sh", "-c", script, str(build / "epoll_server"), str(port)]

    with serving(bare_row(build, command=command), CPU) as server:
        pids = process_tree(server.pid)
        assert len(pids) == 41
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            assert stat.read_text().rpartition(")")[2].split()[0] in {"Z", "X"}


def test_rounds_are_rotated_and_complete() -> None:
    rows = http_rows()
    orders = [order_of_round(rows, number) for number in range(len(rows))]
    assert all(sorted(r.name for r in order) == sorted(r.name for r in rows) for order in orders)
    assert len({order[0].name for order in orders}) == len(rows)


def test_unknown_row_is_named_with_the_known_ones() -> None:
    assert [row.name for row in select_rows(http_rows(), ["*-native-libuv"])] == ["stellane-native-libuv"]
    with pytest.raises(LookupError, match=r"'hypercorn'.*bare-c"):
        select_rows(http_rows(), ["bare-c", "hypercorn"])


def summaries(**cpu_us: float) -> list[Summary]:
    by_name = {row.name: row for row in http_rows()}
    return [
        Summary(by_name[name.replace("_", "-")], 5, cpu, cpu, cpu, 1.0, 1.0, 1.0, 1.0, 0.0)
        for name, cpu in cpu_us.items()
    ]


def test_bars_take_the_best_backend_and_say_by_how_much_they_are_missed() -> None:
    native, asgi = check_bars(
        summaries(
            bare_c=5.0,
            uvicorn=20.0,
            stellane_native_asyncio=50.0,
            stellane_native_libuv=9.0,
            stellane_asgi_epoll=14.3,
        )
    )
    assert native.held
    assert native.row == "stellane-native-libuv"
    assert native.ratio == pytest.approx(1.8)
    assert not asgi.held
    assert asgi.sentence().endswith("10.0% too much")


def test_bars_need_their_rows() -> None:
    with pytest.raises(LookupError, match="uvicorn"):
        check_bars(summaries(bare_c=5.0, stellane_native_libuv=9.0, stellane_asgi_libuv=9.0))


def test_missed_bar_ends_the_command_with_status_1() -> None:
    held, missed = BarResult(BARS[0], "stellane-native-libuv", 1.0), BarResult(BARS[1], "stellane-asgi-libuv", 1.0)
    finish([held], check=True)
    finish([held, missed], check=False)
    with pytest.raises(SystemExit) as ended:
        finish([held, missed], check=True)
    assert ended.value.code == 1


ROOT = Path(__file__).resolve().parents[2]


def test_command_measures_the_bare_server(build: Path, tmp_path: Path) -> None:
    """From the command line to the JSON file, with real programs."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("not run: needs two CPUs")
    # Long enough that CPU_S_MIN is reached when the server gets only a part of its CPU.
    arguments = ["--only", "bare-c", "--rounds", "1", "--seconds", "3", "--json", str(tmp_path / "out.json")]
    run = subprocess.run(
        [sys.executable, "-m", "bench.http", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "this is not a result: 1 of at least 5 rounds" in run.stdout
    (measurement,) = json.loads((tmp_path / "out.json").read_text())["measurements"]
    assert measurement["row"] == "bare-c"
    assert measurement["requests"] > 1000
    assert 0 < measurement["cpu_s"] <= measurement["elapsed_s"] * 1.1
    assert measurement["cpu_us_per_request"] == pytest.approx(measurement["cpu_s"] / measurement["requests"] * 1e6)


def test_command_starts_as_a_script_from_anywhere(tmp_path: Path) -> None:
    """Its own name must not hide the standard library's `http` then."""
    run = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "http.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert "--check" in run.stdout


def test_check_refuses_too_few_rounds() -> None:
    result = CliRunner().invoke(main, ["--check", "--rounds", "4"])
    assert result.exit_code == 2
    assert "--check needs --rounds 5" in result.output
