"""asyncio's StreamReader, which the loop feeds itself: to who reads it is asyncio's own, and to who changes it too."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import socket
import sys

import pytest

import stellane_loop


class Session:
    """A StreamReader of the loop under test and the other end of its connection, a blocking socket."""

    def __init__(self, reader, writer, peer):
        self.reader, self.writer, self.peer = reader, writer, peer

    async def heard(self, data: bytes) -> None:
        """Send `data` and wait until the reader holds no less than before it came."""
        held = len(self.reader._buffer) + len(data)
        self.peer.sendall(data)
        async with asyncio.timeout(10):
            while len(self.reader._buffer) < held and not self.reader._paused:
                await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def session(limit=2**16, reader_class=asyncio.StreamReader, protocol_class=asyncio.StreamReaderProtocol):
    loop = asyncio.get_running_loop()
    here, peer = socket.socketpair()
    reader = reader_class(limit=limit, loop=loop)
    transport, protocol = await loop.create_connection(lambda: protocol_class(reader, loop=loop), sock=here)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    peer.settimeout(10)
    with peer:
        try:
            yield Session(reader, writer, peer)
        finally:
            writer.close()
        while writer.transport.get_protocol() is not None:  # wait_closed() would raise what the test provoked
            await asyncio.sleep(0)


def frames_of_feeding(run, main) -> int:
    """How often asyncio's own feed_data was entered while main() ran."""
    entered = 0

    def count(frame, event, _argument) -> None:
        nonlocal entered
        entered += event == "call" and frame.f_code is FEED_DATA.__code__

    async def counted() -> None:
        sys.setprofile(count)
        try:
            await main()
        finally:
            sys.setprofile(None)

    run(counted())
    return entered


FEED_DATA = asyncio.StreamReader.feed_data


def test_it_is_fed_without_a_frame_of_python(run):
    async def main() -> None:
        async with session() as here:
            here.peer.sendall(b"line\nrest")
            assert await here.reader.readline() == b"line\n"
            here.peer.sendall(b"and more")
            assert await here.reader.readexactly(12) == b"restand more"
            here.peer.shutdown(socket.SHUT_WR)
            assert await here.reader.read() == b""
            assert here.reader.at_eof()

    assert frames_of_feeding(run, main) == 0


def test_a_reader_over_its_limit_pauses_its_transport_and_reads_on_when_there_is_room(run):
    async def main() -> None:
        async with session(limit=100) as here:
            await here.heard(b"a" * 200)
            assert not here.reader._paused
            await here.heard(b"b")
            assert here.reader._paused
            assert not here.writer.transport.is_reading()
            here.peer.sendall(b"c" * 300)
            assert await here.reader.readexactly(501) == b"a" * 200 + b"b" + b"c" * 300

    run(main())


def test_a_limit_that_is_raised_or_lowered_later_is_asyncios(run):
    async def main() -> None:
        async with session(limit=100) as here:
            here.reader._limit = 1000
            await here.heard(b"a" * 1500)
            assert not here.reader._paused
            with pytest.raises(asyncio.LimitOverrunError):
                await here.reader.readuntil(b"b")
            await here.heard(b"a" * 600)
            assert here.reader._paused

    run(main())


def test_one_who_stopped_waiting_loses_nothing(run):
    async def main() -> None:
        # By priority what was received comes before what is queued: the cancelled one has not run when the bytes come.
        asyncio.get_running_loop().set_ready_order(stellane_loop.PriorityOrder())
        async with session() as here:
            waiting = asyncio.ensure_future(here.reader.read(10))
            await asyncio.sleep(0.01)
            here.peer.sendall(b"kept")
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
            assert await here.reader.read(10) == b"kept"

    run(main())


def test_bytes_that_come_in_several_receives_wake_their_reader_once(run):
    """It runs after the poll, and the poll has found more than one receive takes."""
    sent = bytes(range(256)) * 2000

    async def main() -> None:
        async with session(limit=2**20) as here:
            waiting = asyncio.ensure_future(here.reader.readexactly(len(sent)))
            await asyncio.sleep(0)
            here.peer.settimeout(None)
            await asyncio.to_thread(here.peer.sendall, sent)
            assert await waiting == sent

    run(main())


def test_nobody_reads_any_more(run):
    """The connection is the writer's only: what comes is dropped, and harms nobody."""

    async def main() -> None:
        async with session() as here:
            await here.heard(b"first")
            here.writer._reader = here.reader = None
            gc.collect()
            here.peer.sendall(b"second")
            await asyncio.sleep(0.01)
            here.writer.write(b"answer")
            assert await asyncio.to_thread(here.peer.recv, 10) == b"answer"

    run(main())


class CountingReader(asyncio.StreamReader):
    fed = b""

    def feed_data(self, data):
        self.fed += data
        super().feed_data(data)


class CountingProtocol(asyncio.StreamReaderProtocol):
    received = b""

    def data_received(self, data):
        self.received += data
        super().data_received(data)


def test_a_class_of_ones_own_is_called(run):
    async def main() -> None:
        async with session(reader_class=CountingReader) as here:
            here.peer.sendall(b"data")
            assert await here.reader.readexactly(4) == here.reader.fed == b"data"
        async with session(protocol_class=CountingProtocol) as here:
            here.peer.sendall(b"data")
            assert await here.reader.readexactly(4) == here.writer.transport.get_protocol().received == b"data"

    run(main())


@pytest.mark.parametrize("patched", ["class", "object"])
@pytest.mark.parametrize("method", ["data_received", "feed_data", "_wakeup_waiter"])
def test_what_somebody_puts_in_the_place_of_a_method_is_called(run, monkeypatch, method, patched):
    kind = asyncio.StreamReaderProtocol if method == "data_received" else asyncio.StreamReader
    asyncios = getattr(kind, method)
    called: list[str] = []

    def instead(*arguments) -> None:
        called.append(method)
        asyncios(*arguments)

    def make(reader, loop) -> asyncio.StreamReaderProtocol:
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        patch = protocol if method == "data_received" else reader
        if patched == "class":
            monkeypatch.setattr(kind, method, instead)
        else:
            setattr(patch, method, functools.partial(instead, patch))
        return protocol

    async def main() -> None:
        async with session(protocol_class=make) as here:
            here.peer.sendall(b"data")
            assert await here.reader.readexactly(4) == b"data"
            assert called == [method]

    run(main())


def test_a_later_protocol_gets_what_comes_later(run):
    class Second(asyncio.Protocol):
        received = b""

        def data_received(self, data):
            self.received += data

    async def main() -> None:
        async with session() as here:
            await here.heard(b"first")
            second = Second()
            here.writer.transport.set_protocol(second)
            here.peer.sendall(b"second")
            async with asyncio.timeout(10):
                while second.received != b"second":
                    await asyncio.sleep(0)
            assert await here.reader.readexactly(5) == b"first"
            assert not here.reader._buffer

    run(main())


@pytest.mark.parametrize("obstacle", ["fed to its end", "its buffer is lent"])
def test_what_asyncio_can_not_feed_ends_the_connection_with_its_error(run, obstacle):
    async def main() -> None:
        told: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        async with session() as here:
            await here.heard(b"first")
            lent = memoryview(here.reader._buffer) if obstacle == "its buffer is lent" else here.reader.feed_eof()
            here.peer.sendall(b"second")
            async with asyncio.timeout(10):
                while not told:
                    await asyncio.sleep(0)
            assert here.writer.transport.is_closing()
            assert told[0]["message"] == "Fatal error: protocol.data_received() call failed."
            assert type(told[0]["exception"]) is (AssertionError if lent is None else BufferError)
            assert bytes(here.reader._buffer) == b"first"
            del lent

    run(main())
