"""Both ends of TLS connections, for the tests of what protocols are told."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from loop.tests.conftest import Transcript


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


class Echo(Recorder):
    """Answers each piece with itself."""

    def data_received(self, data):
        super().data_received(data)
        self.transport.write(data)


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
