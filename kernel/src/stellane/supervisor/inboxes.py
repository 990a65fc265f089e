"""Where a connection waits between the worker that accepted it and the one that serves it.

A slot's inbox is a pair of connected AF_UNIX sockets: an entrance and an exit. A connection in
it is one byte with the connection's descriptor (SCM_RIGHTS; unix(7)). The supervisor made them
and holds both ends, so what is in the inbox of a dead worker is not lost: its successor takes it.

Every worker holds both ends of every inbox. It puts into the entrances, and asks the exits how
much waits in them: the kernel's own count, which is right whoever dies at what moment.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import sys
import termios
from collections.abc import Sequence

InboxDescriptors = tuple[int, int]
"""The numbers of the entrance and the exit."""


class Inboxes:
    """One inbox for each slot. No call blocks."""

    def __init__(self, pairs: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        self._entrances = [entrance for entrance, _ in pairs]
        self._exits = [exit_ for _, exit_ in pairs]
        for each in (*self._entrances, *self._exits):
            each.setblocking(False)

    @classmethod
    def create(cls, slots: int) -> Inboxes:
        """Empty inboxes. Raises OSError when there are too few descriptors for them, two a slot."""
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            for _ in range(slots):
                # A stream, because one of packets holds no more than net.unix.max_dgram_qlen, and that may be 10.
                # Each connection is one byte, and a byte with a descriptor is never read together with the next.
                pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM))
        except OSError:
            cls(pairs).close()
            raise
        return cls(pairs)

    @classmethod
    def attach(cls, descriptors: Sequence[InboxDescriptors]) -> Inboxes:
        """The inboxes that another process has created and this one has inherited."""
        return cls([(socket.socket(fileno=entrance), socket.socket(fileno=exit_)) for entrance, exit_ in descriptors])

    def descriptors(self) -> list[InboxDescriptors]:
        """By slot; for `attach`."""
        return [(a.fileno(), b.fileno()) for a, b in zip(self._entrances, self._exits, strict=True)]

    def put(self, slot: int, connection: socket.socket) -> bool:
        """Hand a copy of the connection's descriptor over; False when the inbox takes no more.

        That is when it is full, when too many descriptors of this user are on their way
        (ETOOMANYREFS), or when the kernel has no memory for it.
        """
        try:
            socket.send_fds(self._entrances[slot], [b"\0"], [connection.fileno()])
        except OSError:
            return False
        return True

    def take(self, slot: int) -> socket.socket | None:
        """The connection that has waited longest in the slot's inbox, or None when it is empty.

        Raises OSError (EMFILE, ENFILE) when this process can have no further descriptor; the
        connection stays in the inbox then.
        """
        if not self.waiting(slot):
            return None
        exit_ = self._exits[slot]
        # With no number free the kernel would give the byte without its descriptor, and the connection would be cut.
        os.close(os.dup(exit_.fileno()))
        try:
            # Not socket.recv_fds: it passes no flags on before Python 3.14.
            _, ancillary, _, _ = exit_.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                return socket.socket(fileno=array.array("i", data)[0])
        return None

    def waiting(self, slot: int) -> int:
        """How many connections are in the slot's inbox."""
        count = fcntl.ioctl(self._exits[slot].fileno(), termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(count, sys.byteorder)

    def exit_of(self, slot: int) -> socket.socket:
        """Readable while something is in the slot's inbox."""
        return self._exits[slot]

    def close(self) -> None:
        """Close this process's ends."""
        for each in (*self._entrances, *self._exits):
            each.close()
