"""Which process listens on a TCP port: the answer to "address already in use"."""

from __future__ import annotations

from pathlib import Path

_LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h
_STATE, _LOCAL_ADDRESS, _INODE = 3, 1, 9  # columns, Documentation/networking/proc_net_tcp.rst


def find_port_owner(port: int, proc: Path = Path("/proc")) -> str | None:
    """Name a process that listens on `port`, as `process 1234 (python -m http.server)`.

    None when there is none or it is not ours to see: another user's descriptors are readable
    by root only, and another network namespace's not at all.
    """
    inodes = _listening_inodes(port, proc)
    if not inodes:
        return None
    links = {f"socket:[{inode}]" for inode in inodes}
    for process in proc.iterdir():
        if process.name.isdigit() and _holds(process, links):
            return f"process {process.name} ({_command(process)})"
    return None


def _listening_inodes(port: int, proc: Path) -> set[str]:
    inodes = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (proc / table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            columns = line.split()
            if columns[_STATE] == _LISTEN and int(columns[_LOCAL_ADDRESS].rpartition(":")[2], 16) == port:
                inodes.add(columns[_INODE])
    return inodes


def _holds(process: Path, links: set[str]) -> bool:
    try:
        return any(str(descriptor.readlink()) in links for descriptor in (process / "fd").iterdir())
    except OSError:  # not ours to read, or gone meanwhile
        return False


def _command(process: Path) -> str:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "command unknown"
    return b" ".join(arguments).decode("utf-8", "backslashreplace").strip() or "command unknown"
