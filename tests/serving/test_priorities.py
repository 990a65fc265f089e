"""A server under a flood of background work, with callbacks in order of priority and without."""

from __future__ import annotations

import itertools
import os
from typing import Any

import httpx
import pytest

NATIVE = ("epoll", "io_uring")
TASKS = 50
FLOOD = f"""
import asyncio
import os
import time

from stellane import hookimpl
from stellane.abc import Priority

stellane_api_level = 1
steps = 0


async def work():
    global steps
    while True:
        await asyncio.sleep(0)
        steps += 1
        time.sleep(0.001)


@hookimpl
def stellane_worker_started(worker):
    for _ in range({TASKS}):
        worker.backend.schedule(work(), priority=Priority[os.environ["FLOOD_PRIORITY"]])
"""


@pytest.fixture(params=[os.environ["STELLANE_TEST_BACKEND"]] if "STELLANE_TEST_BACKEND" in os.environ else NATIVE)
def native(request: pytest.FixtureRequest) -> str:
    """The backends whose loop owns its ready queue."""
    if request.param not in NATIVE:
        pytest.skip(f"not run: the loop of the backend {request.param} does not let others order its callbacks")
    return str(request.param)


@pytest.fixture
def flooded(stellane: Any, extension: Any) -> Any:
    """`flooded(backend, priority_of_the_flood, order)`: a running server that never has nothing to do."""
    installed = extension(FLOOD)

    def start(backend: str, priority: str, order: str) -> Any:
        environ = {
            **installed,
            "FLOOD_PRIORITY": priority,
            "STELLANE_PERFORMANCE_READY_ORDER": order,
        }
        return stellane("steps_app.py:server", "--no-supervisor", "--backend", backend, environ=environ)

    return start


def ask(server: Any) -> tuple[int, int]:
    """What the flood had done when a request began, and when it ended."""
    before, after = httpx.get(server.url, timeout=20).text.split()
    return int(before), int(after)


def test_requests_overtake_low_work_and_low_work_goes_on(flooded: Any, native: str) -> None:
    """A step of a request waits for one low one, not for all; and between requests the low ones went on."""
    server = flooded(native, "LOW", "priority")
    seen = [ask(server) for _ in range(5)]
    assert all(after - before < 2 * TASKS for before, after in seen), seen
    assert all(later > earlier for (_, earlier), (later, _) in itertools.pairwise(seen)), seen


def test_without_an_order_a_request_waits_for_all(flooded: Any, native: str) -> None:
    """What the test above would see if nothing were ordered: each of ten steps lets every task go first."""
    before, after = ask(flooded(native, "LOW", "fifo"))
    assert after - before >= 8 * TASKS


def test_urgent_work_that_never_ends_leaves_room_for_requests(flooded: Any, native: str) -> None:
    """Each step of a request is at last the oldest that waits, and then it runs."""
    before, after = ask(flooded(native, "URGENT", "priority"))
    assert after - before >= 8 * TASKS
