"""The process around the supervisor of test_supervisor.py.

Arguments: the Config as JSON, target, app_dir, the worker's command. What it sees goes to
standard output as JSON lines of `said` and `value`, the log to standard error.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from stellane import logging
from stellane.config import Config, LoadedConfig
from stellane.supervisor import Supervisor, open_listeners, supervisor
from stellane.supervisor.messages import WorkerSpec
from stellane.supervisor.processes import WorkerProcess

spawn = supervisor.spawn_worker


def say(word: str, value: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"said": word, "value": value}), flush=True)


def recorded_spawn(spec: WorkerSpec, command: Sequence[str]) -> WorkerProcess:
    """The real thing, after a look at whether any earlier process of the slot is still in /proc."""
    unreaped = [crash.pid for crash in spec.crashes if Path(f"/proc/{crash.pid}").exists()]
    say("spawn", {"slot": spec.slot, "unreaped": unreaped})
    return spawn(spec, command)


def main(config_json: str, target: str, app_dir: str, *command: str) -> int:
    config = msgspec.json.decode(config_json, type=Config)
    logging.configure("info", "json")
    supervisor.spawn_worker = recorded_spawn
    with open_listeners(config.server) as listeners:
        say("port", listeners.sockets[0].getsockname()[1])
        return Supervisor(
            LoadedConfig(config, {}),
            target,
            listeners,
            app_dir=app_dir,
            worker_command=command,
            on_ready=lambda started: say("ready", msgspec.to_builtins(started)),
            on_failed=lambda failed: say("failed", failed.text),
        ).run()


sys.exit(main(*sys.argv[1:]))
