"""The listening sockets: bound once, before any worker, and kept until the end.

Because the supervisor holds them, a connection that arrives while every worker is dead waits
in the kernel's queue (up to `server.backlog`) for the next worker instead of being refused.
That holds for listeners that are one worker's own (SO_REUSEPORT; socket(7)), too: what waits in
the queue of one whose worker has died is neither lost nor given to another.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from stellane.config import ServerConfig
from stellane.errors import ConfigError
from stellane.supervisor.port_owner import find_port_owner

UDS_MODE = 0o660
"""Permissions of a unix socket: its owner and group, a reverse proxy's group for instance."""
UDS_PATH_BYTES_MAX = 107
"""sun_path holds 108 bytes with the closing zero; unix(7)."""
PRIVILEGED_PORT_MAX = 1023
"""Ports up to here need CAP_NET_BIND_SERVICE; ip(7)."""

_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class Listeners:
    """Open listening sockets and what to call them. A context manager that closes them.

    The sockets are non-blocking and close-on-exec; handing them to a worker is the spawner's
    deliberate act.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
        addresses: tuple[str, ...],
        unix_path: Path | None = None,
        *,
        further: Sequence[list[socket.socket]] = (),
    ) -> None:
        """`further` are the sockets of the slots from 1 on, when each slot has its own."""
        self.sockets = sockets
        """One for each address: every slot's, or those of slot 0."""
        self._by_slot = [sockets, *further]
        self.addresses = addresses
        """`http://127.0.0.1:8000` or `unix:/run/app.sock`, with the port the kernel chose for 0."""
        self._unix_path = unix_path
        self._unix_identity = _identity(unix_path) if unix_path is not None else None

    def filenos(self, slot: int = 0) -> list[int]:
        """Descriptor numbers of the slot's sockets, in the order of `addresses`."""
        sockets = self._by_slot[slot] if len(self._by_slot) > 1 else self.sockets
        return [sock.fileno() for sock in sockets]

    def close(self) -> None:
        """Close the sockets and remove the unix socket's file, if it is still this one."""
        for sock in itertools.chain(*self._by_slot):
            sock.close()
        if self._unix_path is not None and _identity(self._unix_path) == self._unix_identity:
            self._unix_path.unlink(missing_ok=True)
        self._unix_path = None

    def __enter__(self) -> Listeners:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_listeners(server: ServerConfig, own_listeners: int = 1) -> Listeners:
    """Bind and listen where [server] says: on `uds` if it is set, else on every address of `host`.

    SO_REUSEADDR is set, so connections of a previous run in TIME_WAIT do not matter. Host "::"
    takes IPv4 as well. With port 0 the kernel chooses a port, the same for all addresses.
    With `own_listeners` of 2 and more each of so many slots gets sockets of its own, among which
    the kernel distributes the connections by a hash of their addresses; never for a unix socket.
    Raises ConfigError that names the address, what is in the way and what to do.
    """
    if server.uds:
        return _listen_unix(server.uds, server.backlog)
    return _listen_tcp(server.host, server.port, server.backlog, own_listeners)


def _listen_tcp(host: str, port: int, backlog: int, own_listeners: int) -> Listeners:
    sockets: list[socket.socket] = []
    further: list[list[socket.socket]] = []
    absent: OSError | None = None
    try:
        for family, address in _resolve(host, port):
            # port 0 lets the kernel choose once; the further addresses follow the first
            chosen = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sockets.append(_bind_tcp(family, (address[0], chosen, *address[2:]), backlog, shares=own_listeners > 1))
            except OSError as error:
                # a name such as localhost may have addresses this machine does not
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise _tcp_error(error, host, chosen) from error
                absent = error
        if not sockets and absent is not None:
            raise _tcp_error(absent, host, port) from absent
        for _ in range(1, own_listeners):
            further.append([])
            for first in sockets:
                try:
                    further[-1].append(_bind_tcp(first.family, first.getsockname(), backlog, joins=True))
                except OSError as error:
                    raise _tcp_error(error, host, first.getsockname()[1]) from error
    except BaseException:
        for sock in itertools.chain(sockets, *further):
            sock.close()
        raise
    return Listeners(sockets, tuple(_url(sock) for sock in sockets), further=further)


def _resolve(host: str, port: int) -> list[_Address]:
    if not host:
        raise ConfigError(
            'server.host is empty: use "127.0.0.1" for this machine only, "0.0.0.0" for every IPv4 address, '
            '"::" for every IPv6 and IPv4 address'
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f'server.host = "{host}" cannot be resolved ({reason}): give an IP address of this machine, '
            'such as "127.0.0.1" or "0.0.0.0", or a name that resolves to one'
        ) from error
    unique: dict[_Address, None] = {(family, address): None for family, _, _, _, address in found}
    return list(unique)


def _bind_tcp(
    family: int, address: tuple[Any, ...], backlog: int, *, shares: bool = False, joins: bool = False
) -> socket.socket:
    """`shares`: others may join it afterwards. `joins`: it is one of those."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Said outright, because the default is a sysctl (net.ipv6.bindv6only).
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address[0] == "::" else 1)
        if joins:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        if shares:
            # Only once it is bound: with the option set before, it would join another server on this port
            # that has it too, and neither would be told that the address is in use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if sock.family == socket.AF_INET6 else f"http://{host}:{port}"


def _tcp_error(error: OSError, host: str, port: int) -> ConfigError:
    where = f"cannot listen on {host} port {port}"
    if error.errno == errno.EADDRINUSE:
        owner = find_port_owner(port)
        culprit = f"by {owner}" if owner else f"by another program (find it with: ss -ltnp 'sport = :{port}')"
        return ConfigError(f"{where}: the address is already in use {culprit}. Stop it, or choose another server.port")
    if error.errno in (errno.EACCES, errno.EPERM) and port <= PRIVILEGED_PORT_MAX:
        return ConfigError(
            f"{where}: permission denied. Ports up to {PRIVILEGED_PORT_MAX} need the capability "
            "CAP_NET_BIND_SERVICE; give it to this program or choose a higher server.port"
        )
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return ConfigError(
            f"{where}: this machine has no such address. server.host must be one of its own "
            '(`ip addr` lists them), or "0.0.0.0" for all'
        )
    return ConfigError(f"{where}: {error.strerror}")


def _listen_unix(uds: str, backlog: int) -> Listeners:
    path = Path(uds).absolute()
    if len(os.fsencode(path)) > UDS_PATH_BYTES_MAX:
        raise ConfigError(
            f'server.uds = "{uds}" is too long: a unix socket\'s path may have {UDS_PATH_BYTES_MAX} bytes, '
            f"{path} has {len(os.fsencode(path))}"
        )
    _remove_stale_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # The mode is set by the umask so that the socket is never open to others, not for a moment.
    umask = os.umask(0o777 & ~UDS_MODE)
    try:
        sock.setblocking(False)
        sock.bind(str(path))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise ConfigError(f'cannot listen on server.uds = "{uds}": {error.strerror}') from error
    finally:
        os.umask(umask)
    return Listeners([sock], (f"unix:{path}",), path)


def _remove_stale_socket(path: Path) -> None:
    """Unlink what a killed server left at `path`; raise ConfigError for anything else there."""
    try:
        mode = path.stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f'cannot listen on server.uds = "{path}": {error.strerror}') from error
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f'server.uds = "{path}" exists and is not a socket: remove it or choose another path')
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Not blocking: a live server whose queue is full answers EAGAIN, and it is still alive.
        probe.setblocking(False)
        refusal = probe.connect_ex(str(path))
    if refusal == errno.ENOENT:
        return
    if refusal != errno.ECONNREFUSED:
        reason = "another server accepts connections on it" if refusal in (0, errno.EAGAIN) else os.strerror(refusal)
        raise ConfigError(f'cannot listen on server.uds = "{path}": {reason}. Stop that server or choose another path')
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f'cannot remove the stale socket server.uds = "{path}": {error.strerror}') from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return status.st_dev, status.st_ino
