"""TLS by protocols: what they are told is what asyncio's own loop tells them, by the short way and beside it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from loop.tests.conftest import Transcript
from loop.tests.tls_peers import Echo, Manual, Recorder, end, failures, pair

WRITES: dict[str, Callable[[asyncio.Transport], Any]] = {
    "bytes": lambda transport: transport.write(b"abc"),
    "bytearray": lambda transport: transport.write(bytearray(b"abc")),
    "memoryview": lambda transport: transport.write(memoryview(b"abc")),
    "nothing": lambda transport: transport.write(b""),
    "two records": lambda transport: transport.write(b"ab" * 16_000),
    "list": lambda transport: transport.writelines([b"ab", b"", b"c"]),
    "tuple": lambda transport: transport.writelines((b"ab", b"c")),
    "mixed": lambda transport: transport.writelines([b"ab", bytearray(b"cd"), memoryview(b"ef")]),
    "generator": lambda transport: transport.writelines(bytes([65 + number]) for number in range(5)),
    "no pieces": lambda transport: transport.writelines([]),
    "text": lambda transport: transport.write("abc"),
    "number": lambda transport: transport.writelines([b"ab", 5]),
}


@pytest.mark.parametrize("kind", WRITES)
def test_what_is_written_arrives_or_is_refused_as_asyncio_does(seen, tls, kind):
    async def scenario() -> Transcript:
        failed = failures()
        ours, theirs, server = await pair(tls)
        raised = None
        try:
            WRITES[kind](ours.transport)
        except Exception as error:
            raised = type(error)
        with contextlib.suppress(TypeError):  # what is left of the pieces that were no bytes is tried again
            ours.transport.write(b"!")
        async with asyncio.timeout(10):
            while b"!" not in theirs.heard and not theirs.ended.done():
                await asyncio.sleep(0.001)
        heard = theirs.heard
        await end(server, ours, theirs)
        return [raised, heard, failed]

    seen(scenario)


def test_many_messages_answered_one_by_one_are_the_messages(seen, tls):
    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls, Echo)
        for number in range(300):
            message = bytes([number % 251]) * (number * 7 + 1)
            before = len(theirs.heard)
            theirs.transport.write(message)
            await theirs.hears(before + len(message))
            assert theirs.heard[before:] == message
        await end(server, ours, theirs)
        return [theirs.heard, ours.told, theirs.told]

    seen(scenario)


def test_data_and_the_end_in_one_segment_are_told_in_their_order(seen, tls):
    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls)
        theirs.transport.write(b"a" * 40_000)
        theirs.transport.write(b"b")
        theirs.transport.close()
        await asyncio.gather(ours.ended, theirs.ended)
        server.close()
        return [ours.heard, ours.told, theirs.told]

    heard, told, _ = seen(scenario)
    assert heard == b"a" * 40_000 + b"b"
    assert told == ["eof", ("lost", type(None))]


def test_a_writer_is_paused_and_resumed_and_nothing_is_lost(seen, tls):
    class Slow(Recorder):
        def connection_made(self, transport):
            super().connection_made(transport)
            transport.pause_reading()

    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls, Slow)
        message = bytes(range(256)) * 4096
        for _ in range(8):
            theirs.transport.write(message)
        paused = list(theirs.told)
        assert theirs.transport.get_write_buffer_size() > 0
        ours.transport.resume_reading()
        await ours.hears(8 * len(message))
        while theirs.told[-1] != "resume":
            await asyncio.sleep(0.001)
        theirs.transport.write(b"!")
        await ours.hears(8 * len(message) + 1)
        assert ours.heard == 8 * message + b"!"
        await end(server, ours, theirs)
        return [paused, theirs.told]

    paused, told = seen(scenario)
    assert paused == ["pause"]
    assert told[:2] == ["pause", "resume"]


@pytest.mark.parametrize("high", [0, 10])
def test_low_limits_of_writing_are_kept(seen, tls, high):
    """At 0 a writer is paused by each write, and resumed by what comes next."""

    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls, Echo)
        theirs.transport.write(b"abc")
        await theirs.hears(3)  # and the server's tickets for other sessions, which would resume it
        theirs.transport.set_write_buffer_limits(high=high)
        for number in range(2, 5):
            theirs.transport.write(b"abc")
            await theirs.hears(3 * number)
        assert theirs.heard == b"abc" * 4
        told = list(theirs.told)
        await end(server, ours, theirs)
        return told

    seen(scenario)


def test_who_is_told_of_the_end_may_still_answer(seen, tls):
    class Polite(Echo):
        def eof_received(self):
            self.transport.write(b"bye")

    async def scenario() -> Transcript:
        server = await asyncio.get_running_loop().create_server(Polite, "127.0.0.1", 0, ssl=tls[0])
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        client = Manual(tls[1], reader, writer)
        await client.until(client.tls.do_handshake)
        client.tls.write(b"hello")
        assert await client.until(client.tls.read) == b"hello"
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        heard = await client.until(client.tls.read)
        writer.close()
        server.close()
        return [heard]

    assert seen(scenario) == [b"bye"]


def test_what_is_no_record_ends_the_connection_as_on_asyncio(seen, tls):
    async def scenario() -> Transcript:
        failed = failures()
        ours, theirs, server = await pair(tls)
        theirs.transport._ssl_protocol._transport.write(b"this is no record at all")
        await asyncio.gather(ours.ended, theirs.ended)
        server.close()
        return [ours.heard, ours.told, failed]

    _, told, failed = seen(scenario)
    assert told == [("lost", ssl.SSLError)]
    assert failed == []  # an OSError is logged in debug mode only


def test_a_protocol_that_raises_ends_its_connection(seen, tls):
    class Broken(Recorder):
        def data_received(self, data):
            raise ZeroDivisionError

    async def scenario() -> Transcript:
        failed = failures()
        ours, theirs, server = await pair(tls, Broken)
        theirs.transport.write(b"abc")
        await asyncio.gather(ours.ended, theirs.ended)
        server.close()
        return [ours.told, failed]

    told, failed = seen(scenario)
    assert told == [("lost", ZeroDivisionError)]
    assert failed == [("Fatal error on SSL protocol", ZeroDivisionError)]


def test_another_protocol_may_take_over_and_lend_its_memory(seen, tls):
    class Lending(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.memory, self.heard = bytearray(7), b""

        def get_buffer(self, sizehint):
            return self.memory

        def buffer_updated(self, nbytes):
            self.heard += self.memory[:nbytes]

    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls)
        lending = Lending()
        theirs.transport.write(b"first")
        await ours.hears(5)
        ours.transport.set_protocol(lending)
        theirs.transport.write(b"second and third")
        while len(lending.heard) < 16:
            await asyncio.sleep(0.001)
        ours.transport.set_protocol(ours)
        theirs.transport.write(b"fourth")
        await ours.hears(11)
        await end(server, ours, theirs)
        return [ours.heard, lending.heard]

    assert seen(scenario) == [b"firstfourth", b"second and third"]


def test_a_write_to_who_is_gone_is_dropped(seen, tls):
    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls)
        transport = ours.transport
        await end(server, ours, theirs)
        transport.write(b"abc")
        transport.writelines([b"abc"])
        return [transport.is_closing(), ours.told]

    seen(scenario)
