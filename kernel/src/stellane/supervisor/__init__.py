"""Processes, listeners, restarts: what `stellane run` is before any code of the user's runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from stellane.config import LoadedConfig
from stellane.supervisor.handover import open_handover
from stellane.supervisor.listeners import Listeners, open_listeners
from stellane.supervisor.messages import Failed, Ready
from stellane.supervisor.supervisor import Started, Supervisor

__all__ = ["Failed", "Listeners", "Ready", "Started", "Supervisor", "open_listeners", "serve"]


def serve(
    loaded: LoadedConfig,
    target: str,
    *,
    app_dir: str,
    on_ready: Callable[[Started], None],
    on_failed: Callable[[Failed], None],
) -> int:
    """Listen where [server] says, as runtime.dispatch wants it, and run `target` until SIGTERM or SIGINT.

    Blocks; main thread only. Returns the exit code (see Supervisor.run). Raises ConfigError when
    it cannot listen, or has too few descriptors.
    """
    runtime = loaded.config.runtime
    own_listeners = runtime.worker_threads if runtime.dispatch == "reuseport" else 1
    with contextlib.ExitStack() as stack:
        listeners = stack.enter_context(open_listeners(loaded.config.server, own_listeners))
        handover = open_handover(runtime)
        if handover is not None:
            stack.enter_context(handover)
        return Supervisor(
            loaded,
            target,
            listeners,
            app_dir=app_dir,
            handover=handover,
            on_ready=on_ready,
            on_failed=on_failed,
        ).run()
