"""Signals as something a selector can wait for."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from types import FrameType

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class SignalPipe:
    """The reading end of the pipe that the interpreter writes the numbers of signals to."""

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader

    def fileno(self) -> int:
        return self._reader.fileno()

    def read(self) -> list[signal.Signals]:
        """Return the signals of HANDLED that have come since the last call, in order."""
        try:
            numbers = self._reader.recv(4096)
        except BlockingIOError:
            return []
        # Other code in this process may have handlers of its own; the pipe reports those too.
        return [signal.Signals(number) for number in numbers if number in HANDLED]


@contextlib.contextmanager
def catch_signals() -> Iterator[SignalPipe]:
    """Turn SIGTERM, SIGINT and SIGHUP into readable bytes while the block runs; main thread only.

    See signal.set_wakeup_fd. What was installed before comes back afterwards.
    """
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    earlier_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    earlier = {number: signal.signal(number, _heard) for number in HANDLED}
    try:
        yield SignalPipe(reader)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier_fd)
        reader.close()
        writer.close()


def _heard(_number: int, _frame: FrameType | None) -> None:
    """The interpreter writes to the pipe only for signals that have a handler in Python."""
