"""In which turn a stream transport tells what, beside the tasks that wait for it."""

from __future__ import annotations

import asyncio
import socket

from loop.tests.test_streams import Recorder, connected


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
