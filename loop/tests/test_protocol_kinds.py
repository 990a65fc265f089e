"""Which of a protocol's methods a stream transport calls: by asyncio's classes, else by what the protocol has."""

from __future__ import annotations

import asyncio
import socket

from loop.tests.test_streams import connected


class Bare(asyncio.BaseProtocol):
    """Neither asyncio.Protocol nor asyncio.BufferedProtocol."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc):
        self.lost.set_result(exc)


class LendsMemory(Bare):
    def __init__(self) -> None:
        super().__init__()
        self.memory = bytearray(100)
        self.received = bytearray()

    def get_buffer(self, sizehint):
        return self.memory

    def buffer_updated(self, nbytes):
        self.received += self.memory[:nbytes]

    def eof_received(self):
        return False


class TakesBytes(LendsMemory):
    def data_received(self, data):
        self.received += data.upper()


async def told(factory) -> Bare:
    """The protocol, after its peer said "hello" and left."""
    _, protocol, peer = await connected(factory)
    with peer:
        peer.send(b"hello")
        peer.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(protocol.lost, 10)
    return protocol


def test_a_protocol_that_only_lends_memory_is_given_its_bytes_there(run):
    assert run(told(LendsMemory)).received == b"hello"


def test_a_protocol_of_neither_class_with_both_methods_takes_bytes(run):
    """As with asyncio, where only a BufferedProtocol is asked for memory."""
    assert run(told(TakesBytes)).received == b"HELLO"


def test_a_protocol_that_can_not_receive_may_connect_and_fails_with_the_first_bytes(run):
    async def main():
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        protocol = await told(Bare)
        assert isinstance(protocol.lost.result(), AttributeError)
        assert reports[0]["message"] == "Fatal error: protocol.data_received() call failed."

    run(main())


def test_small_writes_are_not_held_back_by_tcp_whoever_made_the_socket(run):
    """A socket that is made without naming the protocol has 0 there, and is TCP all the same."""

    async def main():
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.bind(("127.0.0.1", 0))
        accepted = loop.create_future()

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport):
                accepted.set_result(transport)

        server = await loop.create_server(Accepted, sock=listener)
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        await loop.sock_connect(client, listener.getsockname())
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=client)
        for end in (transport, await accepted):
            assert end.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            end.abort()
        server.close()

    run(main())
