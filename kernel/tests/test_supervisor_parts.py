"""What the supervisor is put together from: messages, adoption, the out-of-memory counter."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import msgspec
import pytest

from stellane.config import Config, RuntimeConfig
from stellane.errors import ConfigError
from stellane.recovery.context import CrashInfo
from stellane.runtime.worker_process import _failed
from stellane.supervisor.adoption import find_adopted_slots
from stellane.supervisor.handover import open_handover
from stellane.supervisor.messages import (
    LINE_BYTES_MAX,
    Failed,
    MessageReader,
    Ready,
    WorkerSpec,
    read_spec,
    send_message,
    write_spec,
)
from stellane.supervisor.oom import OomKillCounter, find_counter_file
from stellane.supervisor.processes import describe_end
from stellane.supervisor.reports import cause_of


def make_spec(**changes: object) -> WorkerSpec:
    spec = WorkerSpec(
        target="app:server",
        app_dir="/srv",
        config=msgspec.to_builtins(Config()),
        origins={"server.port": {"source": "file", "detail": "stellane.config.toml:3"}},
        slot=1,
        slots=2,
        listener_fds=[],
        control_fd=-1,
        supervisor_pid=os.getpid(),
        crashes=[CrashInfo(slot=1, pid=7, cause="signal", signal=9, at_ns=5)],
        start_number=2,
    )
    return msgspec.structs.replace(spec, **changes)


def test_a_specification_arrives_whole_and_closes_its_file() -> None:
    """The configuration comes back as the same Config, and descriptors stop being inheritable."""
    own, theirs = socket.socketpair()
    handover = open_handover(RuntimeConfig(dispatch="affinity", worker_threads=2))
    assert handover is not None
    with own, theirs, handover:
        inherited = [theirs.fileno(), *handover.spec().descriptors()]
        for each in inherited:
            os.set_inheritable(each, True)
        sent = make_spec(control_fd=theirs.fileno(), target="x" * 300_000, handover=handover.spec())
        assert set(sent.inherited()) == set(handover.spec().descriptors())
        fd = os.memfd_create("spec")
        write_spec(sent, fd)
        received = read_spec(fd)
        assert msgspec.convert(received.config, Config) == Config()
        assert msgspec.structs.replace(received, config=sent.config) == sent
        assert not any(map(os.get_inheritable, inherited))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_messages_arrive_however_they_are_cut() -> None:
    own, theirs = socket.socketpair()
    with own, theirs:
        sent = [Ready(pid=5, facts={"backend": "uv"}), Failed(kind="TargetError", text="no\nmodule", exit_code=3)]
        for message in sent:
            send_message(theirs, message)
        data = own.recv(65_536)
    for size in (1, 7, len(data)):
        reader = MessageReader()
        received = [message for at in range(0, len(data), size) for message in reader.feed(data[at : at + size])]
        assert received == sent


def test_a_failure_arrives_whatever_is_in_its_text() -> None:
    """A worker that fails to say that it failed would be started again for ever."""
    own, theirs = socket.socketpair()
    with own, theirs:
        send_message(theirs, _failed(ValueError("not utf-8: \udc80")))
        (message,) = MessageReader().feed(own.recv(65_536))
    assert isinstance(message, Failed)
    assert "not utf-8: \\udc80" in message.text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"\n", "truncated"),
        (b"hello\n", "malformed"),
        (b'{"message":"ready"}\n', "missing required field `pid`"),
        (b'{"message":"dance"}\n', "Invalid value 'dance'"),
        (b"\xff\xfe\n", "malformed"),
        (b'{"message":"ready","pid":1,"facts":{"a":"\xff"}}\n', "utf-8"),
        (b'{"message":"ready","pid":1,"facts":{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}}\n", "nested too deep"),
    ],
)
def test_a_line_that_is_no_message_is_refused(line: bytes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        MessageReader().feed(line)


def test_an_endless_line_is_refused_at_its_limit() -> None:
    reader = MessageReader()
    assert reader.feed(b"x" * LINE_BYTES_MAX) == []
    with pytest.raises(ValueError, match=str(LINE_BYTES_MAX)):
        reader.feed(b"x")


def test_left_over_slots_are_shared_out_and_none_twice(tmp_path: Path) -> None:
    for name in ["w0", "w1", "w2", "w3", "w5", "w10", "w03", "w", "wx", "dead", "w4.tmp"]:
        (tmp_path / name).mkdir()
    assert [find_adopted_slots(tmp_path, slot, 2) for slot in range(2)] == [[2, 10], [3, 5]]
    assert find_adopted_slots(tmp_path, 0, 1) == [1, 2, 3, 5, 10]
    assert find_adopted_slots(tmp_path, 0, 11) == []


def test_no_journal_directory_means_nothing_to_adopt(tmp_path: Path) -> None:
    assert find_adopted_slots(tmp_path / "missing", 0, 1) == []


def test_a_journal_path_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_text("")
    with pytest.raises(ConfigError, match=r"recovery\.journal_path = .* cannot be listed: Not a directory"):
        find_adopted_slots(path, 0, 1)


def make_proc(tmp_path: Path, cgroup: str, mountinfo: str) -> Path:
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text(mountinfo)
    return proc


def test_counter_file_of_cgroup_v2(tmp_path: Path) -> None:
    group = tmp_path / "cg" / "app.slice"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n")
    mountinfo = f"30 23 0:26 / {tmp_path}/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    proc = make_proc(tmp_path, "0::/app.slice\n", mountinfo)
    assert find_counter_file(proc) == group / "memory.events"


def test_counter_file_of_cgroup_v1_in_a_container(tmp_path: Path) -> None:
    """A container sees its own cgroup as the mount's root, while its path names the host's tree."""
    group = tmp_path / "cg" / "inner"
    group.mkdir(parents=True)
    (group / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 4\n")
    mountinfo = (
        f"30 23 0:26 / /proc rw - proc proc rw\n32 31 0:29 /docker/abc {tmp_path}/cg rw - cgroup cgroup rw,memory\n"
    )
    proc = make_proc(tmp_path, "8:pids:/docker/abc\n4:memory:/docker/abc/inner\n0::/\n", mountinfo)
    assert find_counter_file(proc) == group / "memory.oom_control"


@pytest.mark.parametrize("cgroup", ["0::/\n", "", "0::/elsewhere\n", "8:pids:/\n"])
def test_no_counter_file(tmp_path: Path, cgroup: str) -> None:
    """The root cgroup of v2 has no memory.events; then a SIGKILL is a signal and nothing more."""
    mountinfo = f"30 23 0:26 /app {tmp_path} rw - cgroup2 cgroup2 rw\n"
    proc = make_proc(tmp_path, cgroup, mountinfo)
    assert find_counter_file(proc) is None
    counter = OomKillCounter(proc)
    assert not counter.readable
    assert describe_end(0, 1, -signal.SIGKILL, counter).cause == "signal"


def test_each_increment_explains_one_death(tmp_path: Path) -> None:
    (tmp_path / "cg").mkdir()
    events = tmp_path / "cg" / "memory.events"
    events.write_text("oom_kill 5\n")
    counter = OomKillCounter(make_proc(tmp_path, "0::/\n", f"1 1 0:1 / {tmp_path}/cg rw - cgroup2 cgroup2 rw\n"))
    assert counter.readable
    assert not counter.claim()  # those before our time are not ours
    events.write_text("oom_kill 7\n")
    assert [counter.claim() for _ in range(3)] == [True, True, False]


def test_only_sigkill_can_be_out_of_memory(tmp_path: Path) -> None:
    (tmp_path / "cg").mkdir()
    events = tmp_path / "cg" / "memory.events"
    events.write_text("oom_kill 0\n")
    counter = OomKillCounter(make_proc(tmp_path, "0::/\n", f"1 1 0:1 / {tmp_path}/cg rw - cgroup2 cgroup2 rw\n"))
    events.write_text("oom_kill 1\n")
    assert describe_end(0, 1, -signal.SIGSEGV, counter).cause == "signal"
    assert describe_end(0, 1, 137, counter).cause == "exit"
    assert describe_end(0, 1, -signal.SIGKILL, counter).cause == "oom"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (CrashInfo(slot=0, pid=1, cause="signal", signal=9), "killed by signal 9 (SIGKILL)"),
        (CrashInfo(slot=0, pid=1, cause="signal", signal=45), "killed by signal 45"),
        (CrashInfo(slot=0, pid=1, cause="exit", exit_code=3), "exited with code 3"),
        (CrashInfo(slot=0, pid=1, cause="oom", signal=9), "killed by the kernel: out of memory"),
    ],
)
def test_cause_in_words(end: CrashInfo, text: str) -> None:
    assert cause_of(end) == text
