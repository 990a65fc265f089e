"""The loop under test: each test runs once for every poller."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from loop.tests.leaks import contexts

import stellane_loop

POLLERS = tuple(os.environ.get("STELLANE_TEST_POLLER", "epoll,io_uring").split(","))
TEST_TIMEOUT_S = 30.0

LoopFactory = Callable[[], stellane_loop.Loop]
Run = Callable[[Coroutine[Any, Any, Any]], Any]
Transcript = list[Any]
Seen = Callable[[Callable[[], Coroutine[Any, Any, Transcript]]], Transcript]


@pytest.fixture(params=POLLERS)
def poller(request: pytest.FixtureRequest) -> str:
    """The name of a poller that this machine has."""
    try:
        stellane_loop.new_event_loop(request.param).close()
    except OSError as error:
        pytest.skip(f"not run: {error}")
    return request.param


@pytest.fixture
def new_loop(poller: str) -> Iterator[LoopFactory]:
    """Makes loops, which are closed after the test."""
    loops: list[stellane_loop.Loop] = []

    def make() -> stellane_loop.Loop:
        loops.append(stellane_loop.new_event_loop(poller))
        return loops[-1]

    yield make
    for loop in loops:
        loop.close()


@pytest.fixture
def loop(new_loop: LoopFactory) -> stellane_loop.Loop:
    """One loop that does not run yet."""
    return new_loop()


@pytest.fixture
def run(poller: str) -> Run:
    """Runs a coroutine on a loop of its own; what hangs fails."""

    def run_one(coroutine: Coroutine[Any, Any, Any]) -> Any:
        async def limited() -> Any:
            async with asyncio.timeout(TEST_TIMEOUT_S):
                return await coroutine

        with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(poller)) as runner:
            return runner.run(limited())

    return run_one


@pytest.fixture
def seen(run: Run) -> Seen:
    """Runs a scenario on the poller and on asyncio's own loop; it has to say the same of both."""

    def both(scenario: Callable[[], Coroutine[Any, Any, Transcript]]) -> Transcript:
        on_asyncio = asyncio.run(scenario())
        assert run(scenario()) == on_asyncio
        return on_asyncio

    return both


@pytest.fixture(scope="session")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of the server and of the client."""
    server, client = contexts()
    if server is None or client is None:
        pytest.skip("not run: trustme is not installed")
    return server, client


def open_descriptors() -> set[str]:
    """What this process has open, as "number -> target"."""
    gc.collect()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} -> {entry.readlink()}")
        except FileNotFoundError:  # the descriptor that reads the directory
            continue
    return found
