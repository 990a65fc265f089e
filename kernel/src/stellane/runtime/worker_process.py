"""The process around a worker: what the supervisor starts.

python -m stellane.runtime.worker_process --spec-fd N
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import signal
import socket
import sys
import traceback
from typing import Any

import msgspec

from stellane import logging
from stellane.config import Config
from stellane.config.loader import LoadedConfig, Origin
from stellane.errors import StellaneError
from stellane.runtime.placement import pin_to_cpu
from stellane.runtime.worker import EXIT_STARTUP, Worker
from stellane.supervisor.handover import Handover
from stellane.supervisor.messages import (
    DUMP_SIGNAL,
    Failed,
    Leaving,
    Ready,
    Turning,
    WorkerSpec,
    read_spec,
    send_message,
)
from stellane.supervisor.parent_death import die_with_parent

REASON_CHARS_MAX = 1000
"""What a worker says of why it leaves: short enough for the socket to take at once."""


def main(argv: list[str] | None = None) -> int:
    """Become the worker the specification describes; return the exit code."""
    parser = argparse.ArgumentParser(prog="stellane-worker")
    parser.add_argument("--spec-fd", type=int, required=True, help="descriptor of the WorkerSpec")
    spec = read_spec(parser.parse_args(argv).spec_fd)
    die_with_parent(spec.supervisor_pid)
    # What SIGINT means is for the supervisor to say, also when somebody sends it to every process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # Written by the signal's handler itself, also when a thread never lets go of the interpreter.
    faulthandler.register(DUMP_SIGNAL, all_threads=True)
    config = msgspec.convert(spec.config, Config)
    logging.configure(config.server.log_level, config.server.log_format)
    control = socket.socket(fileno=spec.control_fd)
    pin_to_cpu(config, spec.slot)
    try:
        worker = _make(spec, config, control)
    except Exception as error:
        send_message(control, _failed(error))
        return EXIT_STARTUP
    return worker.run()


def _make(spec: WorkerSpec, config: Config, control: socket.socket) -> Worker:
    origins = {key: msgspec.convert(origin, Origin) for key, origin in spec.origins.items()}

    def on_ready(facts: dict[str, Any]) -> None:
        send_message(control, Ready(pid=os.getpid(), facts=facts))

    def on_failed(error: BaseException) -> None:
        send_message(control, _failed(error))

    def on_leaving(reason: str) -> None:
        with contextlib.suppress(OSError):
            send_message(control, Leaving(reason=_sendable(reason[:REASON_CHARS_MAX])))

    def on_turning() -> None:
        # A supervisor that has not read for so long will not kill anybody for want of one more.
        with contextlib.suppress(OSError):
            send_message(control, Turning())

    return Worker(
        LoadedConfig(config, origins),
        spec.target,
        app_dir=spec.app_dir,
        listeners=[socket.socket(fileno=fd) for fd in spec.listener_fds],
        slot=spec.slot,
        slots=spec.slots,
        handover=Handover.attach(spec.handover) if spec.handover is not None else None,
        crashes=spec.crashes,
        on_ready=on_ready,
        on_failed=on_failed,
        on_leaving=on_leaving,
        on_turning=on_turning,
        control=control,
    )


def _failed(error: BaseException) -> Failed:
    ours = isinstance(error, StellaneError)
    text = str(error) if ours else "".join(traceback.format_exception(error)).rstrip()
    return Failed(kind=type(error).__name__, text=_sendable(text), exit_code=EXIT_STARTUP)


def _sendable(text: str) -> str:
    """A lone surrogate, as in the name of a file, cannot be sent, and the supervisor would wait for a word for ever."""
    return text.encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    sys.exit(main())
