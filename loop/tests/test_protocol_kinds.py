"""Which of a protocol's methods a stream transport calls: by asyncio's classes, else by what the protocol has."""

from __future__ import annotations

import asyncio
import contextvars
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


class TakesPieces(Bare):
    def __init__(self, kept: list[bytes]) -> None:
        super().__init__()
        self.kept = kept
        self.received = 0

    def data_received(self, data):
        self.kept.append(data)
        self.received += len(data)


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


def test_memory_that_several_protocols_lent_in_one_turn_is_theirs_again(run):
    class Lending(asyncio.BufferedProtocol):
        def __init__(self):
            self.memory = bytearray(100)
            self.length = 0

        def get_buffer(self, sizehint):
            return self.memory

        def buffer_updated(self, nbytes):
            self.length += nbytes

    async def main():
        connections = [await connected(Lending) for _ in range(3)]
        for _, _, peer in connections:
            peer.send(b"hello")
        while not all(protocol.length for _, protocol, _ in connections):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        for transport, protocol, peer in connections:
            protocol.memory.clear()  # BufferError while it is exported
            transport.abort()
            peer.close()

    run(main())


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


def test_bytes_that_were_received_outlive_their_connection_and_those_that_follow(run):
    async def main():
        kept = []
        for number in range(40):
            transport, protocol, peer = await connected(lambda: TakesPieces(kept))
            with peer:
                peer.send(b"%03d" % number * 1000)
                while protocol.received < 3000:
                    await asyncio.sleep(0.001)
                transport.abort()
                await protocol.lost
        assert b"".join(kept) == b"".join(b"%03d" % number * 1000 for number in range(40))

    run(main())


def test_what_pause_writing_sets_its_writer_sees(run):
    """As with asyncio, where it is a plain call; written from elsewhere, it is the connection's context that is set."""
    variable = contextvars.ContextVar("variable", default="unset")

    class Pausing(TakesPieces):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(bytes(4_000_000))
            self.kept.append(variable.get())
            super().data_received(data)

        def pause_writing(self):
            variable.set("paused")

    async def main():
        seen = []
        transport, protocol, peer = await connected(lambda: Pausing(seen), buffer_bytes=4096)
        with peer:
            peer.send(b"x")
            while not protocol.received:
                await asyncio.sleep(0.001)
            transport.abort()
            await protocol.lost
        assert seen == ["paused", b"x"]
        assert variable.get() == "unset"

    run(main())
