"""A loop built in one thread and run in another; the interpreter's lock; signals; forks; the end of the interpreter."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import stellane_loop


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


def ask(address, question=b"question") -> bytes:
    with socket.create_connection(address, timeout=5) as client:
        client.sendall(question)
        return client.recv(100)


def test_a_server_made_here_serves_in_another_thread_and_here_again(loop):
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()
    for _ in range(3):
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        for _ in range(30):
            assert ask(address) == b"question"
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        assert not thread.is_alive()
        answer = loop.run_in_executor(None, ask, address, b"here")
        assert loop.run_until_complete(answer) == b"here"
    server.close()
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.run_until_complete(loop.shutdown_default_executor())


def test_a_connection_survives_the_move_to_another_thread(loop):
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    with socket.create_connection(server.sockets[0].getsockname(), timeout=5) as client:
        client.sendall(b"one")
        loop.run_until_complete(asyncio.sleep(0.05))
        assert client.recv(10) == b"one"
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        client.sendall(b"two")
        assert client.recv(10) == b"two"
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        client.sendall(b"three")
        loop.run_until_complete(asyncio.sleep(0.05))
        assert client.recv(10) == b"three"
    server.close()
    loop.run_until_complete(asyncio.sleep(0.05))


def test_the_ring_is_registered_with_a_thread_for_as_long_as_it_runs_there(loop):
    """Each long run costs two system calls besides its waits, one when it begins and one when it ends."""
    if loop.poller_name != "io_uring":
        return

    async def turns(number):
        for _ in range(number):
            await asyncio.sleep(0)

    def cost(number):
        before = loop.statistics()
        loop.run_until_complete(turns(number))
        after = loop.statistics()
        return (after.system_calls - after.waits) - (before.system_calls - before.waits)

    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(ours, print)  # so that each turn polls
        cost(1)
        assert [cost(10), cost(200), cost(10), cost(200)] == [0, 2, 0, 2]
        loop.remove_reader(ours)


def test_other_threads_run_while_the_loop_waits(run):
    ticks, stop = 0, threading.Event()

    def tick():
        nonlocal ticks
        while not stop.wait(0.001):
            ticks += 1

    async def main():
        await asyncio.sleep(1)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        run(main())
    finally:
        stop.set()
        thread.join()
    assert ticks > 300  # at most 1000; a loop that waits with the lock held leaves one


def test_a_busy_loop_keeps_the_lock_while_other_threads_are_busy(run):
    """Given up for a poll that does not wait, the lock would come back after a switch interval, in every turn."""
    interval_s, turns, stop = 0.05, 200, threading.Event()

    def compute():
        while not stop.is_set():
            sum(range(1000))

    async def main():
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
            start_s = time.monotonic()
            for _ in range(turns):  # each with a poll: there is a connection
                await asyncio.sleep(0)
            took_s = time.monotonic() - start_s
            transport.abort()
            return took_s

    before_s = sys.getswitchinterval()
    threads = [threading.Thread(target=compute) for _ in range(2)]
    sys.setswitchinterval(interval_s)
    try:
        for thread in threads:
            thread.start()
        took_s = run(main())
    finally:
        stop.set()
        sys.setswitchinterval(before_s)
        for thread in threads:
            thread.join()
    assert took_s < turns * interval_s / 2


def test_a_running_loop_refuses_to_run_again(run):
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()
        assert loop.is_running()
        await asyncio.sleep(0)

    run(main())


def test_signals_reach_their_handler_while_the_loop_waits(run):
    async def main():
        loop = asyncio.get_running_loop()
        seen = asyncio.Queue()
        loop.add_signal_handler(signal.SIGUSR1, seen.put_nowait, "usr1")
        for _ in range(200):
            timer = threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            await asyncio.wait_for(seen.get(), 5)
            timer.join()
        best_s = 5.0  # of several: a busy machine makes any one late
        for _ in range(20):
            start_s = loop.time()
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(seen.get(), 5)
            best_s = min(best_s, loop.time() - start_s)
        assert best_s < 0.05
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)

    run(main())


def test_a_plain_signal_handler_runs_while_the_loop_waits(run):
    async def main():
        loop, seen = asyncio.get_running_loop(), asyncio.Event()
        before = signal.signal(signal.SIGUSR1, lambda *_: loop.call_soon_threadsafe(seen.set))
        try:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            await asyncio.wait_for(seen.wait(), 5)
        finally:
            signal.signal(signal.SIGUSR1, before)

    run(main())


def test_ctrl_c_cancels_the_main_task(poller):
    cancelled = []

    async def main():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    with (
        pytest.raises(KeyboardInterrupt),
        asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(poller)) as runner,
    ):
        runner.run(main())
    assert cancelled == [True]


def test_the_wakeup_descriptor_of_others_is_restored(loop):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        before = signal.set_wakeup_fd(ours.fileno())
        try:
            loop.run_until_complete(asyncio.sleep(0))
            loop.add_signal_handler(signal.SIGUSR1, lambda: None)
            loop.run_until_complete(asyncio.sleep(0))
            loop.remove_signal_handler(signal.SIGUSR1)
            loop.run_until_complete(asyncio.sleep(0))
        finally:
            found = signal.set_wakeup_fd(before)
        assert found == ours.fileno()


def run_program(program: str, poller: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-X", "dev", "-c", program, poller]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, **options)


FORKS = """
import asyncio, os, socket, sys, warnings
import stellane_loop
warnings.simplefilter("ignore", DeprecationWarning)

class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(data)

async def talk(address, times):
    reader, writer = await asyncio.open_connection(*address)
    for number in range(times):
        writer.write(b"%04d" % number)
        assert await reader.readexactly(4) == b"%04d" % number
    writer.close()
    await writer.wait_closed()

async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    talking = asyncio.create_task(talk(address, 2000))
    await asyncio.sleep(0.01)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            try:
                loop.call_soon(print)
            except RuntimeError:
                with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(sys.argv[1])) as runner:
                    runner.run(talk(address, 100))
                status = 0
        finally:
            os._exit(status)
    await talking
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
        await asyncio.sleep(0.001)
    assert os.waitstatus_to_exitcode(status) == 0, status
    await talk(address, 100)
    server.close()
    print("both went on")

with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(sys.argv[1])) as runner:
    runner.run(main())
"""


def test_a_forked_child_uses_a_loop_of_its_own_and_leaves_its_parents_alone(poller):
    done = run_program(FORKS, poller)
    assert done.stdout == "both went on\n", done.stderr


SIGNAL_TO_A_CHILD = """
import concurrent.futures, logging, os, random, signal, sys, threading, time, warnings
registered = os.register_at_fork
os.register_at_fork = lambda **_: None
import asyncio  # without its own hook, which Python 3.11 does not have
os.register_at_fork = registered
import stellane_loop
warnings.simplefilter("ignore", DeprecationWarning)

async def main():
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print, "the parent's handler ran")
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        time.sleep(20)
        os._exit(1)
    await asyncio.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    await asyncio.sleep(0.05)

with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(sys.argv[1])) as runner:
    runner.run(main())
"""


def test_a_signal_to_a_forked_child_leaves_its_parents_handlers_alone(poller):
    done = run_program(SIGNAL_TO_A_CHILD, poller)
    assert done.stdout in ("0\n", "-15\n"), done.stderr  # it may end before it has a handler of its own


LIVE_AT_EXIT = """
import asyncio, sys
import stellane_loop

class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport

loop = stellane_loop.new_event_loop(sys.argv[1])
server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
connection = loop.run_until_complete(asyncio.open_connection(*server.sockets[0].getsockname()))
loop.call_later(100, print)
loop.call_soon(print)
print("leaving")
"""


def test_the_interpreter_ends_with_a_live_loop(poller):
    done = run_program(LIVE_AT_EXIT, poller)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "leaving\n"
    assert "ResourceWarning: unclosed event loop" in done.stderr


EXIT_IN_CALLBACK = """
import asyncio, sys, threading, time
import stellane_loop

async def main():
    threading.Thread(target=time.sleep, args=(0.2,), daemon=True).start()
    asyncio.get_running_loop().call_soon(sys.exit, 7)
    await asyncio.sleep(30)

with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(sys.argv[1])) as runner:
    runner.run(main())
"""


def test_sys_exit_in_a_callback_ends_the_program_with_its_status(poller):
    assert run_program(EXIT_IN_CALLBACK, poller).returncode == 7


def test_an_idle_loop_uses_no_processor(run):
    async def main():
        await asyncio.sleep(0.1)
        start_s = time.process_time()
        await asyncio.sleep(1)
        assert time.process_time() - start_s < 0.05

    run(main())
