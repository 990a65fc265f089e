"""The loop the programs run on, and what every one of them must leave behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import ssl
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loop.tests.conformance.loops import Factory, loop_factory
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.servers import Address, postgresql, redis_server

LOOP_VARIABLE = "STELLANE_TEST_LOOP"
POLLERS = ("epoll", "io_uring")
PROGRAM_TIMEOUT_S = 60.0
GRACE_S = 10.0
"""After which a loop that did not even run its own timers is interrupted by a signal."""

Program = Coroutine[Any, Any, Any]


def open_descriptors() -> dict[int, str]:
    """File descriptor -> what it is."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:  # the one that reads the directory
            continue
    return found


@pytest.fixture(params=[os.environ[LOOP_VARIABLE]] if LOOP_VARIABLE in os.environ else POLLERS)
def new_loop(request: pytest.FixtureRequest) -> Factory:
    """Makes the loop: of both pollers, or of what STELLANE_TEST_LOOP names (see conformance/loops.py)."""
    factory = loop_factory(request.param)
    try:
        with asyncio.Runner(loop_factory=factory) as runner:  # also opens what the process keeps for all loops
            runner.run(asyncio.sleep(0))
    except OSError as error:
        pytest.skip(f"not run: {request.param} cannot be used here: {error}")
    return factory


@pytest.fixture
def watched(new_loop: Factory) -> Iterator[None]:
    """Interrupt a program that hangs, and see that it leaves no file descriptor open."""

    def hangs(number: int, frame: Any) -> None:
        raise TimeoutError(f"the loop still ran after {PROGRAM_TIMEOUT_S + GRACE_S} s")

    gc.collect()
    before = open_descriptors()
    previous = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, PROGRAM_TIMEOUT_S + GRACE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    gc.collect()
    left = {fd: what for fd, what in open_descriptors().items() if before.get(fd) != what}
    assert left == {}, "file descriptors were left open"


@pytest.fixture
def run(new_loop: Factory, watched: None) -> Callable[[Program], Any]:
    """Run a program to its end: within its time, with no task left and no error told to the loop only."""

    async def limited(program: Program, reported: list[dict[str, Any]]) -> Any:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: reported.append(context))
        async with asyncio.timeout(PROGRAM_TIMEOUT_S):
            result = await program
        for _ in range(10):  # what was closed ends in one of the next turns
            await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert others == set(), "tasks were left running"
        return result

    def run(program: Program) -> Any:
        reported: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=new_loop) as runner:
            result = runner.run(limited(program, reported))
        gc.collect()
        assert reported == [], "errors were reported to the loop's exception handler"
        return result

    return run


@dataclass(frozen=True)
class TLS:
    """Contexts for 127.0.0.1 and localhost, and the server's files."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    certificate: bytes
    key: bytes


@pytest.fixture(scope="session")
def tls() -> TLS:
    """A certificate authority that the client's context trusts, and a certificate it signed."""
    require("trustme")
    import trustme

    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    issued.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    return TLS(server, client, chain, issued.private_key_pem.bytes())


@pytest.fixture(scope="session")
def postgres(tls: TLS) -> Iterator[Address]:
    with postgresql(tls.certificate, tls.key) as address:
        yield address


@pytest.fixture(scope="session")
def redis_address() -> Iterator[Address]:
    with redis_server() as address:
        yield address
