"""`stellane run TARGET`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from stellane import logging
from stellane.cli.banner import print_banner
from stellane.config import LoadedConfig, load
from stellane.factory import RuntimeFactory


@click.command()
@click.argument("target")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Configuration file.")
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=int, help="TCP port; 0 takes a free one.")
@click.option("--uds", help="Unix socket to listen on instead.")
@click.option("--backend", help="Event loop: an installed backend's name, or auto.")
@click.option("--workers", type=int, help="Number of workers.")
@click.option("--scheduler", help="Scheduler: an installed scheduler's name.")
@click.option("--journal", help="Journal engine; turns recovery on.")
@click.option("--journal-path", help="Directory of the journal.")
@click.option("--durability", help="none, process or power.")
@click.option("--log-level", help="debug, info, warning, error or critical.")
@click.option("--app-dir", default=".", show_default=True, help="Directory to import TARGET from.")
@click.option("--no-supervisor", is_flag=True, help="One worker in this process, for debuggers.")
def run(target: str, config_path: Path | None, app_dir: str, no_supervisor: bool, **options: Any) -> None:
    """Serve TARGET: module:object or path/to/file.py:object, a stellane.Server or any ASGI 3 app.

    Settings come from stellane.config.toml, then STELLANE_* variables, then these options.
    """
    loaded = load(config_path, overrides=_overrides(options))
    logging.configure(loaded.config.server.log_level, loaded.config.server.log_format)
    # What cannot work is said here, once, before any process is started.
    RuntimeFactory(loaded.config, loaded.origins).check()
    app_dir = str(Path(app_dir).resolve())
    if no_supervisor:
        sys.exit(_run_alone(loaded, target, app_dir))
    sys.exit(_run_supervised(loaded, target, app_dir))


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    keys = {
        "host": "server.host",
        "port": "server.port",
        "uds": "server.uds",
        "backend": "runtime.backend",
        "workers": "runtime.worker_threads",
        "scheduler": "runtime.scheduler",
        "journal": "recovery.journal_backend",
        "journal_path": "recovery.journal_path",
        "durability": "recovery.durability",
        "log_level": "server.log_level",
    }
    overrides = {keys[option]: value for option, value in options.items()}
    if options["journal"] is not None:
        overrides["recovery.enabled"] = True
    return overrides


def _run_supervised(loaded: LoadedConfig, target: str, app_dir: str) -> int:
    from stellane.supervisor import Failed, Started, serve  # noqa: PLC0415 - not needed without it

    def on_ready(started: Started) -> None:
        print_banner(started.addresses, [worker.facts for worker in started.workers], supervised=True)

    def on_failed(failed: Failed) -> None:
        click.echo(f"Error: {failed.text}", err=True)

    return serve(loaded, target, app_dir=app_dir, on_ready=on_ready, on_failed=on_failed)


def _run_alone(loaded: LoadedConfig, target: str, app_dir: str) -> int:
    """One worker in this process: no restart, and Ctrl-C reaches it directly."""
    from stellane.runtime.worker import Worker  # noqa: PLC0415 - imports user code
    from stellane.supervisor import open_listeners  # noqa: PLC0415

    failures: list[BaseException] = []
    with open_listeners(loaded.config.server) as listeners:
        worker = Worker(
            loaded,
            target,
            app_dir=app_dir,
            listeners=listeners.sockets,
            on_ready=lambda facts: print_banner(listeners.addresses, [facts], supervised=False),
            on_failed=failures.append,
        )
        code = worker.run()
    for failure in failures:
        raise failure
    return code
