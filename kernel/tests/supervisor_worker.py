"""The worker of test_supervisor.py: answers lines, and dies when told to.

The target is `behaviour` or `behaviour:detail`: serve, stubborn (ignores SIGTERM), sour (exits
with 5 when stopped), die (exits with 7 before it is ready), mute (the first process is never
ready), fail:N (slot 0 reports a failure in its Nth process), import:MODULE.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

import msgspec

from stellane.supervisor.messages import EXIT_JOURNAL, Failed, Leaving, Ready, WorkerSpec, read_spec, send_message
from stellane.supervisor.parent_death import die_with_parent


class LineWorker:
    """Serves every connection on a thread of its own; one line in, one line of JSON out."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.behaviour, _, self.detail = spec.target.partition(":")
        self.control = socket.socket(fileno=spec.control_fd)
        self.listener = socket.socket(fileno=spec.listener_fds[0])
        self.busy = 0

    def run(self) -> None:
        if self.behaviour == "die":
            os._exit(7)
        if self.behaviour == "mute" and self.spec.start_number == 1:
            signal.pause()
        if self.behaviour == "fail" and self.spec.slot == 0 and self.spec.start_number == int(self.detail):
            send_message(self.control, Failed(kind="TargetError", text="nothing to serve", exit_code=3))
            sys.exit(3)
        if self.behaviour == "import":
            sys.path.insert(0, self.spec.app_dir)
            importlib.import_module(self.detail)
        signal.signal(signal.SIGTERM, self.on_sigterm)
        self.listener.setblocking(True)
        send_message(self.control, Ready(pid=os.getpid(), facts={"slot": self.spec.slot, "codec": "lines"}))
        threading.Thread(target=self.accept, daemon=True).start()
        while True:
            signal.pause()

    def on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=self.stop).start()

    def stop(self) -> None:
        if self.behaviour == "stubborn":
            return
        self.listener.close()
        while self.busy:
            time.sleep(0.01)
        os._exit(5 if self.behaviour == "sour" else 0)

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                self.busy += 1
                verb, _, rest = line.strip().partition(" ")
                stream.write(json.dumps(self.answer(verb, rest)) + "\n")
                stream.flush()
                self.busy -= 1

    def leave(self, how: str) -> None:
        self.listener.close()
        while self.busy or how == "never":
            time.sleep(0.01)
        os._exit(EXIT_JOURNAL)

    def answer(self, verb: str, rest: str) -> Any:
        match verb:
            case "who":
                return msgspec.to_builtins(self.spec) | {"pid": os.getpid(), "pgid": os.getpgid(0), "config": None}
            case "slow":
                time.sleep(float(rest))
                return "slept"
            case "exit":
                os._exit(int(rest))
            case "fork":
                return os.fork() or time.sleep(600)
            case "babble":
                self.control.sendall(b"not a message\n")
                return "babbled"
            case "leave":
                send_message(self.control, Leaving(reason="the disk is bad"))
                threading.Thread(target=self.leave, args=(rest,)).start()
                return self.spec.slot
            case "eat":
                hold = []
                while True:
                    hold.append(bytearray(os.urandom(1)) * 8_000_000)
        raise ValueError(verb)


spec = read_spec(int(sys.argv[-1]))
die_with_parent(spec.supervisor_pid)
LineWorker(spec).run()
