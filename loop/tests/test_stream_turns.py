"""In which turn a stream transport tells what, beside the tasks that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from loop.tests.test_streams import Recorder, connected


@contextlib.asynccontextmanager
async def connection():
    transport, protocol, peer = await connected()
    with peer:
        await asyncio.sleep(0.01)  # reading has begun, and the poll has nothing left to tell
        yield transport, protocol, peer
        transport.abort()
        await protocol.lost


def test_the_task_that_connects_has_its_transport_before_data_comes(run):
    seen = []

    class Reading(Recorder):
        def data_received(self, data):
            super().data_received(data)
            seen.append("data")

    async def main():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            theirs.send(b"x")
            transport, protocol = await asyncio.get_running_loop().create_connection(Reading, sock=ours)
            seen.append("connected")
            while not protocol.received:
                await asyncio.sleep(0.001)
            transport.abort()

    run(main())
    assert seen == ["connected", "data"]


def test_what_was_ready_before_the_end_was_read_runs_before_it_is_told(run):
    """So a task that the end of the handshake woke has its connection, though the peer ended it meanwhile."""

    async def main():
        loop = asyncio.get_running_loop()
        _, protocol, peer = await connected()
        await asyncio.sleep(0.01)
        peer.close()
        loop.call_soon(protocol.events.append, "ready")
        await protocol.lost
        assert protocol.events == ["made", "ready", "eof", "lost"]

    run(main())


def test_an_end_that_was_read_waits_while_reading_is_paused(run):
    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol, peer = await connected()
        await asyncio.sleep(0.01)
        peer.close()
        loop.call_soon(transport.pause_reading)
        await asyncio.sleep(0.01)
        assert protocol.events == ["made"]
        transport.resume_reading()
        transport.pause_reading()
        transport.resume_reading()
        await asyncio.wait_for(protocol.lost, 5)
        assert protocol.events == ["made", "eof", "lost"]

    run(main())


def test_an_end_that_was_read_is_not_told_after_close(run):
    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol, peer = await connected()
        await asyncio.sleep(0.01)
        peer.close()
        loop.call_soon(transport.close)
        await asyncio.wait_for(protocol.lost, 5)
        await asyncio.sleep(0.01)
        assert protocol.events == ["made", "lost"]

    run(main())


def test_what_was_ready_before_the_poll_runs_before_what_it_found_and_timers_come_then(run):
    """The order of asyncio: received bytes and ready descriptors stand behind what was scheduled before them."""

    async def main():
        loop = asyncio.get_running_loop()
        told = []
        turn = loop.create_future()

        def earlier():
            told.append("earlier")
            loop.call_soon(told.append, "scheduled by it")
            loop.call_soon(turn.set_result, None)

        def readable():
            loop.remove_reader(ours)
            told.append("readable")

        ours, theirs = socket.socketpair()
        async with connection() as (transport, protocol, peer):
            protocol.data_received = lambda data: told.append("data")
            transport.set_protocol(protocol)
            with ours, theirs:
                loop.add_reader(ours, readable)
                await asyncio.sleep(0.01)
                peer.send(b"x")
                theirs.send(b"x")
                loop.call_soon(earlier)
                loop.call_at(0, told.append, "timer")
                await turn
        assert told[0] == "earlier"
        assert sorted(told[1:3]) == ["data", "readable"]  # in the kernel's order
        assert told[3:] == ["timer", "scheduled by it"]

    run(main())


def test_what_received_bytes_wake_does_not_overtake_what_was_woken_before_them(run):
    """Else a task that answers at once has its answer told before a task that was woken earlier has looked."""

    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        async with connection() as (transport, protocol, peer):
            protocol.data_received = lambda data: loop.call_soon(seen.append, "woken by the bytes")
            transport.set_protocol(protocol)
            peer.send(b"x")
            loop.call_soon(loop.call_soon, seen.append, "woken before")
            while len(seen) < 2:
                await asyncio.sleep(0.001)
        assert seen == ["woken before", "woken by the bytes"]

    run(main())


def test_a_call_from_another_thread_runs_before_bytes_that_were_sent_after_it(run):
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        both = loop.create_future()

        def call_and_send(peer):
            loop.call_soon_threadsafe(seen.append, "call")
            peer.send(b"x")

        async with connection() as (transport, protocol, peer):
            protocol.data_received = lambda data: (seen.append("bytes"), both.set_result(None))
            transport.set_protocol(protocol)
            thread = threading.Thread(target=call_and_send, args=(peer,))
            thread.start()
            thread.join()  # the loop looks when both are there
            await both
        assert seen == ["call", "bytes"]

    run(main())


def test_each_turn_of_a_busy_loop_that_has_connections_polls_once(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with connection():
            polls = loop.statistics().polls
            for _ in range(50):
                await asyncio.sleep(0)
            assert loop.statistics().polls - polls == 50

    run(main())


def test_bytes_that_were_found_are_not_told_when_an_earlier_callback_pauses_or_closes(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with connection() as (pausing, paused, first_peer):
            closing, closed, second_peer = await connected()
            with second_peer:
                await asyncio.sleep(0.01)
                first_peer.send(b"x")
                second_peer.send(b"x")
                loop.call_soon(pausing.pause_reading)
                loop.call_soon(closing.close)
                await closed.lost
            await asyncio.sleep(0.01)
            assert (bytes(paused.received), bytes(closed.received)) == (b"", b"")
            pausing.resume_reading()
            while not paused.received:
                await asyncio.sleep(0.001)

    run(main())


def test_what_the_poll_found_is_not_lost_when_an_earlier_callback_ends_the_run(loop):
    def leave():
        raise SystemExit

    async def until_received(protocol):
        while not protocol.received:
            await asyncio.sleep(0.001)

    context = connection()
    _, protocol, peer = loop.run_until_complete(context.__aenter__())
    peer.send(b"x")
    ran = []
    loop.call_soon(leave)
    loop.call_soon(ran.append, "behind it")
    with pytest.raises(SystemExit):
        loop.run_forever()
    loop.run_until_complete(until_received(protocol))
    assert ran == ["behind it"]
    loop.run_until_complete(context.__aexit__(None, None, None))


def test_a_reader_that_is_set_after_the_wait_is_not_called_for_what_the_wait_found(run):
    """Who set it may have taken what was there, and it would find nothing."""

    async def main():
        loop = asyncio.get_running_loop()
        called = []
        ours, theirs = socket.socketpair()
        ours.setblocking(False)

        def take_and_replace():
            called.append(ours.recv(100))
            loop.add_reader(ours, lambda: called.append(ours.recv(100)))

        loop.set_exception_handler(lambda _, context: called.append(context["exception"]))
        with ours, theirs:
            loop.add_reader(ours, called.append, "replaced")
            theirs.send(b"first")
            loop.call_soon(take_and_replace)
            for _ in range(5):
                await asyncio.sleep(0)
            theirs.send(b"second")
            while len(called) < 2:
                await asyncio.sleep(0.001)
            loop.remove_reader(ours)
        assert called == [b"first", b"second"]

    run(main())


def test_a_writer_that_the_reader_replaces_is_called_in_the_next_turn(run):
    async def main():
        loop = asyncio.get_running_loop()
        called = []
        ours, theirs = socket.socketpair()

        def readable():
            called.append("reader")
            loop.remove_reader(ours)
            loop.add_writer(ours, writable)
            loop.call_soon(called.append, "next turn")

        def writable():
            called.append("new writer")
            loop.remove_writer(ours)

        with ours, theirs:
            theirs.send(b"x")
            loop.add_reader(ours, readable)
            loop.add_writer(ours, called.append, "writer")
            while "new writer" not in called:
                await asyncio.sleep(0.001)
        assert called[called.index("reader") :] == ["reader", "next turn", "new writer"]

    run(main())


def test_readers_are_counted_as_callbacks(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        called = []
        with ours, theirs:
            theirs.send(b"x")
            loop.measure_turns(True)
            loop.add_reader(ours, called.append, None)  # level-triggered: once a turn
            while len(called) < 50:
                await asyncio.sleep(0)
            loop.remove_reader(ours)
        assert loop.statistics().callbacks >= 90  # the reader, and the task

    run(main())


def test_both_halves_of_a_turn_are_measured_as_one(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with connection():
            loop.measure_turns(True)
            turns = loop.statistics().turns
            for _ in range(10):
                loop.call_soon(time.sleep, 0.0015)
                loop.call_at(0, time.sleep, 0.0015)
                await asyncio.sleep(0)
            measured = loop.statistics()
        assert sum(measured.turn_us_log2) == measured.turns - turns - 1
        assert measured.busy_s >= 18 * 0.0015
        assert sum(measured.turn_us_log2[12:]) >= 9  # 2,048 microseconds and longer, as both halves are together

    run(main())


def test_a_transport_that_is_closed_behind_the_last_write_of_a_run_is_lost_in_it(loop):
    async def main():
        transport, protocol, peer = await connected()
        await asyncio.sleep(0.01)
        transport.write(b"x")
        transport.close()
        return protocol, peer

    protocol, peer = loop.run_until_complete(main())
    with peer:
        assert protocol.events == ["made", "lost"]
        assert peer.recv(10) == b"x"
