"""A process that a worker forked outlives it, and is in nobody's way."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

APP = """
import os
import time

from stellane import Server

server = Server()

@server.get("/fork")
async def fork(ctx, req):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    return str(child)

@server.put("/")
async def put(ctx, req):
    return "done"
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_keeps_neither_port_nor_journal_nor_client(
    stellane: Callable[..., Any], backend: str, journal_engine: str, tmp_path: Path
) -> None:
    """After kill -9 of supervisor and worker the client sees the end, and the next start gets both, while it lives."""
    (tmp_path / "app.py").write_text(APP)
    arguments = (f"{tmp_path / 'app.py'}:server", "--backend", backend, "--workers", "1", "--journal", journal_engine)
    first = stellane(*arguments)
    client = socket.create_connection(("127.0.0.1", first.port), timeout=20)
    client.sendall(b"GET /fork HTTP/1.1\r\nHost: a\r\n\r\n")
    child = int(client.recv(4096).rpartition(b"\r\n")[2])
    try:
        assert httpx.put(first.url, trust_env=False, timeout=20).text == "done"
        workers = first.workers()
        first.signal(signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        first.wait()
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        second = stellane(*arguments, "--port", str(first.port))
        assert httpx.put(second.url, trust_env=False, timeout=20).text == "done"
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
