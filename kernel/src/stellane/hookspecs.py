"""Every hook of Stellane. Read this file first.

A plugin is any module or object that an entry point names; it carries `stellane_api_level`
(an int) and functions marked with `stellane.hookimpl`. Hooks are the control plane: they
run at start-up, at stop and around recovery, never once per request, because one hook call
costs about 1 µs and a bound method 0.04 µs. A hook implementation may take fewer
arguments than are listed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from stellane.abc import Backend, JournalEngine, Probe, Protocol, RecoveryPolicy, Scheduler
    from stellane.config import Config

hookspec = pluggy.HookspecMarker("stellane")
hookimpl = pluggy.HookimplMarker("stellane")

# --- Making the parts -----------------------------------------------------------------------
# Called once per process by the RuntimeFactory, on the one plugin the config names for the
# kind. `options` is an instance of the plugin's `stellane_options` msgspec.Struct, filled and
# validated from the plugin's own table in the config ([backend.<name>], [journal.<name>], …),
# or None when the plugin declares no options. Exactly one answer is expected: none at all, and
# one from an extension beside it, are errors.


@hookspec
def stellane_probe(options: Any) -> Probe:  # type: ignore[empty-body]
    """Try, for real, whether this plugin can run here: open a ring, open a database.

    When: before the create hook, and by `stellane plugins --probe`.
    Where: the plugin itself only. A plugin without it is taken to be usable.
    Returns a Probe; raising is reported as unusable with the exception as the reason.
    """


@hookspec
def stellane_create_backend(options: Any, config: Config) -> Backend:  # type: ignore[empty-body]
    """Make this worker's event loop.

    When: in each worker process, before anything runs.
    Where: kind `backend`. `config.performance` is for it. Returns a `stellane.abc.Backend` that is not running yet.
    """


@hookspec
def stellane_create_scheduler(options: Any, capacity: int) -> Scheduler:  # type: ignore[empty-body]
    """Make the queue of requests that wait to start.

    When: in each worker process. Where: kind `scheduler`.
    `capacity` is `runtime.max_tasks_per_loop`. Returns a `stellane.abc.Scheduler`.
    """


@hookspec
def stellane_create_journal(options: Any) -> JournalEngine:  # type: ignore[empty-body]
    """Make a storage engine; the kernel opens it.

    When: in each worker process with recovery on, once per journal directory, and by
    `stellane journal`. Where: kind `journal`. Returns a `stellane.abc.JournalEngine`, closed.
    """


@hookspec
def stellane_create_recovery(options: Any, config: Config) -> RecoveryPolicy:  # type: ignore[empty-body]
    """Make the policy that decides what is journaled and what is replayed.

    When: in each worker process with recovery on. Where: kind `recovery`.
    """


@hookspec
def stellane_create_protocol(options: Any) -> Protocol:  # type: ignore[empty-body]
    """Make the wire protocol of this worker's connections.

    When: in each worker process. Where: kind `protocol`.
    """


# --- The worker's life ----------------------------------------------------------------------
# Where: every loaded plugin, selected kinds and extensions alike.


@hookspec(historic=True)
def stellane_configured(config: Config) -> None:
    """The configuration is complete and valid.

    When: once for each plugin, as it is registered: after its probe, before it makes anything.
    Raising refuses the configuration; the plugin is then not used.
    """


@hookspec
def stellane_worker_starting(worker: Any) -> None:
    """A worker has its parts and is about to open resources and journals.

    When: once in each worker, on its loop's thread, before the application's start-up.
    Raising ends the worker.
    """


@hookspec
def stellane_worker_started(worker: Any) -> None:
    """A worker accepts connections.

    When: once in each worker, on its loop's thread; replays may be running already.
    """


@hookspec
def stellane_worker_stopping(worker: Any) -> None:
    """A worker has been told to stop and begins to drain.

    When: on its loop's thread, before shutdown.drain_delay_s passes; it still accepts.
    """


@hookspec
def stellane_worker_stopped(worker: Any) -> None:
    """A worker has drained; its journal is closed.

    When: last of all, on its loop's thread. The process ends after this.
    """


# --- Requests that met a crash ----------------------------------------------------------------


@hookspec
def stellane_request_recovering(entry: Any, attempt: int) -> None:
    """A request of a dead worker is about to run again.

    When: after the attempt is on record and before its handler exists. `entry` is the
    LedgerEntry, `attempt` counts from 1.
    """


@hookspec
def stellane_request_recovered(entry: Any, status: int) -> None:
    """A recovered request has its answer, and the journal says DONE.

    When: after each replay that ended well. `status` is the HTTP status of the answer.
    """


@hookspec
def stellane_request_dead_lettered(entry: Any, reason: str) -> None:
    """A request has used up its attempts, or its hook gave up; it is kept as a dead letter.

    When: once the journal says DEAD, before the application's on_dead_letter hook.
    """


# --- Adding to the program ----------------------------------------------------------------------


@hookspec
def stellane_add_cli_commands(group: click.Group) -> None:
    """Add commands to `stellane`. When: as the command line starts. Where: extensions named in
    the environment variable STELLANE_CLI_EXTENSIONS (comma separated)."""
