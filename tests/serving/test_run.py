"""`stellane run` as a user meets it: native applications, the banner, every way to get it wrong."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest


def test_a_native_application(backend: str, stellane: Any, tmp_path: Path) -> None:
    """Routing, ids and trace in and out, middleware, streaming, errors, deadline, resources."""
    server = stellane("native_app.py:server", "--backend", backend)
    server.wait_for(rf"(?m)^backend +{backend} ")
    server.wait_for(r"(?m)^codec +zttp")
    with httpx.Client(base_url=server.url, timeout=20) as client:
        assert client.get("/").text == "index"
        assert client.get("/").headers["x-stamp"] == "middleware"
        assert client.head("/").text == ""
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        sent = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01", "x-request-id": "mine"}
        response = client.get("/items/7", headers=sent)
        assert response.json() == {"item": 7, "trace": trace_id, "id": "mine"}
        assert response.headers["x-request-id"] == "mine"
        assert response.headers["traceresponse"].split("-")[1] == trace_id
        server.wait_for(rf'"request_id": "mine".*"trace_id": "{trace_id}"')
        assert client.get("/items/x").status_code == 404
        refused = client.put("/items/7")
        assert refused.status_code == 405
        assert refused.headers["allow"] == "GET, HEAD, OPTIONS"
        assert client.post("/echo", content=b"x" * 1_000_000).content == b"x" * 1_000_000
        assert client.get("/stream").text == "0\n1\n2\n3\n4\n"
        assert client.get("/slow").status_code == 504
        assert client.get("/refused").text.strip() == "a teapot"
        assert client.get("/broken").status_code == 500
        server.wait_for("RuntimeError: on purpose")
    assert server.stop() == 0
    assert (tmp_path / "notes.txt").read_text() == "opened\nclosed\n"


def test_one_worker_in_the_foreground(backend: str, stellane: Any) -> None:
    """--no-supervisor: one process, stopped by SIGINT."""
    server = stellane("native_app.py:server", "--backend", backend, "--no-supervisor")
    assert httpx.get(f"{server.url}/").text == "index"
    assert server.workers() == []
    server.signal(signal.SIGINT)
    assert server.wait() == 0


def test_a_second_signal_ends_the_foreground_worker(backend: str, stellane: Any) -> None:
    """While it waits for a client that began a request: nobody else would end it."""
    server = stellane("native_app.py:server", "--backend", backend, "--no-supervisor")
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET / HTT")
        assert httpx.get(f"{server.url}/").text == "index"
        server.signal(signal.SIGINT)
        with contextlib.suppress(ConnectionError):
            while True:
                socket.create_connection(("127.0.0.1", server.port)).close()
        server.signal(signal.SIGINT)
        assert server.wait() == -signal.SIGINT


def test_a_unix_socket(backend: str, stellane: Any, tmp_path: Path) -> None:
    """--uds: served by two workers, one of which is killed; the file goes with the server."""
    path = tmp_path / "stellane.sock"
    server = stellane("native_app.py:server", "--backend", backend, "--workers", "2", "--uds", str(path))
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for("worker ready again")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://unix") as client:
        assert client.get("/").text == "index"
    assert server.stop() == 0
    assert not path.exists()


def test_requests_over_the_limit_wait_and_then_get_503(backend: str, stellane: Any, tmp_path: Path) -> None:
    """runtime.max_tasks_per_loop = 2: two run, two wait, the rest is told to come again."""
    (tmp_path / "stellane.config.toml").write_text("[runtime]\nmax_tasks_per_loop = 2\n")
    server = stellane("native_app.py:server", "--backend", backend)
    with concurrent.futures.ThreadPoolExecutor(7) as pool:
        responses = list(pool.map(lambda _: httpx.get(f"{server.url}/wait", timeout=20), range(7)))
    codes = sorted(response.status_code for response in responses)
    assert codes == [200] * 4 + [503] * 3
    assert all(response.headers["retry-after"] == "1" for response in responses if response.status_code == 503)


def test_workers_are_pinned_when_asked(stellane: Any) -> None:
    """runtime.enable_cpu_affinity: worker i on the i-th usable CPU."""
    server = stellane(
        "native_app.py:server", "--workers", "2", environ={"STELLANE_RUNTIME_ENABLE_CPU_AFFINITY": "true"}
    )
    usable = sorted(os.sched_getaffinity(0))
    pinned = sorted(os.sched_getaffinity(pid).copy().pop() for pid in server.workers())
    assert all(len(os.sched_getaffinity(pid)) == 1 for pid in server.workers())
    assert pinned == sorted(usable[index % len(usable)] for index in range(2))


def run_and_fail(*arguments: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """`stellane run` with something wrong: it must end by itself, without a traceback."""
    run = subprocess.run(
        [sys.executable, "-m", "stellane", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=directory,
        check=False,
    )
    assert run.returncode != 0
    assert "Traceback" not in run.stdout + run.stderr
    return run


@pytest.mark.parametrize(
    ("target", "pattern"),
    [
        ("nothing_here:app", r"there is no module|No module|not found|cannot find"),
        ("native_app.py:sever", r"Did you mean 'server'"),
        ("native_app.py:", r"module:object"),
    ],
)
@pytest.mark.parametrize("how", [[], ["--no-supervisor"]], ids=["supervised", "alone"])
def test_targets_that_cannot_be_served(target: str, pattern: str, how: list[str], tmp_path: Path) -> None:
    """One clear message, no traceback, a non-zero exit code."""
    path = str(Path(__file__).parent / "apps" / target) if ".py" in target else target
    run = run_and_fail(path, "--port", "0", *how, directory=tmp_path)
    output = run.stdout + run.stderr
    assert any(part in output for part in pattern.split("|")), output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[runtime]\nbakend = 'epoll'\n", "bakend"),
        ("[runtime]\nworker_threads = 'four'\n", "worker_threads"),
        ("[performance]\nnuma_aware = true\n", "not built yet"),
        ("[runtime]\nbackend = 'custom'\n", "not built yet"),
        ("[recovery]\ndurability = 'power'\n", "not built yet"),
        ("[runtime\n", "stellane.config.toml"),
    ],
)
def test_configurations_that_cannot_work(text: str, expected: str, tmp_path: Path) -> None:
    """The file and what is wrong are named before anything starts; exit code 2."""
    (tmp_path / "stellane.config.toml").write_text(text)
    target = str(Path(__file__).parent / "apps" / "native_app.py") + ":server"
    run = run_and_fail(target, "--port", "0", directory=tmp_path)
    assert run.returncode == 2
    assert expected in run.stderr
    assert "stellane.config.toml" in run.stderr


def test_a_taken_port(tmp_path: Path) -> None:
    """Who to blame, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        target = str(Path(__file__).parent / "apps" / "native_app.py") + ":server"
        run = run_and_fail(target, "--port", str(port), directory=tmp_path)
    assert str(port) in run.stderr


def test_the_journal_of_a_killed_worker_is_shown_and_recovered(
    backend: str, journal_engine: str, stellane: Any, tmp_path: Path
) -> None:
    """A POST without a key becomes an orphan, one with a key is replayed; secrets are not on disk."""
    server = stellane("starlette_app.py:app", "--backend", backend, "--journal", journal_engine)
    with httpx.Client(base_url=server.url, timeout=5) as client:
        headers = {"authorization": "Bearer very-secret-credential", "idempotency-key": "k-1"}
        for number in range(2):
            try:
                client.post("/slow?seconds=3", content=b"abc", headers=headers if number else {}, timeout=0.2)
            except httpx.ReadTimeout:
                continue
            raise AssertionError("the handler was meant to be slow")
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_for("request recovered")
    listed = subprocess.run(
        [sys.executable, "-m", "stellane", "journal", "ls", ".stellane/journal", "--json"],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=tmp_path,
        check=True,
    )
    states = sorted(entry["state"] for entry in json.loads(listed.stdout))
    assert states == ["done", "orphan"]
    assert server.stop() == 0
    verify = [sys.executable, "-m", "stellane", "journal", "verify", ".stellane/journal"]
    assert subprocess.run(verify, cwd=tmp_path, timeout=30, check=False).returncode == 0
    for path in (tmp_path / ".stellane").rglob("*"):
        if path.is_file():
            assert b"very-secret-credential" not in path.read_bytes()
    # RocksDB's own files follow the umask; nobody else reaches them through this.
    assert (tmp_path / ".stellane/journal/w0").stat().st_mode & 0o777 == 0o700
