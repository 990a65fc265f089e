"""What was written before a loop stops leaves, whether or not the loop ever turns again."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import warnings

import pytest

PAIRS = 64
"""So many that a poller which sends in batches would keep them for its next turn."""


def test_writes_of_the_last_turn_leave(loop) -> None:
    pairs = [socket.socketpair() for _ in range(PAIRS)]
    answering = []

    class Answer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)
            answering.append(self.transport)
            if len(answering) == PAIRS:
                loop.stop()

    async def connect() -> None:
        for ours, _ in pairs:
            ours.setblocking(False)
            await loop.connect_accepted_socket(Answer, ours)

    loop.run_until_complete(connect())
    for _, theirs in pairs:
        theirs.settimeout(5)
        theirs.sendall(b"to be answered")
    loop.run_forever()
    for _, theirs in pairs:
        assert theirs.recv(100) == b"to be answered"
        theirs.close()
    for transport in answering:
        transport.abort()
    loop.run_until_complete(asyncio.sleep(0))


def test_an_interrupt_while_a_run_is_set_up_leaves_a_loop_that_runs_again(loop, monkeypatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    hooks = sys.get_asyncgen_hooks()
    with monkeypatch.context() as patched:
        patched.setattr(loop, "_hold_wakeup_fd", interrupt)
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
    assert not loop.is_running()
    assert sys.get_asyncgen_hooks() == hooks
    loop.run_until_complete(asyncio.sleep(0))


def test_a_closed_loop_makes_no_turn(loop) -> None:
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop._run_once()


def test_a_cancelled_handle_that_is_run_by_hand_does_nothing(loop) -> None:
    reports: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: reports.append(context))
    for handle in (loop.call_soon(reports.append, {}), loop.call_later(1, reports.append, {})):
        handle.cancel()
        handle._run()
    assert reports == []


LAST_WISHES = """
import asyncio, gc, socket, sys
import stellane_loop

class Executor(asyncio.Protocol):
    def __init__(self, others):
        self.others = others
        self.idle, self.peer = socket.socketpair()
        self.idle.setblocking(False)
    def __del__(self):
        for transport in self.others:
            transport.write(b"farewell")
            transport.close()

async def connect(others):
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: Executor(others), sock=ours)
    await wait_once(transport.get_protocol().idle)  # the loop knows it for as long as there is the object
    return transport, theirs

async def wait_once(sock):
    operation = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(sock, 1))
    await asyncio.sleep(0.01)
    operation.cancel()
    await asyncio.wait([operation])

async def open_all():
    first, second = await connect([]), await connect([])
    kept = [first, second, await connect([first[0], second[0]]), await connect([first[0], second[0]])]
    waiting, _ = socket.socketpair()
    waiting.setblocking(False)
    await wait_once(waiting)
    await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=waiting)
    return [theirs for _, theirs in kept]

for _ in range(20):
    loop = stellane_loop.new_event_loop(sys.argv[1])
    peers = loop.run_until_complete(open_all())
    loop.close()
    gc.collect()
print("closed")
"""


def test_what_a_closing_loop_lets_go_of_may_still_use_it(poller: str) -> None:
    """In a process of its own: what is wrong here is a crash."""
    command = [sys.executable, "-W", "ignore", "-c", LAST_WISHES, poller]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr


def test_a_transport_that_outlives_its_loop_can_be_used_as_a_lost_one(new_loop) -> None:
    def outlive() -> None:
        loop = new_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
            loop.close()
            transport.write(b"x")
            transport.writelines([b"x", b"y"])
            transport.write_eof()
            transport.pause_reading()
            transport.resume_reading()
            transport.close()
            transport.abort()
            assert transport.is_closing()
            assert theirs.recv(10) == b""

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        outlive()


def test_a_transport_that_nobody_closed_is_no_affair_of_the_excepthook_where_warnings_are_errors(new_loop, monkeypatch):
    """Cython's finalizers would tell it, and at the end of the interpreter that is "Error in sys.excepthook"."""
    hooked, unraisable = [], []
    monkeypatch.setattr(sys, "excepthook", lambda *raised: hooked.append(raised))
    monkeypatch.setattr(sys, "unraisablehook", lambda told: unraisable.append(told.exc_type))
    loop = new_loop()
    ours, theirs = socket.socketpair()
    with theirs, warnings.catch_warnings():
        warnings.simplefilter("error")
        transport, _ = loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=ours))
        loop.close()
        del transport
        gc.collect()
    assert (hooked, unraisable) == ([], [ResourceWarning])
