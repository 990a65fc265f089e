"""TLS by protocols: what they are told is what asyncio's own loop tells them, by the short way and beside it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
from loop.tests.conftest import Transcript
from loop.tests.leaks import contexts


class Recorder(asyncio.Protocol):
    """Writes down what it is told, with what is received as one piece."""

    def __init__(self) -> None:
        self.told: Transcript = []
        self.heard = b""
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert type(data) is bytes
        self.heard += data

    def pause_writing(self):
        self.told.append("pause")

    def resume_writing(self):
        self.told.append("resume")

    def eof_received(self):
        self.told.append("eof")

    def connection_lost(self, exc):
        self.told.append(("lost", type(exc)))
        self.ended.set_result(None)

    async def hears(self, count: int) -> None:
        while len(self.heard) < count and not self.ended.done():
            await asyncio.sleep(0.001)


async def pair(tls, make=Recorder, **options) -> tuple[Any, Any, asyncio.Server]:
    """(the server's protocol, the client's, the server), connected."""
    loop = asyncio.get_running_loop()
    made = loop.create_future()

    def accepted():
        protocol = make()
        made.set_result(protocol)
        return protocol

    server = await loop.create_server(accepted, "127.0.0.1", 0, ssl=tls[0])
    port = server.sockets[0].getsockname()[1]
    _, client = await loop.create_connection(Recorder, "127.0.0.1", port, ssl=tls[1], **options)
    accepted_one = await made
    while not hasattr(accepted_one, "transport"):
        await asyncio.sleep(0.001)
    return accepted_one, client, server


async def end(server: asyncio.Server, *protocols: Any) -> None:
    for protocol in protocols:
        protocol.transport.abort()
    await asyncio.gather(*(protocol.ended for protocol in protocols))
    server.close()


def failures() -> list[tuple[str, type]]:
    """Where the loop's exception handler puts what it is told."""
    told: list[tuple[str, type]] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _loop, context: told.append((context["message"], type(context["exception"])))
    )
    return told


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


class Echo(Recorder):
    """Answers each piece with itself."""

    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


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


class Manual:
    """A client of TLS whose steps are ours."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")
        self.reader, self.writer = reader, writer

    def send(self) -> None:
        self.writer.write(self.outgoing.read())

    async def until(self, step: Callable[[], Any]) -> Any:
        """What the step returns, once OpenSSL has read enough for it."""
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self.send()
                received = await self.reader.read(1 << 16)
                assert received, "the server has closed the connection"
                self.incoming.write(received)
            else:
                self.send()
                return result


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


class Reluctant:
    """A connection of OpenSSL's that takes what it likes of each write: a renegotiation has it wait for the peer."""

    def __init__(self, tls, taken: list[int | None]) -> None:
        self.read, self.pending = tls.read, tls.pending
        self.tls, self.taken = tls, taken

    def write(self, data) -> int:
        most = self.taken.pop(0) if self.taken else len(data)
        if most is None:
            raise ssl.SSLWantReadError
        return self.tls.write(data[:most])


@pytest.mark.parametrize("taken", [[None], [3], [3, None, 2], [1] * 12])
def test_what_openssl_does_not_take_at_once_follows_in_order(run, tls, taken):
    async def main() -> None:
        ours, theirs, server = await pair(tls)
        protocol = ours.transport._ssl_protocol
        reluctant = Reluctant(protocol._sslobj, list(taken))
        protocol._know(reluctant, protocol._incoming, protocol._outgoing)
        protocol._sslobj = reluctant
        ours.transport.writelines([b"abcdefgh", b"ijk", b"lmnopqrstuv"])
        ours.transport.write(b"wx")
        ours.transport.write(b"yz")
        await theirs.hears(26)
        assert theirs.heard == b"abcdefghijklmnopqrstuvwxyz"
        assert ours.transport.get_write_buffer_size() == 0
        await end(server, ours, theirs)

    run(main())


def test_what_waits_for_the_peer_follows_what_the_peer_sends(run, tls):
    async def main() -> None:
        ours, theirs, server = await pair(tls)
        protocol = ours.transport._ssl_protocol
        reluctant = Reluctant(protocol._sslobj, [None, None])  # asyncio's way tries once more at once
        protocol._know(reluctant, protocol._incoming, protocol._outgoing)
        protocol._sslobj = reluctant
        ours.transport.write(b"abc")
        assert ours.transport.get_write_buffer_size() == 3
        theirs.transport.write(b"go on")
        await theirs.hears(3)
        assert theirs.heard == b"abc"
        assert ours.transport.get_write_buffer_size() == 0
        await end(server, ours, theirs)

    run(main())


def test_what_openssl_has_to_say_while_it_reads_is_sent(run, tls):
    """As the answer to a change of keys, which Python can not ask a peer for: a record stands in the way of one."""

    async def main() -> None:
        ours, theirs, server = await pair(tls)
        ours.transport._ssl_protocol._sslobj.write(b"abc")
        theirs.transport.write(b"change")
        await theirs.hears(3)
        assert theirs.heard == b"abc"
        await end(server, ours, theirs)

    run(main())


class Narrow:
    """In the place of an SSLObject, with what asyncio asks of one and no more."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        for name in ("do_handshake", "read", "write", "unwrap", "getpeercert", "cipher", "compression"):
            setattr(self, name, getattr(tls, name))


class Wide(ssl.SSLObject):
    """An SSLObject whose methods are somebody's."""

    writes = 0

    def write(self, data) -> int:
        Wide.writes += 1
        return super().write(data)


@pytest.mark.parametrize("kind", ["narrow", "wide"])
def test_a_context_may_make_objects_of_its_own(seen, tls, kind):
    def narrow(wrap):
        return lambda *arguments, **options: Narrow(wrap(*arguments, **options))

    async def scenario() -> Transcript:
        contexts_made = contexts()
        for context in contexts_made:
            if kind == "narrow":
                context.wrap_bio = narrow(context.wrap_bio)
            else:
                context.sslobject_class = Wide
        Wide.writes = 0
        ours, theirs, server = await pair(contexts_made, Echo)
        for number in range(1, 4):
            theirs.transport.write(b"a" * 20_000)
            await theirs.hears(number * 20_000)
        await end(server, ours, theirs)
        return [theirs.heard, Wide.writes]

    assert (seen(scenario)[1] > 0) == (kind == "wide")


def test_a_write_to_who_is_gone_is_dropped(seen, tls):
    async def scenario() -> Transcript:
        ours, theirs, server = await pair(tls)
        transport = ours.transport
        await end(server, ours, theirs)
        transport.write(b"abc")
        transport.writelines([b"abc"])
        return [transport.is_closing(), ours.told]

    seen(scenario)


def test_a_connection_holds_no_buffer_of_its_own(run, tls):
    async def main() -> None:
        ours, theirs, server = await pair(tls)
        theirs.transport.write(b"abc" * 10_000)
        await ours.hears(30_000)
        for protocol in (ours, theirs):
            assert len(protocol.transport._ssl_protocol._ssl_buffer) == 0
            assert protocol.transport._ssl_protocol.max_size == 256 * 1024
        await end(server, ours, theirs)

    run(main())


class SendsInItsOwnWay(socket.socket):
    """A socket whose methods are somebody's: the loop uses asyncio's transport for it."""

    def send(self, *arguments):
        return super().send(*arguments)


def test_tls_over_asyncios_transport_lends_it_memory(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls[0])
        own = SendsInItsOwnWay()
        own.setblocking(False)
        await loop.sock_connect(own, server.sockets[0].getsockname())
        _, client = await loop.create_connection(Recorder, sock=own, ssl=tls[1], server_hostname="127.0.0.1")
        assert type(client.transport._ssl_protocol._transport).__name__ == "_SelectorSocketTransport"
        client.transport.write(b"abc")
        await client.hears(3)
        assert client.heard == b"abc"
        client.transport.close()
        await client.ended
        server.close()

    run(main())


async def upgraded(tls, plain: bytes, make=Recorder) -> tuple[Any, Any, asyncio.Server]:
    """As pair, but begun in plain text, which both sides have read."""
    loop = asyncio.get_running_loop()
    made: list[Any] = []

    def accepted():
        made.append(make())
        return made[-1]

    server = await loop.create_server(accepted, "127.0.0.1", 0)
    _, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    client.transport.write(plain)
    while not made:
        await asyncio.sleep(0.001)
    await made[0].hears(len(plain))
    made[0].transport, client.transport = await asyncio.gather(
        loop.start_tls(made[0].transport, made[0], tls[0], server_side=True),
        loop.start_tls(client.transport, client, tls[1], server_hostname="127.0.0.1"),
    )
    return made[0], client, server


def test_a_plain_connection_becomes_one_of_tls(seen, tls):
    async def scenario() -> Transcript:
        ours, theirs, server = await upgraded(tls, b"STARTTLS")
        theirs.transport.write(b"q" * 20_000)
        await ours.hears(20_008)
        ours.transport.write(b"answer")
        await theirs.hears(6)
        theirs.transport.close()
        await asyncio.gather(ours.ended, theirs.ended)
        server.close()
        return [ours.heard, theirs.heard, ours.told, theirs.told]

    assert seen(scenario)[0] == b"STARTTLS" + b"q" * 20_000


def test_a_connection_upgraded_takes_the_short_way(run, tls):
    async def main() -> None:
        ours, theirs, server = await upgraded(tls, b"STARTTLS")
        theirs.transport.write(b"abc")
        await ours.hears(11)
        for protocol in (ours, theirs):
            assert len(protocol.transport._ssl_protocol._ssl_buffer) == 0
        await end(server, ours, theirs)

    run(main())


@pytest.mark.parametrize("context", [None, "no context", True])
def test_start_tls_refuses_what_is_no_context(seen, context):
    async def scenario() -> Transcript:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        with pytest.raises(TypeError, match="sslcontext is expected") as caught:
            await loop.start_tls(transport, client, context)
        await end(server, client)
        return [str(caught.value)]

    seen(scenario)


def test_a_handshake_that_fails_closes_what_was_plain(seen, tls):
    async def scenario() -> Transcript:
        failures()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        with pytest.raises(ConnectionAbortedError, match="handshake is taking longer") as caught:
            await loop.start_tls(transport, client, tls[1], ssl_handshake_timeout=0.05)
        assert transport.is_closing()
        server.close()
        return [str(caught.value)]

    seen(scenario)


def test_who_stops_waiting_for_the_handshake_closes_the_connection(seen, tls):
    async def scenario() -> Transcript:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.start_tls(transport, client, tls[1], server_hostname="127.0.0.1"), 0.05)
        assert transport.is_closing()
        server.close()
        return [client.told]

    seen(scenario)


def test_a_handshake_sent_with_the_last_of_the_plain_text_is_not_lost(run, tls):
    """The client does not wait for an answer to STARTTLS: its first message is read with it."""

    async def main() -> None:
        heard = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            while not reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)
            await writer.start_tls(tls[0])
            heard.set_result(await reader.readline())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        client = Manual(tls[1], reader, writer)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        writer.write(b"STARTTLS\n" + client.outgoing.read())
        await client.until(client.tls.do_handshake)
        client.tls.write(b"hello\n")
        client.send()
        assert await heard == b"hello\n"
        writer.close()
        server.close()

    run(main())
