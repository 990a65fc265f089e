"""Every way a handler can take its worker down: named, survived, and bounded for poison."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

CAUSES = {
    "segfault": "signal 11",
    "abort": "signal 6",
    "exit": "code 7",
    "kill": "signal 9",
    "hang": r"in deadly(.*\n)*.*killed because it hung",
}


def journal(directory: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "stellane", "journal", "ls", ".stellane/journal", "--json"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=directory, check=True)
    entries: list[dict[str, Any]] = json.loads(listed.stdout)
    return entries


def put(url: str, path: str) -> None:
    """Send what kills the worker; the connection ends without an answer."""
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        httpx.put(f"{url}{path}", content=b"x", timeout=20)


@pytest.mark.parametrize("how", CAUSES)
def test_the_cause_is_reported_and_the_request_finished(how: str, stellane: Any, tmp_path: Path) -> None:
    """The log names the signal, the exit code, or where it hung; the replacement finishes the request."""
    server = stellane(
        "deadly_app.py:server", environ={"STELLANE_RUNTIME_HANG_TIMEOUT_S": "1" if how == "hang" else "0"}
    )
    put(server.url, f"/{how}?once=1")
    server.wait_for(CAUSES[how])
    server.wait_for("request recovered")
    if how == "hang":
        assert server.output.count("killed because it hung") >= 2, "the successor was told"
    assert httpx.get(server.url).text == "alive"
    (entry,) = journal(tmp_path)
    assert entry["state"] == "done"


def test_a_replay_that_a_stop_cuts_off_does_not_count(stellane: Any, tmp_path: Path) -> None:
    """A restart in the middle of a long replay says nothing about the request: it is pending, with no attempt."""
    server = stellane("deadly_app.py:server", environ={"STELLANE_SHUTDOWN_GRACEFUL_TIMEOUT_S": "0.1"})
    put(server.url, "/kill?long=1")
    server.wait_for("a long replay has begun")
    assert server.stop() == 0
    assert "the stop cut off a replay" in server.output
    (entry,) = journal(tmp_path)
    assert (entry["state"], entry["attempts"]) == ("pending", 0)


def test_a_worker_tells_that_its_loop_turns(tmp_path: Path) -> None:
    """Again and again, from when it is ready; it would be killed as hanging otherwise."""
    code = """
import os, signal, sys
from stellane.config import load
from stellane.runtime.worker import Worker

signs = []

def turning():
    signs.append("turns")
    if len(signs) == 3:
        os.kill(os.getpid(), signal.SIGTERM)

loaded = load(None, overrides={"runtime.hang_timeout_s": 0.04, "runtime.backend": "asyncio"})
ready = lambda facts: signs.clear()
sys.exit(Worker(loaded, sys.argv[1], app_dir=".", listeners=[], on_ready=ready, on_turning=turning).run())
"""
    app = Path(__file__).parents[1] / "serving" / "apps" / "deadly_app.py"
    command = [sys.executable, "-c", code, f"{app}:server"]
    assert subprocess.run(command, timeout=30, cwd=tmp_path, check=False).returncode == 0


def test_a_request_that_always_kills_becomes_a_dead_letter(stellane: Any, tmp_path: Path) -> None:
    """At most max_recovery_attempts replays, each counted by its own crash; then it is kept and shown."""
    server = stellane(
        "deadly_app.py:server",
        environ={"STELLANE_RUNTIME_RESTART_DELAY_S": "0.05", "STELLANE_RUNTIME_RESTART_DELAY_S_MAX": "0.1"},
    )
    put(server.url, "/segfault")
    server.wait_for("request dead-lettered")
    deadline = time.monotonic() + 10
    while True:
        try:
            assert httpx.get(server.url, timeout=10).text == "alive"
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline
    (entry,) = journal(tmp_path)
    assert entry["state"] == "dead"
    assert entry["attempts"] == 2 or len(entry["attempts"]) == 2
    assert server.output.count("worker died") == 3, "the original run and two replays"
