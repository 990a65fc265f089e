"""What the supervisor and a worker tell each other.

Down: one WorkerSpec, the whole content of a memory file whose descriptor number the worker
gets as `--spec-fd`. It is not in the arguments or the environment because options of plugins
may hold passwords, and both of those are readable in /proc.

Up: JSON lines over the worker's end of an AF_UNIX stream socket pair, each a Ready, a Failed,
a Leaving or a Turning. Nothing is sent down the socket. Its closing is the message: the supervisor is gone,
and the worker must exit.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import Any

import msgspec

from stellane.recovery.context import CrashInfo
from stellane.supervisor.handover import HandoverSpec

LINE_BYTES_MAX = 1_048_576
"""Longest line a worker may send; a longer one is a broken worker, not a message."""

EXIT_JOURNAL = 74
"""Exit code of a worker that left because its journal failed; EX_IOERR of sysexits.h."""

DUMP_SIGNAL = signal.SIGRTMIN + 7
"""Has a worker write to standard error where each of its threads stands; one that no application is likely to use."""
SIGNS_MIN = 4
"""How often a worker speaks within runtime.hang_timeout_s, at least."""
SIGN_S_MAX = 5.0
"""The longest it is silent, seconds."""


def sign_interval_s(hang_timeout_s: float) -> float:
    """How often a worker says that its loop turns, seconds; 0 when nobody wants to know."""
    return min(hang_timeout_s / SIGNS_MIN, SIGN_S_MAX)


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a worker process needs to know to become one.

    The descriptors are inherited under the same numbers.
    """

    target: str
    """`module:object`, as given to `stellane run`."""
    app_dir: str
    """Directory to import the target from; the worker puts it first on sys.path."""
    config: dict[str, Any]
    """The complete stellane.config.Config as msgspec.to_builtins gives it."""
    origins: dict[str, Any]
    """Where each configured value came from, for messages."""
    slot: int
    """0 … slots - 1; names the worker's journal directory and its CPU."""
    slots: int
    listener_fds: list[int]
    """Listening sockets, bound and non-blocking; family and type are the kernel's to tell."""
    control_fd: int
    """The worker's end of the socket pair described above."""
    supervisor_pid: int
    crashes: list[CrashInfo]
    """How the earlier processes of this slot ended, oldest first; empty on a first start."""
    start_number: int
    """1 for the slot's first process, then one more for each replacement."""
    handover: HandoverSpec | None = None
    """What it shares its connections with; None when each worker serves what it accepts."""

    def inherited(self) -> tuple[int, ...]:
        """The descriptors the worker has besides its control socket and this specification."""
        return (*self.listener_fds, *(self.handover.descriptors() if self.handover is not None else ()))


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready", tag_field="message"):
    """The worker accepts connections."""

    pid: int
    facts: dict[str, Any]
    """What the start-up banner may say: backend and why, codec, journal, …"""


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", tag_field="message"):
    """The worker could not start, and starting it again would not help. It exits after this."""

    kind: str
    """A word for the class of failure: the exception's name, for instance."""
    text: str
    """For a person: what is wrong, where, and what to do."""
    exit_code: int


class Leaving(msgspec.Struct, frozen=True, kw_only=True, tag="leaving", tag_field="message"):
    """The worker accepts no more connections, finishes what is in hand and exits; another may do better."""

    reason: str
    """For a person."""


class Turning(msgspec.Struct, frozen=True, kw_only=True, tag="turning", tag_field="message"):
    """The worker's loop turns. Sent every `sign_interval_s` from Ready on."""


WorkerMessage = Ready | Failed | Leaving | Turning

_encoder = msgspec.json.Encoder()
_spec_decoder = msgspec.json.Decoder(WorkerSpec)
_message_decoder: msgspec.json.Decoder[WorkerMessage] = msgspec.json.Decoder(WorkerMessage)


def write_spec(spec: WorkerSpec, fd: int) -> None:
    """Put `spec` into the empty memory file `fd` and rewind it for the reader."""
    content = memoryview(_encoder.encode(spec))
    while content:
        content = content[os.write(fd, content) :]
    os.lseek(fd, 0, os.SEEK_SET)


def read_spec(fd: int) -> WorkerSpec:
    """Read the specification this process was started with, and close `fd`.

    The descriptors it names become close-on-exec again, so that programs started by the
    application do not hold the listener open. Raises msgspec.DecodeError on any other content.
    """
    with os.fdopen(fd, "rb") as file:
        spec = _spec_decoder.decode(file.read())
    for inherited in (*spec.inherited(), spec.control_fd):
        os.set_inheritable(inherited, False)
    return spec


def send_message(control: socket.socket, message: WorkerMessage) -> None:
    """Send one message from a worker; blocks until the kernel has it.

    Raises OSError (EPIPE, ECONNRESET) when the supervisor is gone. For the blocking call
    `control` must not be non-blocking. Once it is, only what is short is sent, which the kernel takes at once.
    """
    control.sendall(_encoder.encode(message) + b"\n")


class MessageReader:
    """Cuts what arrives from one worker into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[WorkerMessage]:
        """Return the messages `data` completes.

        Raises ValueError (msgspec.DecodeError is one, UnicodeDecodeError another) for a line that
        is no message, and for one longer than LINE_BYTES_MAX.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            raise ValueError(f"a line of more than {LINE_BYTES_MAX} bytes")
        try:
            return [_message_decoder.decode(line) for line in lines]
        except RecursionError as error:
            raise ValueError("a line nested too deep") from error
