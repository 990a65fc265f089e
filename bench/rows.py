"""The rows of the table: which servers run, with which options, and what must be true of them."""

from __future__ import annotations

import fnmatch
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.build import BUILD
from bench.load import LoadResult, Request

APPS = Path(__file__).resolve().parent / "apps"
STELLANE_BACKENDS = ("asyncio", "epoll", "io_uring", "libuv")
JOURNAL_BACKEND = "epoll"
JOURNAL_BODY_BYTES = 512

BARE = "bare-c"
UVICORN = "uvicorn"
JOURNAL_OFF = "journal-plain"


@dataclass(frozen=True, slots=True)
class Row:
    """One server of the table.

    `command(port, directory)` is what to run; `directory` is an empty one, private to that run.
    `programs` are the C programs to compile first, `distributions` what must be installed.
    `says` are regular expressions its output must match and `maps` parts of the names of shared
    libraries it must have loaded: facts that keep a silent fallback out of the table.
    `written_bytes_min` and `written_bytes_max` bound what one request makes it write.
    `polls` is the kernel's poller it must hold, "epoll" or "io_uring", and `polls_not` one it must not.
    `ask(port)` gets one answer and checks it, `load(port, connections=, seconds=, cpu=, at_start=,
    at_end=)` measures one window; without them `request` is sent over HTTP. `reaps`: the time of
    children that the server starts and waits for belongs to it. `datagrams`: it is asked over UDP.
    """

    name: str
    title: str
    command: Callable[[int, Path], list[str]]
    programs: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    says: tuple[str, ...] = ()
    maps: tuple[str, ...] = ()
    request: Request = field(default_factory=Request)
    written_bytes_min: int = 0
    written_bytes_max: int | None = None
    polls: str = ""
    polls_not: str = ""
    ask: Callable[[int], str] | None = None
    load: Callable[..., LoadResult] | None = None
    reaps: bool = False
    datagrams: bool = False


def _program(name: str) -> str:
    """A console script of this interpreter's environment."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else (shutil.which(name) or name)


def _bare_row() -> Row:
    def command(port: int, _directory: Path) -> list[str]:
        return [str(BUILD / "epoll_server"), str(port)]

    return Row(BARE, "bare C, epoll", command, programs=("epoll_server",), says=(r"listening on 127\.0\.0\.1",))


def _stellane_command(target: str, backend: str, port: int) -> list[str]:
    return [
        *(_program("stellane"), "run", f"{APPS / target}"),
        *("--backend", backend, "--workers", "1", "--no-supervisor"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _stellane_maps(backend: str) -> tuple[str, ...]:
    ours = ("/zttp/", "/usual_request.")
    return (*ours, "/uvloop/") if backend == "libuv" else ours


def _stellane_row(kind: str, backend: str) -> Row:
    target = "native_app.py:server" if kind == "native" else "asgi_app.py:app"
    return Row(
        f"stellane-{kind}-{backend}",
        f"stellane {kind}, {backend}",
        lambda port, _directory: _stellane_command(target, backend, port),
        distributions=("stellane-kernel", "stellane-protocol-http"),
        says=(rf"(?m)^backend +{backend}\b", r"(?m)^codec +zttp\b"),
        maps=_stellane_maps(backend),
    )


def _uvicorn_row() -> Row:
    def command(port: int, _directory: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "uvicorn", "asgi_app:app", "--app-dir", str(APPS)),
            *("--loop", "uvloop", "--http", "httptools", "--no-access-log", "--workers", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]

    return Row(
        UVICORN,
        "uvicorn, uvloop + httptools",
        command,
        distributions=("uvicorn", "uvloop", "httptools"),
        maps=("/uvloop/", "/httptools/"),
    )


def _granian_row() -> Row:
    def command(port: int, _directory: Path) -> list[str]:
        return [
            *(sys.executable, "-m", "granian", "asgi_app:app", "--working-dir", str(APPS)),
            *("--interface", "asgi", "--http", "1", "--no-ws", "--loop", "uvloop", "--no-access-log"),
            *("--workers", "1", "--runtime-threads", "1"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]

    return Row(
        "granian",
        "granian asgi, uvloop",
        command,
        distributions=("granian", "uvloop"),
        maps=("/uvloop/", "/granian/"),
    )


def _journal_row(path: str, title: str, written_bytes_min: int, written_bytes_max: int | None) -> Row:
    def command(port: int, directory: Path) -> list[str]:
        return [
            *_stellane_command("native_app.py:server", JOURNAL_BACKEND, port),
            *("--journal", "file", "--journal-path", str(directory / "journal"), "--durability", "process"),
        ]

    return Row(
        f"journal-{path}",
        title,
        command,
        distributions=("stellane-kernel", "stellane-protocol-http", "stellane-journal-file"),
        says=(
            rf"(?m)^backend +{JOURNAL_BACKEND}\b",
            r"(?m)^codec +zttp\b",
            r"(?m)^journal +file, durability process\b",
        ),
        maps=_stellane_maps(JOURNAL_BACKEND),
        request=Request("POST", f"/{path}", JOURNAL_BODY_BYTES),
        written_bytes_min=written_bytes_min,
        written_bytes_max=written_bytes_max,
    )


def http_rows() -> list[Row]:
    """The plaintext GET rows."""
    stellane = [_stellane_row(kind, backend) for kind in ("native", "asgi") for backend in STELLANE_BACKENDS]
    return [_bare_row(), *stellane, _uvicorn_row(), _granian_row()]


def journal_rows() -> list[Row]:
    """One server with its journal open: POST to a route that does not journal, and to one that does."""
    return [
        _journal_row("plain", "not journaled", 0, JOURNAL_BODY_BYTES),
        _journal_row("journaled", "journaled, level process", JOURNAL_BODY_BYTES, None),
    ]


def select_rows(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """Rows whose name matches any of the shell patterns; all of them when there are none.

    Raises LookupError for a pattern that matches nothing.
    """
    for pattern in patterns:
        if not fnmatch.filter([row.name for row in rows], pattern):
            raise LookupError(f"no row is called {pattern!r}; there are {', '.join(row.name for row in rows)}")
    return [row for row in rows if not patterns or any(fnmatch.fnmatch(row.name, p) for p in patterns)]
