"""What fails below the poll is told to the protocol, and an exit leaves the connection as it was."""

from __future__ import annotations

import asyncio
import socket

import pytest
from loop.tests.test_streams import Recorder, connected, read_exactly


def test_an_interrupt_in_get_buffer_leaves_a_connection_that_is_read_in_the_next_run(loop):
    class Lending(asyncio.BufferedProtocol):
        interrupt = True

        def __init__(self):
            self.memory = bytearray(100)

        def get_buffer(self, sizehint):
            if Lending.interrupt:
                Lending.interrupt = False
                raise KeyboardInterrupt
            return self.memory

        def buffer_updated(self, nbytes):
            loop.stop()

    ours, theirs = socket.socketpair()
    with theirs:
        transport, protocol = loop.run_until_complete(loop.create_connection(Lending, sock=ours))
        theirs.send(b"hello")
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert transport.is_reading()
        given_up = loop.call_later(5, loop.stop)
        loop.run_forever()
        given_up.cancel()
        assert protocol.memory.startswith(b"hello")
        transport.abort()
        loop.run_until_complete(asyncio.sleep(0.01))


def test_what_fails_when_a_send_is_over_ends_its_connection_and_not_the_loop(run):
    class Failing(asyncio.Future):
        def set_result(self, result):
            raise ZeroDivisionError

    async def main():
        loop = asyncio.get_running_loop()
        reports = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        transport, protocol, peer = await connected(buffer_bytes=4096)
        with peer:
            transport.write(bytes(3_000_000))
            loop.create_future = lambda: Failing(loop=loop)
            waiter = transport._make_empty_waiter()
            del loop.create_future
            while not protocol.lost.done():
                await loop.sock_recv(peer, 1 << 20)
            assert isinstance(protocol.lost.result(), ZeroDivisionError)
            assert isinstance(reports[0]["exception"], ZeroDivisionError)
            assert isinstance(waiter.exception(), ConnectionError)

    run(main())


def test_what_was_written_before_a_failure_or_an_abort_reaches_the_peer(run):
    """A refusal, say, from a protocol that gives up: asyncio sends it at once, a busy loop of ours later."""

    class Refusing(Recorder):
        def data_received(self, data):
            self.transport.write(b"refused ")
            self.transport.write(data)
            if data == b"abort":
                self.transport.abort()
            else:
                raise ZeroDivisionError

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        connections = [await connected(Refusing) for _ in range(8)]
        await asyncio.sleep(0.01)
        questions = [b"abort", b"fail"] * 4
        for question, (_, _, peer) in zip(questions, connections, strict=True):
            peer.send(question)
        for question, (_, protocol, peer) in zip(questions, connections, strict=True):
            with peer:
                assert await read_exactly(peer, 100) == b"refused " + question
            await protocol.lost

    run(main())
