"""Processes, listeners, restarts: what `stellane run` is before any code of the user's runs."""

from __future__ import annotations

from collections.abc import Callable

from stellane.config import LoadedConfig
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
    """Listen where [server] says and run `target` under a supervisor until SIGTERM or SIGINT.

    Blocks; main thread only. Returns the exit code (see Supervisor.run). Raises ConfigError when
    it cannot listen.
    """
    with open_listeners(loaded.config.server) as listeners:
        return Supervisor(loaded, target, listeners, app_dir=app_dir, on_ready=on_ready, on_failed=on_failed).run()
