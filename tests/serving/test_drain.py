"""A worker that is told to stop answers every request that has reached it."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Any

MODULE = """
import os, sys, time
from stellane import hookimpl

stellane_api_level = 1


@hookimpl
def stellane_worker_stopping():
    print("stopping", file=sys.stderr, flush=True)
    deadline = time.monotonic() + 20
    while not os.path.exists(os.environ["ACME_GO_ON"]) and time.monotonic() < deadline:
        time.sleep(0.01)
"""
REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


def answer(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(4096):
        received += data
    return received


def test_a_request_that_came_a_moment_before_the_drain_is_answered(
    backend: str, stellane: Any, extension: Any, tmp_path: Path
) -> None:
    """On a connection that was idle, and on one that was not accepted yet; an idle one is closed.

    They come while the loop's thread is held right before the drain, so the one turn that is between reads or accepts
    them, on a loop that does so before it tells, and nobody has been told of them when the drain begins.
    """
    go_on = tmp_path / "go-on"
    environ = {**extension(MODULE), "ACME_GO_ON": str(go_on), "STELLANE_SHUTDOWN_DRAIN_DELAY_S": "0"}
    server = stellane("native_app.py:server", "--backend", backend, environ=environ)
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=20) as known, socket.create_connection(address, timeout=20) as idle:
        for client in (known, idle):
            client.sendall(REQUEST)
            assert client.recv(4096).endswith(b"index")
        (worker,) = server.workers()
        os.kill(worker, signal.SIGTERM)
        server.wait_for("stopping")
        with socket.create_connection(address, timeout=20) as fresh:
            known.sendall(REQUEST)
            fresh.sendall(REQUEST)
            go_on.touch()
            assert answer(known).endswith(b"index")
            assert answer(idle) == b""
            assert fresh.recv(4096).endswith(b"index")  # by this worker, or by its successor


SLOW_END = """
import asyncio, sys

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})
    await asyncio.sleep(0.5)
    print("finished behind the answer", file=sys.stderr, flush=True)
"""


def test_what_a_request_does_behind_its_answer_is_waited_for(backend: str, stellane: Any, tmp_path: Path) -> None:
    """Also when it begins in the middle of the drain, on a connection that had brought half of its head.

    Cut off there it would have no end in the journal, and be run again though its client has the answer.
    """
    target = tmp_path / "slow_end.py"
    target.write_text(SLOW_END)
    server = stellane(f"{target}:app", "--backend", backend, environ={"STELLANE_SHUTDOWN_DRAIN_DELAY_S": "0"})
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=20) as client, socket.create_connection(address, timeout=20) as idle:
        for each in (client, idle):
            each.sendall(REQUEST)
            assert each.recv(4096).endswith(b"ok")
        server.wait_for("(?s)behind the answer.*behind the answer")
        client.sendall(REQUEST[:8])
        os.kill(server.pid, signal.SIGTERM)
        assert answer(idle) == b""  # the drain has begun
        client.sendall(REQUEST[8:])
        assert answer(client).endswith(b"ok")
    assert server.wait() == 0
    assert server.output.count("finished behind the answer") == 3
