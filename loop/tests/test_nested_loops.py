"""A loop inside another's callback: refused as asyncio does, and run once the running loop is hidden, as plugins do.

Each test has ours in ours, ours in asyncio's and asyncio's in ours.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
import threading
from asyncio import events, tasks

import pytest

import stellane_loop

DEADLINE_S = 10


@pytest.fixture(params=["ours in ours", "ours in asyncio's", "asyncio's in ours"])
def makers(request, poller):
    """What makes outer and inner loops."""
    factories = {"ours": lambda: stellane_loop.new_event_loop(poller)}
    inner, outer = (factories.get(whose, asyncio.SelectorEventLoop) for whose in request.param.split(" in "))
    return outer, inner


@pytest.fixture
def loops(makers):
    """The outer and the inner loop, which are closed after the test."""
    outer, inner = (make() for make in makers)
    yield outer, inner
    inner.close()
    outer.close()


def limited(loop, coroutine):
    """Runs it; what hangs fails."""
    return loop.run_until_complete(asyncio.wait_for(coroutine, DEADLINE_S))


def nested(loop, coroutine):
    """Runs it in `loop`, inside a callback of the loop that runs."""
    running = events._get_running_loop()
    # From 3.14 on a thread has one current task, and asyncio's own loops run none inside it. Ours set it aside.
    sets_aside = sys.version_info >= (3, 14) and not isinstance(loop, stellane_loop.Loop)
    task = tasks._swap_current_task(running, None) if sets_aside else None
    events._set_running_loop(None)
    try:
        return limited(loop, coroutine)
    finally:
        events._set_running_loop(running)
        if sets_aside:
            tasks._swap_current_task(running, task)


def wakeup_fd() -> int:
    found = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(found, warn_on_full_buffer=False)
    return found


def surroundings() -> tuple:
    """What a run puts in place for a thread, and has to give back."""
    return events._get_running_loop(), sys.get_asyncgen_hooks(), sys.get_coroutine_origin_tracking_depth(), wakeup_fd()


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


async def converse() -> str:
    """A server and a client, a timer and another thread."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(3):
            writer.write(b"question")
            assert await reader.readexactly(8) == b"question"
            await asyncio.sleep(0.001)
            assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()
        writer.close()
        await writer.wait_closed()
    return "conversed"


def test_running_a_loop_while_another_runs_is_refused(loops):
    outer, inner = loops

    async def main():
        before = surroundings()
        if isinstance(inner, stellane_loop.Loop):  # asyncio's own forget the one that runs
            with pytest.raises(RuntimeError, match=r"^Cannot run the event loop while another loop is running$"):
                inner.run_forever()
        if isinstance(outer, stellane_loop.Loop):
            with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
                outer.run_forever()
        assert surroundings() == before
        assert not inner.is_running()
        assert outer.is_running()
        return await converse()

    assert limited(outer, main()) == "conversed"
    assert limited(inner, converse()) == "conversed"


def test_a_loop_is_run_in_another_thread_while_one_runs_and_here_between_its_runs(loops):
    outer, inner = loops

    async def main():
        before = surroundings()
        inner.call_soon(asyncio.Event().set)
        there = asyncio.get_running_loop().run_in_executor(None, limited, inner, converse())
        assert await converse() == "conversed"
        assert await there == "conversed"
        assert surroundings() == before

    for _ in range(2):
        limited(outer, main())
        assert limited(inner, converse()) == "conversed"
    outer.close()
    assert limited(inner, converse()) == "conversed"


def test_a_nested_run_leaves_everything_as_it_was(loops):
    outer, inner = loops
    kinds = []

    class Nesting(Echo):
        """From within the poll, on our loops."""

        def data_received(self, data):
            run_nested("protocol")
            super().data_received(data)

    def run_nested(kind):
        before = surroundings()
        assert nested(inner, converse()) == "conversed"
        assert surroundings() == before
        kinds.append(kind)

    async def main():
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        run_nested("task")
        assert asyncio.current_task() is task
        loop.call_soon(run_nested, "callback")
        loop.call_later(0.001, run_nested, "timer")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with theirs:
            transport, _ = await loop.create_connection(Nesting, sock=ours)
            await loop.sock_sendall(theirs, b"question")
            assert await loop.sock_recv(theirs, 100) == b"question"
            transport.close()
        await asyncio.sleep(0.002)
        assert asyncio.current_task() is task
        return await converse()

    for debug in (False, True):
        outer.set_debug(debug)
        inner.set_debug(not debug)
        assert limited(outer, main()) == "conversed"
    assert sorted(kinds) == sorted(["task", "callback", "timer", "protocol"] * 2)
    assert surroundings() == (None, (None, None), 0, -1)


def test_a_loop_made_and_closed_in_a_callback_leaves_everything_as_it_was(makers):
    make_outer, make_inner = makers

    async def main():
        for _ in range(2):
            before = surroundings()
            inner = make_inner()
            assert nested(inner, converse()) == "conversed"
            inner.close()
            assert surroundings() == before
        return await converse()

    outer = make_outer()
    assert limited(outer, main()) == "conversed"
    outer.close()


def test_a_loop_runs_where_asyncios_python_functions_are_in_place(loop, monkeypatch):
    """As its own tests and debuggers do; what is native of asyncio knows of no running loop then."""
    for name in ("_set_running_loop", "_get_running_loop"):
        monkeypatch.setattr(events, name, getattr(events, f"_py_{name}"))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not loop.is_running()


def test_generators_are_ended_by_the_loop_they_began_in(loops):
    outer, inner = loops
    ended = []

    async def generate(name):
        try:
            yield name
        finally:
            await asyncio.sleep(0)
            ended.append((name, asyncio.get_running_loop()))

    async def begin(name):
        generator = generate(name)
        assert await anext(generator) == name
        return generator

    async def main():
        first = await begin("outer, before")
        left = nested(inner, begin("inner"))
        second = await begin("outer, after")
        del first, second, left
        await asyncio.sleep(0.01)
        nested(inner, asyncio.sleep(0.01))

    limited(outer, main())
    assert sorted(ended, key=lambda item: item[0]) == [
        ("inner", inner),
        ("outer, after", outer),
        ("outer, before", outer),
    ]


async def until(condition) -> None:
    """Woken by timers, so that a signal need not wake the loop."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def send(number) -> None:
    os.kill(os.getpid(), number)


def test_signals_reach_the_loop_that_asked_for_them(loops):
    outer, inner = loops
    heard = []

    async def inside():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, heard.append, "inner")
        send(signal.SIGUSR2)
        await until(lambda: "inner" in heard)
        send(signal.SIGUSR1)
        await asyncio.sleep(0.005)
        assert heard == ["inner"]  # the other's callbacks run when it does
        asyncio.current_task().add_done_callback(lambda _: send(signal.SIGUSR1))  # too late to be read here

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, heard.append, "outer")
        before = wakeup_fd()
        if isinstance(inner, stellane_loop.Loop):
            inner.add_signal_handler(signal.SIGUSR2, int)
            assert wakeup_fd() == before
        nested(inner, inside())
        if isinstance(inner, stellane_loop.Loop):
            assert wakeup_fd() == before
        await until(lambda: heard.count("outer") == 2)
        send(signal.SIGUSR1)
        await until(lambda: heard.count("outer") == 3)
        send(signal.SIGUSR2)  # kept until its loop runs
        await asyncio.sleep(0.005)
        nested(inner, until(lambda: heard.count("inner") == 2))
        inner.remove_signal_handler(signal.SIGUSR2)
        send(signal.SIGUSR1)
        await until(lambda: heard.count("outer") == 4)
        loop.remove_signal_handler(signal.SIGUSR1)
        if isinstance(outer, stellane_loop.Loop):
            assert wakeup_fd() not in (-1, inner._csock.fileno())  # it still runs

    limited(outer, main())
    assert wakeup_fd() == -1


@pytest.mark.parametrize("makers", ["ours in ours", "ours in asyncio's"], indirect=True)
def test_a_handler_that_another_loop_replaced_is_there_again(loops):
    outer, inner = loops
    heard = []

    async def inside():
        for name in ("replaced", "inner"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.append, name)
        send(signal.SIGUSR1)
        await until(lambda: heard)

    async def main():
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, heard.append, "outer")
        nested(inner, inside())
        assert heard == ["inner"]  # the last one that asked, as with asyncio
        inner.close()
        send(signal.SIGUSR1)
        await until(lambda: heard == ["inner", "outer"])
        loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    limited(outer, main())


def test_the_handler_of_the_inner_loop_outlives_that_of_the_outer(poller):
    heard = []
    outer, inner = (stellane_loop.new_event_loop(poller) for _ in range(2))
    outer.add_signal_handler(signal.SIGUSR1, heard.append, "outer")
    inner.add_signal_handler(signal.SIGUSR1, heard.append, "inner")
    outer.close()
    send(signal.SIGUSR1)
    limited(inner, until(lambda: heard == ["inner"]))
    inner.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert wakeup_fd() == -1


def test_a_wakeup_descriptor_that_was_closed_is_not_put_back(poller):
    first, second = (stellane_loop.new_event_loop(poller) for _ in range(2))
    first.add_signal_handler(signal.SIGUSR1, int)
    number = wakeup_fd()

    async def main():
        first.close()
        os.dup2(1, number)  # somebody else's by then

    limited(second, main())
    assert wakeup_fd() == -1
    os.close(number)

    async def close():
        ours.close()

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        signal.set_wakeup_fd(ours.fileno())
        limited(second, close())
    assert wakeup_fd() == -1
    second.close()


def test_a_wakeup_descriptor_that_somebody_set_meanwhile_stays(loop):
    async def main():
        signal.set_wakeup_fd(ours.fileno())

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        limited(loop, main())
        assert signal.set_wakeup_fd(-1) == ours.fileno()


def test_a_signal_leaves_the_system_calls_and_the_children_of_others_alone(loop):
    libc = ctypes.CDLL(None, use_errno=True)
    reading, writing = os.pipe()
    loop.add_signal_handler(signal.SIGUSR1, int)
    child = os.fork()
    if child == 0:  # where the loop is closed
        status = 1
        try:
            send(signal.SIGUSR1)
            status = 0
        finally:
            os._exit(status)
    threading.Timer(0.02, signal.pthread_kill, (threading.get_ident(), signal.SIGUSR1)).start()
    threading.Timer(0.05, os.write, (writing, b"x")).start()
    assert libc.read(reading, ctypes.create_string_buffer(1), 1) == 1
    os.close(reading)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("makers", ["ours in ours", "asyncio's in ours"], indirect=True)
def test_others_with_a_wakeup_descriptor_are_told_of_what_is_theirs(loops):
    """A signal that no loop has a handler for is not swallowed by one that runs."""
    outer, inner = loops
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno())
        handler = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:

            async def main():
                send(signal.SIGUSR1)
                nested(inner, asyncio.sleep(0.005))
                await asyncio.sleep(0.005)
                assert theirs.recv(10) == bytes([signal.SIGUSR1])
                asyncio.current_task().add_done_callback(lambda _: send(signal.SIGUSR1))

            limited(outer, main())
            assert theirs.recv(10) == bytes([signal.SIGUSR1])
            outer.add_signal_handler(signal.SIGUSR2, int)
            assert wakeup_fd() == ours.fileno()
            send(signal.SIGUSR2)
            outer.remove_signal_handler(signal.SIGUSR2)
            assert wakeup_fd() == ours.fileno()
        finally:
            signal.signal(signal.SIGUSR1, handler)
            assert signal.set_wakeup_fd(before) == ours.fileno()


def test_a_second_turn_of_a_loop_within_its_turn_is_refused(loop):
    """Below the poller's turn, where callbacks run, it would take away what that one has still to tell."""
    refused = []

    def attempt():
        for again in (loop._run_once, loop.run_forever, loop.close):
            with pytest.raises(RuntimeError) as refusal:
                again()
            refused.append(str(refusal.value))

    async def main():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            theirs.send(b"something to tell")
            attempt()
            transport.abort()
            await asyncio.sleep(0)

    limited(loop, main())
    loop.call_soon(attempt)
    loop._run_once()
    under_way, closing = "A turn of this event loop is under way", "Cannot close a running event loop"
    assert refused == [under_way, "This event loop is already running", closing, under_way, under_way, closing]
    assert limited(loop, converse()) == "conversed"
