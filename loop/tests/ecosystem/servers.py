"""PostgreSQL and Redis from Debian's packages, started for one test session in a directory of their own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_TIMEOUT_S = 30.0
POSTGRESQL_DIRECTORIES = "/usr/lib/postgresql/*/bin"  # where Debian puts what is not on PATH


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    port: int
    socket_directory: Path


@contextlib.contextmanager
def held_port() -> Iterator[int]:
    """A TCP port of the loopback on which nobody listens, and that the kernel gives to nobody else meanwhile.

    A server that sets SO_REUSEADDR, as all do, can listen on it.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


def program(name: str, package: str, directories: str = "") -> Path:
    """The path of an installed program; skips the test, naming Debian's package, if there is none."""
    found = [path / name for path in Path("/").glob(directories.lstrip("/"))] if directories else []
    usable = sorted(path for path in found if path.is_file())
    if usable:
        return usable[-1]
    if on_path := shutil.which(name):
        return Path(on_path)
    pytest.skip(f"not run: no {name} here; apt-get install {package}")


def unprivileged() -> dict[str, Any]:
    """Arguments of subprocess for a server that refuses to run as root: empty when we are somebody else."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("not run: PostgreSQL refuses to run as root, and there is neither a postgres nor a nobody user")


@contextlib.contextmanager
def directory(owner: dict[str, Any]) -> Iterator[Path]:
    """A new directory; not below pytest's own, where another user may not go, nor long, for the sake of sun_path."""
    with tempfile.TemporaryDirectory(prefix="stellane-") as name:
        if owner:
            os.chown(name, owner["user"], owner["group"])
        yield Path(name)


@contextlib.contextmanager
def serving(command: list[Any], log: Path, ready: Callable[[], bool], **arguments: Any) -> Iterator[None]:
    """Run a server until the end of the block; fails with what it wrote if it does not get ready."""
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **arguments)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if server.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{command[0]} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(port: int) -> Callable[[], bool]:
    """Whether something accepts connections on the port."""

    def connect() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    return connect


@contextlib.contextmanager
def postgresql(certificate: bytes, key: bytes) -> Iterator[Address]:
    """A server with TLS and one superuser, `stellane`, whom it trusts."""
    initdb = program("initdb", "postgresql", POSTGRESQL_DIRECTORIES)
    owner = unprivileged()
    with directory(owner) as place, held_port() as port:
        data = place / "data"
        made = subprocess.run(
            [initdb, "-D", data, "-U", "stellane", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            check=False,
            capture_output=True,
            text=True,
            **owner,
        )
        assert made.returncode == 0, made.stderr
        for name, content in (("server.crt", certificate), ("server.key", key)):
            path = data / name
            path.write_bytes(content)
            path.chmod(0o600)
            if owner:
                os.chown(path, owner["user"], owner["group"])
        settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": place, "ssl": "on"}
        settings |= {"fsync": "off", "max_connections": 50}  # it lives as long as the test
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [initdb.with_name("postgres"), "-D", data, *options]
        is_ready = [initdb.with_name("pg_isready"), "-h", place, "-p", str(port), "-q"]

        def ready() -> bool:
            return subprocess.run(is_ready, check=False).returncode == 0

        with serving(command, place / "log", ready, **owner):
            yield Address(port, place)


@contextlib.contextmanager
def redis_server() -> Iterator[Address]:
    """A server that keeps nothing."""
    executable = program("redis-server", "redis-server")
    with directory({}) as place, held_port() as port:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--unixsocket", place / "redis.sock", "--save", ""]
        with serving([executable, *options, "--dir", place], place / "log", answers(port)):
            yield Address(port, place)
