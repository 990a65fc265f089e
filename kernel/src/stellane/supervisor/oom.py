"""Whether a SIGKILL was the kernel's out-of-memory killer.

The signal itself does not say. The memory cgroup counts its victims, and workers live in the
supervisor's cgroup, so a counter that has grown when a worker is found dead by SIGKILL tells.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

_COUNTER = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


class OomKillCounter:
    """The `oom_kill` counter of this process's memory cgroup, v2 or v1.

    Files: memory.events (Documentation/admin-guide/cgroup-v2.rst) or memory.oom_control
    (cgroup-v1/memory.rst). Where neither can be read, as in the root cgroup of v2, no death is
    ever called out-of-memory. A kill by hand that follows unseen on the out-of-memory death of
    some other program in the same cgroup is taken for one; nothing in the kernel tells them apart.
    """

    def __init__(self, proc_self: Path = Path("/proc/self")) -> None:
        self._file = find_counter_file(proc_self)
        self._explained = self._read() or 0

    @property
    def readable(self) -> bool:
        return self._read() is not None

    def claim(self) -> bool:
        """Account for one process that died by SIGKILL: True if the counter has a victim for it.

        Each increment explains one death, so two workers killed at once are both recognised.
        """
        count = self._read()
        if count is None or count <= self._explained:
            return False
        self._explained += 1
        return True

    def _read(self) -> int | None:
        if self._file is None:
            return None
        try:
            found = _COUNTER.search(self._file.read_text("ascii"))
        except OSError:
            return None
        return int(found[1]) if found else None


def find_counter_file(proc_self: Path) -> Path | None:
    """Return the file that holds `oom_kill` for the process behind `proc_self`, or None.

    Reads cgroup and mountinfo as in cgroups(7) and proc_pid_mountinfo(5): a cgroup's directory is
    its path below the mount's root, joined to the mount point. In a container both differ from "/".
    """
    try:
        memberships = (proc_self / "cgroup").read_text("utf-8").splitlines()
        mounts = (proc_self / "mountinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if not version_1 and controllers:
            continue
        name = "memory.oom_control" if version_1 else "memory.events"
        for mount in mounts:
            directory = _directory(mount, PurePosixPath(path), version_1=version_1)
            if directory is not None and (directory / name).is_file():
                return directory / name
    return None


def _directory(mount: str, path: PurePosixPath, *, version_1: bool) -> Path | None:
    before, _, after = mount.partition(" - ")
    root, mount_point = before.split(" ")[3:5]
    kind, _, options = after.split(" ", 2)
    if version_1 and not (kind == "cgroup" and "memory" in options.split(",")):
        return None
    if not version_1 and kind != "cgroup2":
        return None
    if not path.is_relative_to(root):
        return None
    return Path(mount_point) / path.relative_to(root)
