"""The other process of the journal suite: one that dies, holds a lock or meets a failing disk.

    python -m stellane.testing.journal_child FILE CLASS ACTION DIRECTORY

FILE and CLASS name the author's subclass of JournalEngineConformance; its `make_engine` makes
the engine here too. What happened is printed as one JSON object per line.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from stellane.abc.journal import JournalEngine
from stellane.testing.journal_records import make_records

RECORDS = 100
"""Records that `append-and-die` appends one by one, and that `append-forever` keeps."""


def load_class(file: str, name: str) -> Any:
    """The class `name` from the Python file `file`."""
    spec = importlib.util.spec_from_file_location("stellane_journal_suite_author", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


def say(**facts: Any) -> None:
    """Print one line at once."""
    print(msgspec.json.encode(facts).decode(), flush=True)


def outcome(call: Any, *arguments: Any) -> str:
    """The class name of what `call` raised, or "returned"."""
    try:
        call(*arguments)
    except Exception as error:
        return type(error).__name__
    return "returned"


def append_and_die(engine: JournalEngine, path: Path) -> None:
    """Append without sync, say so, and be killed."""
    engine.open(path)
    for seq, record in enumerate(make_records(1, RECORDS), start=1):
        engine.append([record], seq)
        say(appended=seq)
    os.kill(os.getpid(), signal.SIGKILL)


def hold(engine: JournalEngine, path: Path) -> None:
    """Open for writing and wait for the end of standard input."""
    engine.open(path)
    say(open=True)
    sys.stdin.read()


def hold_and_fork(engine: JournalEngine, path: Path) -> None:
    """Open for writing; let a forked child end, and fork another that lives to the end of standard input."""
    engine.open(path)
    short_lived = os.fork()
    if not short_lived:
        os._exit(0)
    _, status = os.waitpid(short_lived, 0)
    if not os.fork():
        # Not from the parent: what is done in a forked child has been done when this is read.
        say(ended=status, lives=True)
    sys.stdin.read()
    os._exit(0)


def append_forever(engine: JournalEngine, path: Path) -> None:
    """Append and release without end, keeping at least RECORDS records."""
    engine.open(path)
    seq = 1
    while True:
        batch = make_records(seq, 10, 800)
        engine.append(batch, seq)
        seq += len(batch)
        if seq % 500 == 1:
            engine.release(seq - RECORDS - 1)
        if seq == 501:
            say(appended=seq)


def try_open(engine: JournalEngine, path: Path) -> None:
    """Try to open for writing."""
    say(open=outcome(engine.open, path))


def fail_write(engine: JournalEngine, path: Path) -> None:
    """Append, meet a write error (EFBIG), then find the disk well again."""
    engine.open(path)
    engine.append(make_records(1, 10), 1)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    failed = outcome(engine.append, make_records(11, 1), 11)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    say(failed=failed, later=outcome(engine.append, make_records(11, 1), 11), sync=outcome(engine.sync))
    os._exit(0)


def fail_sync(engine: JournalEngine, path: Path) -> None:
    """Sync, meet a failing sync (EIO, by the preloaded shim), then find the disk well again."""
    armed, calls = Path(os.environ["STELLANE_FAULT_ARMED"]), Path(os.environ["STELLANE_FAULT_CALLS"])
    engine.open(path)
    engine.append(make_records(1, 10), 1)
    first = outcome(engine.sync)
    synced = calls.stat().st_size if calls.exists() else 0
    engine.append(make_records(11, 1), 11)
    armed.touch()
    failed = outcome(engine.sync)
    armed.unlink()
    before = calls.stat().st_size
    later = outcome(engine.sync)
    say(
        first=first,
        synced=synced,
        failed=failed,
        later=later,
        append=outcome(engine.append, make_records(12, 1), 12),
        retried=calls.stat().st_size - before,
    )
    os._exit(0)


ACTIONS = {
    "append-and-die": append_and_die,
    "hold": hold,
    "hold-and-fork": hold_and_fork,
    "append-forever": append_forever,
    "try-open": try_open,
    "fail-write": fail_write,
    "fail-sync": fail_sync,
}


def main(file: str, name: str, action: str, directory: str) -> None:
    """Run one action."""
    ACTIONS[action](load_class(file, name)().make_engine(), Path(directory))


if __name__ == "__main__":
    main(*sys.argv[1:])
