"""TLS over stream transports where the network is at its worst."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import pytest
from loop.tests.leaks import settled


async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything, a byte a turn; then the end of it."""
    while data := await reader.read(1 << 16):
        for place in range(len(data)):
            writer.write(data[place : place + 1])
            await asyncio.sleep(0)
    writer.write_eof()


def test_records_that_arrive_byte_by_byte_are_whole_and_close_notify_is_told(run, tls):
    async def main() -> None:
        ended = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"<" + await reader.readuntil(b"!") + b">")
            ended.set_result(await reader.read())
            writer.close()

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(dribble(reader, onward_writer), dribble(onward_reader, writer))
            onward_writer.close()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls[0])
        port = server.sockets[0].getsockname()[1]
        proxy = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        idle = asyncio.get_running_loop().statistics().open
        reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname(), ssl=tls[1])
        question = bytes(range(34, 127)) * 20
        writer.write(question + b"!")
        assert await reader.readexactly(len(question) + 3) == b"<" + question + b"!>"
        writer.close()
        assert await asyncio.wait_for(ended, 10) == b""
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await settled(asyncio.get_running_loop(), idle)
        assert asyncio.get_running_loop().statistics().open == idle
        server.close()
        proxy.close()

    run(main())


async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chance: random.Random) -> None:
    """Everything, in pieces that know nothing of records."""
    while data := await reader.read(chance.choice((100, 1 << 16))):
        while data:
            size = chance.choice((1, 5, 700, 17_000, 60_000))
            writer.write(data[:size])
            data = data[size:]
            await asyncio.sleep(0)
    writer.write_eof()


def test_records_that_are_cut_anywhere_carry_every_byte_both_ways(run, tls):
    """With writes of more than a record, and readers that pause."""
    chance = random.Random(5)
    questions, answers = chance.randbytes(300_000), chance.randbytes(300_000)

    async def converse(reader, writer, ours: bytes, theirs: bytes) -> None:
        async def say() -> None:
            at = 0
            while at < len(ours):
                size = chance.choice((1, 100, 5_000, 16_384, 16_385, 70_000))
                writer.write(ours[at : at + size])
                at += size
                await writer.drain()

        _, heard = await asyncio.gather(say(), reader.readexactly(len(theirs)))
        assert heard == theirs

    async def main() -> None:
        ended = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await converse(reader, writer, answers, questions)
            ended.set_result(await reader.read())
            writer.close()

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward_reader, onward_writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await asyncio.gather(cut(reader, onward_writer, chance), cut(onward_reader, writer, chance))
            onward_writer.close()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=tls[0], limit=20_000)
        relay = await asyncio.start_server(pass_on, "127.0.0.1", 0)
        idle = asyncio.get_running_loop().statistics().open
        reader, writer = await asyncio.open_connection(*relay.sockets[0].getsockname(), ssl=tls[1], limit=20_000)
        await converse(reader, writer, questions, answers)
        writer.close()
        assert await asyncio.wait_for(ended, 10) == b""
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await settled(asyncio.get_running_loop(), idle)
        server.close()
        relay.close()

    run(main())


class Pausing(asyncio.Protocol):
    """Reads once in a while."""

    def __init__(self) -> None:
        self.heard = b""
        self.paused = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert not self.paused
        self.heard += data
        self.paused = True
        self.transport.pause_reading()
        asyncio.get_running_loop().call_later(0.005, self.resume)

    def resume(self) -> None:
        self.paused = False
        self.transport.resume_reading()


class Lending(asyncio.BufferedProtocol):
    """Names the memory for what it receives."""

    def __init__(self) -> None:
        self.heard = b""
        self.memory = bytearray(100)

    def connection_made(self, transport):
        self.transport = transport

    def get_buffer(self, sizehint):
        return self.memory

    def buffer_updated(self, nbytes):
        self.heard += self.memory[:nbytes]


@pytest.mark.parametrize("kind", [Pausing, Lending])
def test_a_protocol_that_pauses_or_lends_its_memory_gets_all_in_its_way(run, tls, kind):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        failures: list[dict] = []
        loop.set_exception_handler(lambda _loop, context: failures.append(context))
        made: list[Pausing | Lending] = []

        def make() -> Pausing | Lending:
            made.append(kind())
            return made[-1]

        server = await loop.create_server(make, "127.0.0.1", 0, ssl=tls[0])
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=tls[1])
        said = [bytes([number]) * (50 * number) for number in range(1, 20)]
        for record in said:
            writer.write(record)
            await asyncio.sleep(0.001)
        while len(made[0].heard) < sum(map(len, said)) and not failures:
            await asyncio.sleep(0.001)
        assert made[0].heard == b"".join(said)
        assert not failures
        made[0].transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        server.close()

    run(main())


def test_who_was_accepted_before_the_server_closed_is_greeted_afterwards(run, tls, poller):
    """Its handshake is a task of its own, which begins when the server has told everybody that it is closed."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict] = []
        idle = loop.statistics().open
        loop.set_exception_handler(lambda _loop, context: told.append(context))

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(5))
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=tls[0])
        await asyncio.sleep(0.01)
        peer = socket.create_connection(server.sockets[0].getsockname(), timeout=10)
        # It runs between the poll that finds the connection and what that poll would tell.
        loop.call_soon(server.close)
        await asyncio.sleep(0)
        await asyncio.wait_for(server.wait_closed(), 10)
        if poller == "epoll":  # nothing was accepted, and the kernel refuses what waited
            peer.close()
            return
        peer.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=peer, ssl=tls[1], server_hostname="127.0.0.1")
        writer.write(b"asked")
        assert await reader.read() == b"asked"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        await settled(loop, idle)
        assert told == []

    run(main())
