"""A process that a worker forked outlives it, and is in nobody's way."""

from __future__ import annotations

import os
import signal
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
def test_a_forked_child_keeps_neither_the_port_nor_the_journal(
    stellane: Callable[..., Any], backend: str, journal_engine: str, tmp_path: Path
) -> None:
    """After kill -9 of supervisor and worker, the next start gets both while the child still lives."""
    (tmp_path / "app.py").write_text(APP)
    arguments = (f"{tmp_path / 'app.py'}:server", "--backend", backend, "--workers", "1", "--journal", journal_engine)
    first = stellane(*arguments)
    child = int(httpx.get(f"{first.url}/fork", trust_env=False, timeout=20).text)
    try:
        assert httpx.put(first.url, trust_env=False, timeout=20).text == "done"
        workers = first.workers()
        first.signal(signal.SIGKILL)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        first.wait()
        second = stellane(*arguments, "--port", str(first.port))
        assert httpx.put(second.url, trust_env=False, timeout=20).text == "done"
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)
