"""A server's processes as /proc shows them: CPU time, placement, libraries, listening socket (proc(5))."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuReading:
    """CPU seconds used so far, user and system, by each process of a tree (all its threads)."""

    seconds: dict[int, float]

    def since(self, earlier: CpuReading) -> float:
        """CPU seconds used since `earlier`. Raises RuntimeError when a process came or went between.

        The time of a process that ended would be missing and the figure too good.
        """
        if self.seconds.keys() != earlier.seconds.keys():
            raise RuntimeError(
                f"the server's processes changed while it was measured: "
                f"{sorted(earlier.seconds)} before, {sorted(self.seconds)} after"
            )
        return sum(self.seconds.values()) - sum(earlier.seconds.values())


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat from the third on; the second may hold spaces and parentheses."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def process_tree(root: int) -> list[int]:
    """`root` and all its living descendants. Raises ProcessLookupError when `root` is gone."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(_stat_fields(int(entry.name))[1]), []).append(int(entry.name))
    if not (PROC / str(root)).exists():
        raise ProcessLookupError(f"process {root} is gone")
    tree = [root]
    for pid in tree:
        tree.extend(children.get(pid, ()))
    return tree


def living_in_group(group: int) -> list[int]:
    """The processes of the process group that have not ended; a zombie has."""
    members = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, pgrp = _stat_fields(int(entry.name))[:3]
                if int(pgrp) == group and state not in {"Z", "X"}:
                    members.append(int(entry.name))
    return members


def read_cpu(root: int, *, reaped: bool = False) -> CpuReading:
    """utime + stime of every process in the tree of `root`; with `reaped`, of children they waited for too."""
    seconds = {}
    for pid in process_tree(root):
        times = _stat_fields(pid)[11:15]  # utime, stime, cutime, cstime
        seconds[pid] = sum(int(ticks) for ticks in (times if reaped else times[:2])) * TICK_S
    return CpuReading(seconds)


def read_rss_bytes(root: int) -> int:
    """Resident memory of the tree of `root`; pages that its processes share count once for each."""
    total = 0
    for pid in process_tree(root):
        total += int((PROC / str(pid) / "statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGESIZE")


def kernel_pollers(root: int) -> set[str]:
    """Which of the kernel's pollers the tree holds: "epoll", "io_uring", both or neither.

    A ring may be known by its mapping only, once its descriptor is registered and closed.
    """
    marks = {"epoll": "anon_inode:[eventpoll]", "io_uring": "anon_inode:[io_uring]"}
    names = []
    for pid in process_tree(root):
        names.append((PROC / str(pid) / "maps").read_text())
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                names.append(str(descriptor.readlink()))
    return {poller for poller, mark in marks.items() if any(mark in name for name in names)}


def read_written_bytes(root: int) -> int:
    """Bytes the tree of `root` has passed to write calls, files and write()-fed sockets alike (proc_pid_io(5))."""
    total = 0
    for pid in process_tree(root):
        for line in (PROC / str(pid) / "io").read_text().splitlines():
            name, _, value = line.partition(": ")
            if name == "wchar":
                total += int(value)
    return total


def busy_seconds(cpu: int) -> float:
    """Seconds the processor `cpu` has not been idle since boot, whoever used it; stolen time counts."""
    for line in (PROC / "stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(v) for v in values[:8])
            return (user + nice + system + irq + softirq + steal) * TICK_S
    raise LookupError(f"/proc/stat has no cpu{cpu}")


def assert_pinned(root: int, cpu: int) -> None:
    """Check that every thread of the tree may run on `cpu` only. Raises RuntimeError."""
    for pid in process_tree(root):
        for thread in (PROC / str(pid) / "task").iterdir():
            allowed = os.sched_getaffinity(int(thread.name))
            if allowed != {cpu}:
                raise RuntimeError(
                    f"thread {thread.name} of process {pid} may run on CPUs {allowed}, not only on {cpu}"
                )


def owns_listener(root: int, port: int, *, datagrams: bool = False) -> bool:
    """Whether a process of the tree has the socket of what comes to TCP or UDP `port` (IPv4, proc_net(5))."""
    listening = set()
    table, open_state = ("udp", "07") if datagrams else ("tcp", "0A")
    for line in (PROC / "net" / table).read_text().splitlines()[1:]:
        fields = line.split()
        local, state, inode = fields[1], fields[3], fields[9]
        if state == open_state and int(local.rpartition(":")[2], 16) == port:
            listening.add(f"socket:[{inode}]")
    for pid in process_tree(root):
        for descriptor in (PROC / str(pid) / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(descriptor.readlink()) in listening:
                    return True
    return False


def mapped_files(root: int) -> set[str]:
    """Files mapped by any process of the tree: tells which shared libraries are really loaded."""
    files = set()
    for pid in process_tree(root):
        for line in (PROC / str(pid) / "maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/"):
                files.add(fields[5])
    return files


@contextlib.contextmanager
def running_on(cpu: int) -> Iterator[None]:
    """Pin this thread to `cpu` for the block, so that a process started in it inherits the mask."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
