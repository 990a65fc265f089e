"""An extension, installed as a stranger's would be, hears the worker's life."""

from __future__ import annotations

from typing import Any

import httpx

MODULE = """
import sys
from stellane import hookimpl

stellane_api_level = 1


def _say(word):
    print(f"heard {word}", file=sys.stderr, flush=True)


@hookimpl
def stellane_configured(config):
    _say(f"configured {config.runtime.worker_threads}")


@hookimpl
def stellane_worker_starting(worker):
    _say(f"starting {worker.slot}")


@hookimpl
def stellane_worker_started():
    _say("started")


@hookimpl
def stellane_worker_stopping():
    _say("stopping")


@hookimpl
def stellane_worker_stopped():
    _say("stopped")
"""


def test_an_extension_hears_the_workers_life_in_order(stellane: Any, extension: Any) -> None:
    """configured, starting, started, stopping, stopped: once each in the worker."""
    server = stellane("native_app.py:server", "--no-supervisor", environ=extension(MODULE))
    assert httpx.get(server.url).text == "index"
    assert server.stop() == 0
    heard = [line.removeprefix("heard ") for line in server.output.splitlines() if line.startswith("heard ")]
    life = [word for word in heard if not word.startswith("configured")]
    assert life == ["starting 0", "started", "stopping", "stopped"]
    assert heard[0] == "configured 1"
