"""Datagram transports: asyncio's, with the usual case of both directions in native code."""

import os
import socket
from asyncio import selector_events

from stellane_loop import _native

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_PLAIN_SOCKET = socket.socket  # tests of programs put something else in its place, a function at times


def suits(sock) -> bool:
    """Whether the kernel does what the socket's own methods would, and its addresses are known here."""
    for name in ("recvfrom", "send", "sendto"):
        if getattr(type(sock), name, None) is not getattr(_PLAIN_SOCKET, name):
            return False
    return sock.family in _FAMILIES and sock.type == socket.SOCK_DGRAM


class DatagramTransport(selector_events._SelectorDatagramTransport):
    """For internet sockets. What is not bytes to an address in numbers, or has to wait, goes asyncio's way."""

    def __init__(self, loop, sock, *args, **kwargs):
        self._native = _native.DatagramSocket(sock.fileno(), sock.family)
        super().__init__(loop, sock, *args, **kwargs)
        self._connected = bool(self._extra["peername"])

    def _read_ready(self):
        if self._conn_lost:
            return
        self._native.receive(self._loop, self)

    def sendto(self, data, addr=None):
        """Send `data`, or queue it; never blocks. OSError of a send goes to error_received of the protocol."""
        outcome = 0
        usual = type(data) is bytes and data and (addr is None) is self._connected
        if usual and not self._buffer and not self._conn_lost:
            outcome = self._native.send(data, addr)
        if outcome == 0:
            super().sendto(data, addr)
        elif outcome < 0:
            self._protocol.error_received(OSError(-outcome, os.strerror(-outcome)))
