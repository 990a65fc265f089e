"""What has arrived on a connection before the loop has read it."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether the kernel holds bytes of the client's that nobody has read; False once the socket is closed.

    A client may have sent a request a moment before a drain, on a connection that is idle as far
    as the loop knows. One that is closed in that state is reset, and the request is lost.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return False
    try:
        unread = fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0\0\0\0")
    except OSError:
        return False
    return int.from_bytes(unread, sys.byteorder) > 0
