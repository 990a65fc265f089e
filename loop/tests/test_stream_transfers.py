"""What is received comes whole and in order whatever its sizes; who waits for a send hears of it in an idle loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import threading

import pytest

SIZES = [
    1,
    300_000,
    40_000,
    *[100_000] * 6,
    1,
    2,
    *[500] * 12,
    200_000,
    *[70_000] * 3,
    3_000_000,
    16_384,
    65_536,
    262_144,
]


async def connected(protocol):
    """A transport for `protocol` and the other end as a blocking socket."""
    loop = asyncio.get_running_loop()
    ours, peer = socket.socketpair() if isinstance(protocol, UnixEcho) else tcp_pair()
    ours.setblocking(False)
    transport, _ = await loop.create_connection(lambda: protocol, sock=ours)
    peer.settimeout(20)
    return transport, peer


def tcp_pair():
    """Two connected TCP sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


def read_exactly(peer, count):
    """`count` bytes, blocking; fewer at the end of the file."""
    received = bytearray()
    while len(received) < count and (piece := peer.recv(count - len(received))):
        received += piece
    return bytes(received)


def converse(peer, sizes):
    """Send messages of these sizes, each after the last came back; whether all came back as they were."""
    right = True
    for size in sizes:
        message = random.Random(size).randbytes(size)
        sender = threading.Thread(target=peer.sendall, args=(message,))
        sender.start()
        right = read_exactly(peer, size) == message and right
        sender.join()
    return right


class Echo(asyncio.Protocol):
    """Writes what it gets, and keeps it for a while: memory that was lent must not be used twice."""

    def connection_made(self, transport):
        self.transport = transport
        self.kept = []

    def data_received(self, data):
        assert type(data) is bytes
        self.kept.append((data, hash(bytes(bytearray(data)))))
        self.transport.write(data)
        if len(self.kept) == 20:
            assert all(hash(bytes(bytearray(kept))) == known for kept, known in self.kept)
            self.kept.clear()


class UnixEcho(Echo):
    """The same over a Unix socket."""


class Buffered(asyncio.BufferedProtocol):
    """An echo through 50,000 bytes of its own."""

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = bytearray(50_000)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count):
        self.transport.write(self.buffer[:count])


class Pausing(Echo):
    """Stops reading at every piece, and goes on in a later turn."""

    def data_received(self, data):
        super().data_received(data)
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self.transport.resume_reading)


class Switching(Echo):
    """Becomes a BufferedProtocol in the middle of a message, and a Protocol again."""

    count = 0

    def data_received(self, data):
        super().data_received(data)
        self.count += 1
        if self.count % 5 == 0:
            other = Buffered()
            other.connection_made(self.transport)
            self.transport.set_protocol(other)
            asyncio.get_running_loop().call_later(0.001, self.back)

    def back(self):
        if not self.transport.is_closing():
            self.transport.set_protocol(self)


@pytest.mark.parametrize("protocol", [Echo, UnixEcho, Buffered, Pausing, Switching])
def test_messages_of_all_sizes_come_back_as_they_were(run, protocol):
    async def main():
        transport, peer = await connected(protocol())
        with peer:
            assert await asyncio.to_thread(converse, peer, SIZES)
            transport.abort()

    run(main())


def test_large_data_is_received_in_few_pieces(run):
    class Counting(Echo):
        pieces = 0

        def data_received(self, data):
            self.pieces += 1
            super().data_received(data)

    async def main():
        counting = Counting()
        transport, peer = await connected(counting)
        with peer:
            await asyncio.to_thread(converse, peer, [2_000_000] * 5)
            assert counting.pieces < 10_000_000 // 4096 // 4
            transport.abort()

    run(main())


class Answering(asyncio.Protocol):
    """Runs `answer` with the transport at the first data."""

    def __init__(self, answer):
        self.answer = answer

    def connection_made(self, transport):
        self.transport = transport
        self.resumed = asyncio.Event()
        self.resumed.set()

    def data_received(self, data):
        self.answer(self.transport)

    def pause_writing(self):
        self.resumed.clear()

    def resume_writing(self):
        self.resumed.set()


def ask(peer, count):
    """A question, and what came until `count` bytes or the end."""
    peer.sendall(b"question")
    return read_exactly(peer, count)


def write_and_close(transport):
    """HTTP/1.0."""
    transport.write(b"answer")
    transport.close()


def write_twice(transport):
    """A head and a body."""
    transport.write(b"ans")
    transport.write(b"wer")


def write_lines(transport):
    """In pieces, more than go in one call."""
    transport.write(b"a")
    transport.writelines([b"n", b"s"] + [b""] * 200 + [b"wer"])


def write_and_end(transport):
    """An end of file behind the answer."""
    transport.write(b"answer")
    transport.write_eof()


@pytest.mark.parametrize("answer", [write_and_close, write_and_end, write_twice, write_lines])
def test_an_answer_in_an_idle_loop_is_whole_and_soon(run, answer):
    """Nothing else happens in the loop until the peer has everything: only the send itself can bring it on."""

    async def main():
        transport, peer = await connected(Answering(answer))
        with peer:
            ends = answer in (write_and_close, write_and_end)
            assert await asyncio.to_thread(ask, peer, 1000 if ends else 6) == b"answer"
            transport.abort()

    run(main())


def test_a_paused_protocol_is_resumed_in_an_idle_loop(run):
    def answer(transport):
        transport.set_write_buffer_limits(high=3)
        transport.write(b"answer")

    async def main():
        protocol = Answering(answer)
        transport, peer = await connected(protocol)
        with peer:
            assert await asyncio.to_thread(ask, peer, 6) == b"answer"
            await protocol.resumed.wait()
            assert transport.get_write_buffer_size() == 0
            transport.abort()

    run(main())


def test_what_was_written_before_a_file_is_sent_before_it(run, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"file" * 1000)

    async def main():
        loop = asyncio.get_running_loop()
        transport, peer = await connected(Answering(lambda transport: None))
        with peer, path.open("rb") as file:
            transport.write(b"head")
            await loop.sendfile(transport, file)
            assert await asyncio.to_thread(read_exactly, peer, 4004) == b"head" + b"file" * 1000
            transport.abort()

    run(main())


@pytest.mark.parametrize("full", [False, True])
def test_a_transport_closed_under_sendfile_ends_the_file_and_the_connection(run, tmp_path, full):
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 64 << 20)

    async def main():
        loop = asyncio.get_running_loop()
        transport, peer = await connected(Answering(lambda transport: None))
        with peer, path.open("rb") as file:
            number = transport.get_extra_info("socket").fileno()
            if full:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        transport._sock.send(bytes(1 << 16))
            sending = asyncio.create_task(loop.sendfile(transport, file))
            while number not in loop._watched():  # it waits until more can be sent
                await asyncio.sleep(0.001)
            transport.abort()
            with pytest.raises(OSError, match=r"."):
                await asyncio.wait_for(sending, 5)
            assert number not in loop._watched()
            await asyncio.to_thread(read_to_the_end, peer)

    run(main())


def read_to_the_end(peer):
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(1 << 20):
            pass
