"""A worker whose journal fails makes room for one that opens it anew."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx

ENVIRON = {
    "STELLANE_RUNTIME_RESTART_DELAY_S": "0.05",
    "STELLANE_RUNTIME_RESTART_DELAY_S_MAX": "0.2",
    # For a stop of the whole server; who leaves because of its journal does not wait.
    "STELLANE_SHUTDOWN_DRAIN_DELAY_S": "60",
}


PATIENCE_S = 30.0


def request(server: Any, method: str, path: str = "/") -> httpx.Response:
    """The answer of some worker."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return httpx.request(method, f"{server.url}{path}", timeout=PATIENCE_S)
        except httpx.TransportError:  # accepted by a worker that was on its way out
            assert time.monotonic() < deadline, server.output


def test_workers_are_replaced_until_the_disk_is_good_again(stellane: Any, tmp_path: Path) -> None:
    """Both of them, again and again; other requests are answered meanwhile, and nothing pending is forgotten."""
    server = stellane("bad_disk_app.py:server", "--workers", "2", environ=ENVIRON)
    first = server.workers()
    # Its worker leaves when the answer begins, and finishes it.
    assert request(server, "PUT", "/breaks").text == "begun ended"
    deadline = time.monotonic() + PATIENCE_S
    while server.output.count("worker died") < 3:
        assert time.monotonic() < deadline, server.output
        assert request(server, "PUT").status_code == 503
        assert request(server, "GET").status_code == 200
    assert server.output.count("exited with code 74 (its journal failed)") == server.output.count("worker died")
    assert "Input/output error" in server.output
    (tmp_path / "bad").unlink()
    server.wait_for("request recovered")
    while request(server, "PUT").status_code != 200:
        assert time.monotonic() < 2 * PATIENCE_S + deadline, server.output
    assert not set(first) & set(server.workers())
    server.signal(signal.SIGTERM)
    server.wait_for("stopping")
    server.signal(signal.SIGTERM)
    assert server.wait() == 128 + signal.SIGTERM


def test_alone_it_goes_on_with_what_needs_no_journal(stellane: Any, tmp_path: Path) -> None:
    """Nobody would start another."""
    server = stellane("bad_disk_app.py:server", "--no-supervisor")
    (tmp_path / "bad").touch()
    for _ in range(2):
        assert request(server, "PUT").status_code == 503
        assert request(server, "GET").status_code == 200
    assert server.stop() == 0
