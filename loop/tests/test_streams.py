"""Stream transports: what is written arrives as it was, in order, and the protocol hears of everything once."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import random
import socket
import struct

import pytest

from stellane_loop import Loop


class Recorder(asyncio.Protocol):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.received = bytearray()
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.events.append("made")
        self.transport = transport

    def data_received(self, data):
        if self.events[-1] != "data":
            self.events.append("data")
        self.received += data

    def eof_received(self):
        self.events.append("eof")

    def pause_writing(self):
        self.events.append("pause")

    def resume_writing(self):
        self.events.append("resume")

    def connection_lost(self, exc):
        self.events.append("lost")
        self.lost.set_result(exc)


async def connected(protocol_factory=Recorder, *, buffer_bytes=None):
    """A transport over one end of a TCP connection, and the other end as a non-blocking socket."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        peer, _ = listener.accept()
    if buffer_bytes:
        # Of the sender only: a receiver's small window makes TCP wait for its persist timer.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    client.setblocking(False)
    peer.setblocking(False)
    transport, protocol = await loop.create_connection(protocol_factory, sock=client)
    return transport, protocol, peer


async def read_exactly(peer: socket.socket, length: int, *, or_raise: bool = False) -> bytes:
    """What comes, up to `length` bytes or the end of the file."""
    loop, received = asyncio.get_running_loop(), bytearray()
    while len(received) < length and (piece := await loop.sock_recv(peer, 1 << 16)):
        received += piece
    if or_raise and len(received) < length:
        raise asyncio.IncompleteReadError(bytes(received), length)
    return bytes(received)


def test_a_transport_is_one_of_asyncios(run):
    async def main():
        transport, _, peer = await connected()
        with peer:
            assert isinstance(transport, asyncio.Transport)
            sock = transport.get_extra_info("socket")
            assert isinstance(sock, asyncio.trsock.TransportSocket)
            assert sock.getpeername() == transport.get_extra_info("peername") == peer.getsockname()
            assert transport.get_extra_info("sockname") == peer.getpeername()
            assert transport.get_extra_info("nothing", "default") == "default"
            transport.abort()

    run(main())


def test_a_bytearray_changed_after_write_is_sent_as_it_was(run):
    async def main():
        transport, _, peer = await connected(buffer_bytes=4096)
        with peer:
            first = bytearray(b"a" * 1_000_000)
            second = bytearray(b"b" * 1_000_000)
            transport.write(first)
            transport.write(memoryview(second))
            first[:] = b"x" * len(first)
            second[:] = b"x" * len(second)
            first.clear()  # BufferError while something held on to its memory
            second.clear()
            assert await read_exactly(peer, 2_000_000) == b"a" * 1_000_000 + b"b" * 1_000_000
            transport.close()

    run(main())


def test_writes_of_several_writers_arrive_in_order_through_small_buffers(run):
    async def main():
        transport, _, peer = await connected(buffer_bytes=1)
        randomness = random.Random(3)
        sent = hashlib.sha256()
        total = 0

        def write(size):
            nonlocal total
            data = randomness.randbytes(size)
            sent.update(data)
            total += size
            kind = randomness.randrange(4)
            if kind == 0:
                transport.write(data)
            elif kind == 1:
                transport.write(bytearray(data))
            elif kind == 2:
                transport.write(memoryview(data))
            else:
                transport.writelines([data[:1], memoryview(data)[1 : size // 2], bytearray(data[size // 2 :]), b""])

        async def writer():
            for _ in range(100):
                write(randomness.randrange(1, 60_000))
                await asyncio.sleep(0)

        with peer:
            writers = asyncio.gather(writer(), writer(), writer())
            received = hashlib.sha256()
            count = 0
            await asyncio.sleep(0)
            while not writers.done() or count < total:
                piece = await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
                received.update(piece)
                count += len(piece)
            assert received.digest() == sent.digest()
            transport.close()

    run(main())


def test_more_pieces_than_one_system_call_takes(run):
    async def main():
        transport, _, peer = await connected()
        with peer:
            pieces = [bytes([number % 256]) * (number % 7) for number in range(5000)]
            transport.writelines(pieces)
            expected = b"".join(pieces)
            assert await read_exactly(peer, len(expected)) == expected
            transport.close()

    run(main())


def test_close_sends_what_is_queued_and_connection_lost_comes_once(run):
    async def main():
        transport, protocol, peer = await connected(buffer_bytes=4096)
        with peer:
            transport.write(b"z" * 500_000)
            transport.close()
            transport.close()
            assert transport.is_closing()
            assert await read_exactly(peer, 1_000_000) == b"z" * 500_000
            assert await protocol.lost is None
            transport.abort()
            await asyncio.sleep(0.01)
            assert protocol.events.count("lost") == 1
            assert transport.get_protocol() is None

    run(main())


def test_abort_drops_what_is_queued(run):
    async def main():
        transport, protocol, peer = await connected(buffer_bytes=4096)
        with peer:
            transport.write(b"z" * 5_000_000)
            transport.abort()
            assert await protocol.lost is None
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await read_exactly(peer, 5_000_000, or_raise=True)
            assert protocol.events == ["made", "pause", "lost"]

    run(main())


def test_an_idle_connection_that_is_closed_tells_its_peer_at_once(run):
    async def main():
        transport, _, peer = await connected()
        with peer:
            await asyncio.sleep(0.01)  # a receive is pending by now
            transport.close()
            assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, 10), 1) == b""

    run(main())


def test_a_reset_is_told_with_its_error(run):
    async def main():
        transport, protocol, peer = await connected()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        assert isinstance(await asyncio.wait_for(protocol.lost, 5), ConnectionResetError)
        assert protocol.events == ["made", "lost"]
        for _ in range(10):
            transport.write(b"nobody")  # warns in the log, raises nothing

    run(main())


def test_eof_keeps_the_writing_half_open_when_the_protocol_says_so(run):
    class HalfOpen(Recorder):
        def eof_received(self):
            super().eof_received()
            return True

    async def main():
        transport, protocol, peer = await connected(HalfOpen)
        with peer:
            peer.send(b"question")
            peer.shutdown(socket.SHUT_WR)
            while "eof" not in protocol.events:
                await asyncio.sleep(0.001)
            assert protocol.received == b"question"
            transport.write(b"answer")
            transport.write_eof()
            with pytest.raises(RuntimeError, match="write_eof"):
                transport.write(b"more")
            assert await read_exactly(peer, 100) == b"answer"
            transport.close()
            await protocol.lost
            assert protocol.events == ["made", "data", "eof", "lost"]

    run(main())


def test_write_eof_waits_for_what_is_queued(run):
    async def main():
        transport, _, peer = await connected(buffer_bytes=4096)
        with peer:
            transport.write(b"a" * 300_000)
            transport.write(b"b" * 300_000)
            transport.write_eof()
            assert await read_exactly(peer, 1_000_000) == b"a" * 300_000 + b"b" * 300_000
            transport.close()

    run(main())


def test_paused_reading_delivers_nothing_and_resumed_reading_everything(run):
    async def main():
        transport, protocol, peer = await connected()
        with peer:
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            peer.send(b"x" * 1000)
            await asyncio.sleep(0.02)
            assert not protocol.received
            transport.resume_reading()
            while len(protocol.received) < 1000:
                await asyncio.sleep(0.001)
            transport.abort()

    run(main())


def test_pausing_inside_data_received_holds_the_rest_back(run):
    class OneAtATime(Recorder):
        def data_received(self, data):
            super().data_received(data)
            self.transport.pause_reading()

    async def main():
        transport, protocol, peer = await connected(OneAtATime)
        with peer:
            peer.send(b"first")
            while protocol.received != b"first":
                await asyncio.sleep(0.001)
            peer.send(b"second")
            await asyncio.sleep(0.02)
            assert protocol.received == b"first"
            transport.resume_reading()
            while protocol.received != b"firstsecond":
                await asyncio.sleep(0.001)
            transport.abort()

    run(main())


def test_flow_control_keeps_its_limits(run):
    async def main():
        transport, protocol, peer = await connected(buffer_bytes=4096)
        with peer:
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
            transport.set_write_buffer_limits(high=1000, low=100)
            with pytest.raises(ValueError, match="high"):
                transport.set_write_buffer_limits(high=1, low=2)
            while transport.get_write_buffer_size() <= 1000:
                transport.write(b"w" * 1000)
            assert protocol.events == ["made", "pause"]
            while "resume" not in protocol.events:
                await asyncio.get_running_loop().sock_recv(peer, 1 << 16)
            assert transport.get_write_buffer_size() <= 100
            transport.abort()

    run(main())


def test_a_buffered_protocol_receives_into_its_own_memory(run):
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self):
            self.memory = bytearray(100)
            self.received = bytearray()

        def get_buffer(self, sizehint):
            return self.memory

        def buffer_updated(self, nbytes):
            self.received += self.memory[:nbytes]

    async def main():
        transport, protocol, peer = await connected(Buffered)
        with peer:
            sent = random.Random(5).randbytes(100_000)
            await asyncio.get_running_loop().sock_sendall(peer, sent)
            while len(protocol.received) < len(sent):
                await asyncio.sleep(0.001)
            assert protocol.received == sent
            await asyncio.sleep(0.01)
            protocol.memory.clear()  # BufferError while the transport held on to it between turns
            transport.abort()

    run(main())


def test_set_protocol_switches_between_both_kinds(run):
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self):
            self.memory = bytearray(10)
            self.received = bytearray()

        def get_buffer(self, sizehint):
            return self.memory

        def buffer_updated(self, nbytes):
            self.received += self.memory[:nbytes]

    async def main():
        loop = asyncio.get_running_loop()
        transport, protocol, peer = await connected()
        with peer:
            await loop.sock_sendall(peer, b"one")
            while protocol.received != b"one":
                await asyncio.sleep(0.001)
            buffered = Buffered()
            transport.set_protocol(buffered)
            await loop.sock_sendall(peer, b"two and more than ten")
            while buffered.received != b"two and more than ten":
                await asyncio.sleep(0.001)
            transport.set_protocol(protocol)
            await loop.sock_sendall(peer, b"three")
            while protocol.received != b"onethree":
                await asyncio.sleep(0.001)
            transport.abort()

    run(main())


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
def test_a_protocol_that_fails_loses_its_connection_and_is_reported(run, method):
    async def main():
        reports = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context))
        failing = type("Failing", (Recorder,), {method: lambda *_: 1 / 0})
        _, protocol, peer = await connected(failing)
        with peer:
            peer.send(b"x") if method == "data_received" else peer.shutdown(socket.SHUT_WR)
            assert isinstance(await asyncio.wait_for(protocol.lost, 5), ZeroDivisionError)
            assert method in reports[0]["message"]

    run(main())


def test_a_keyboard_interrupt_in_a_protocol_leaves_run_forever(loop: Loop):
    class Interrupting(asyncio.Protocol):
        def data_received(self, data):
            raise KeyboardInterrupt

    ours, theirs = socket.socketpair()
    with theirs:
        transport, _ = loop.run_until_complete(loop.create_connection(Interrupting, sock=ours))
        theirs.send(b"x")
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        transport.abort()
        loop.run_until_complete(asyncio.sleep(0.01))


def test_a_unix_socket_that_sends_descriptors_along_loses_no_bytes(run):
    """A message with descriptors ends a receive early, with more behind it."""

    async def main():
        ours, theirs = socket.socketpair()
        _, protocol = await asyncio.get_running_loop().create_connection(Recorder, sock=ours)
        with theirs:
            for number in range(20):
                socket.send_fds(theirs, [b"%02d" % number], [theirs.fileno()])
            while len(protocol.received) < 40:
                await asyncio.sleep(0.001)
            assert protocol.received == b"".join(b"%02d" % number for number in range(20))
            protocol.transport.abort()

    run(main())


def test_a_connection_has_one_context_from_its_making_on(run):
    variable = contextvars.ContextVar("variable", default="unset")

    async def main():
        seen = []

        class Reading(Recorder):
            def data_received(self, data):
                super().data_received(data)
                seen.append(variable.get())

        variable.set("made here")
        transport, _, peer = await connected(Reading)
        variable.set("changed since")
        with peer:
            peer.send(b"x")
            while not seen:
                await asyncio.sleep(0.001)
            assert seen == ["made here"]
            transport.abort()

    run(main())


def test_buffers_and_flow_control_are_in_the_context_of_the_transport(run):
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []

    class Echo(asyncio.BufferedProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def get_buffer(self, sizehint):
            seen.append(("get_buffer", variable.get()))
            return bytearray(10)

        def buffer_updated(self, nbytes):
            self.transport.write(bytes(1_000_000))  # within the context, which can not be entered again

        def pause_writing(self):
            seen.append(("pause_writing", variable.get()))

        def resume_writing(self):
            seen.append(("resume_writing", variable.get()))

    async def main():
        variable.set("made here")
        transport, _, peer = await connected(Echo, buffer_bytes=4096)
        variable.set("changed since")
        with peer:
            transport.write(bytes(1_000_000))  # without
            await read_exactly(peer, 1_000_000)
            await asyncio.get_running_loop().sock_sendall(peer, b"x")
            await read_exactly(peer, 1_000_000)
            transport.abort()

    run(main())
    assert {called for called, _ in seen} == {"get_buffer", "pause_writing", "resume_writing"}
    assert [called for called, _ in seen].count("pause_writing") == 2
    assert {value for _, value in seen} == {"made here"}
