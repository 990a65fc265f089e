"""Echo servers, one for each way asyncio has to read and write."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path

HOST = "127.0.0.1"
BACKLOG = 2048
READ_BYTES = 131_072
"""What one read may return: more than the largest message, so that no loop is measured by our limit."""


class EchoProtocol(asyncio.Protocol):
    """Bytes are written as they come."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.write(data)


class BufferedEchoProtocol(asyncio.BufferedProtocol):
    """Bytes are received into one buffer of this connection.

    They are copied before they are written: a transport may keep what it is given, and the next
    read fills the buffer again.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.write = transport.write  # type: ignore[attr-defined]
        self.buffer = memoryview(bytearray(READ_BYTES))

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.write(bytes(self.buffer[:nbytes]))


async def serve_protocol(port: int, _directory: Path) -> None:
    """Echo by `asyncio.Protocol`."""
    await asyncio.get_running_loop().create_server(EchoProtocol, HOST, port, backlog=BACKLOG)


async def serve_buffered(port: int, _directory: Path) -> None:
    """Echo by `asyncio.BufferedProtocol`."""
    await asyncio.get_running_loop().create_server(BufferedEchoProtocol, HOST, port, backlog=BACKLOG)


class DatagramEchoProtocol(asyncio.DatagramProtocol):
    """A datagram is sent back to whom it came from."""

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.sendto = transport.sendto

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # type: ignore[override]
        self.sendto(data, addr)


async def serve_datagrams(port: int, _directory: Path) -> None:
    """Echo by `asyncio.DatagramProtocol`."""
    await asyncio.get_running_loop().create_datagram_endpoint(DatagramEchoProtocol, (HOST, port))


async def _echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve_streams(port: int, _directory: Path) -> None:
    """Echo by `StreamReader.read`, `StreamWriter.write` and `drain`."""
    await asyncio.start_server(_echo_stream, HOST, port, backlog=BACKLOG, limit=READ_BYTES)


async def _echo_socket(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := await loop.sock_recv(connection, READ_BYTES):
            await loop.sock_sendall(connection, data)


async def _accept_sockets(loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
    tasks = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setblocking(False)
        task = loop.create_task(_echo_socket(loop, connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


async def serve_sock(port: int, _directory: Path) -> None:
    """Echo by `sock_accept`, `sock_recv` and `sock_sendall`."""
    loop = asyncio.get_running_loop()
    listener = socket.create_server((HOST, port), backlog=BACKLOG)
    listener.setblocking(False)
    await _accept_sockets(loop, listener)


async def serve_tls(port: int, directory: Path) -> None:
    """Echo by `asyncio.Protocol` over TLS, with the certificate in `directory`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    await asyncio.get_running_loop().create_server(EchoProtocol, HOST, port, backlog=BACKLOG, ssl=context)
