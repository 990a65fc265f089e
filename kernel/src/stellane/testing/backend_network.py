"""Rules of the network: streams, transports, servers, datagrams. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from stellane.abc.backend import Backend, Capability
from stellane.testing.backend_runner import BackendRules

TRANSFER_BYTES = 5_000_000
CHUNK_BYTES = 65_536
HIGH_WATER_BYTES = 131_072
LOOPBACK = "127.0.0.1"


class Recorder(asyncio.Protocol):
    """A protocol that keeps what happens to it; `lost` is a future of connection_lost's argument."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = bytearray()
        self.losses: list[Exception | None] = []
        self.made = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.made.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.losses.append(exc)
        if not self.lost.done():
            self.lost.set_result(exc)


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read to the end, then send it all back: only possible when a half-closed connection lives on."""
    data = await reader.read()
    writer.write(data)
    await writer.drain()
    writer.close()
    await writer.wait_closed()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, question: bytes) -> bytes:
    writer.write(question)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


class NetworkRules(BackendRules):
    """asyncio's Protocol and Transport level, where every library lives."""

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_echo_with_half_close(self) -> None:
        """write_eof ends one direction only: the peer reads to the end and can still answer."""

        async def main(_: Backend) -> None:
            server = await asyncio.start_server(_echo, LOOPBACK, 0)
            async with server:
                streams = [await asyncio.open_connection(LOOPBACK, _port(server)) for _ in range(10)]
                questions = [f"question {number}".encode() * 100 for number in range(10)]
                answers = [_ask(*stream, question) for stream, question in zip(streams, questions, strict=True)]
                assert await asyncio.gather(*answers) == questions

        self.run_main(main)

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_back_pressure(self) -> None:
        """5 MB to a slow reader arrive whole, and the writer never holds much more than its high-water mark."""
        data = random.Random(5).randbytes(TRANSFER_BYTES)
        held: list[int] = []

        async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.transport.set_write_buffer_limits(high=HIGH_WATER_BYTES)
            for start in range(0, len(data), CHUNK_BYTES):
                writer.write(data[start : start + CHUNK_BYTES])
                held.append(writer.transport.get_write_buffer_size())
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        async def main(_: Backend) -> str:
            loop = asyncio.get_running_loop()
            digest = hashlib.sha256()
            async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
                with socket.socket() as client:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK_BYTES)
                    client.setblocking(False)
                    await loop.sock_connect(client, (LOOPBACK, _port(server)))
                    await asyncio.sleep(0.05)
                    while part := await loop.sock_recv(client, CHUNK_BYTES):
                        digest.update(part)
            return digest.hexdigest()

        assert self.run_main(main) == hashlib.sha256(data).hexdigest()
        assert 0 < max(held) <= HIGH_WATER_BYTES + CHUNK_BYTES

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_pause_reading(self) -> None:
        """After pause_reading nothing arrives until resume_reading, and then everything does."""

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            protocol = Recorder()
            async with await loop.create_server(lambda: protocol, LOOPBACK, 0) as server:
                with socket.create_connection((LOOPBACK, _port(server))) as client:
                    await protocol.made
                    protocol.transport.pause_reading()
                    client.sendall(b"held back")
                    await asyncio.sleep(0.05)
                    assert protocol.received == b""
                    protocol.transport.resume_reading()
                    client.sendall(b" and on")
                    client.shutdown(socket.SHUT_WR)
                    await asyncio.wait_for(protocol.lost, self.soon_s)
                    assert protocol.received == b"held back and on"

        self.run_main(main)

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_peer_reset(self) -> None:
        """A reset connection ends with one connection_lost(OSError); others and the server live on."""

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            protocols: list[Recorder] = []

            def make() -> Recorder:
                protocols.append(Recorder())
                return protocols[-1]

            async with await loop.create_server(make, LOOPBACK, 0) as server:
                for number in range(2):
                    client = socket.create_connection((LOOPBACK, _port(server)))
                    while len(protocols) <= number:
                        await asyncio.sleep(0.001)
                    await protocols[number].made
                    # SO_LINGER with 0 seconds makes close send RST (socket(7)).
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    client.close()
                    error = await asyncio.wait_for(protocols[number].lost, self.soon_s)
                    assert isinstance(error, OSError)
                    await asyncio.sleep(0.01)
                    assert len(protocols[number].losses) == 1

        self.run_main(main)

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_abort_is_at_once(self) -> None:
        """transport.abort drops what is unsent and calls connection_lost(None) in a later turn."""

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            protocol = Recorder()
            async with await loop.create_server(lambda: protocol, LOOPBACK, 0) as server:
                with socket.create_connection((LOOPBACK, _port(server))):
                    await protocol.made
                    protocol.transport.write(bytes(TRANSFER_BYTES * 4))
                    protocol.transport.abort()
                    assert protocol.losses == []
                    assert protocol.transport.is_closing()
                    assert await asyncio.wait_for(protocol.lost, self.soon_s) is None

        self.run_main(main)

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_connection_refused(self) -> None:
        """Connecting to a port where nobody listens is a ConnectionRefusedError."""
        with socket.socket() as taken:
            taken.bind((LOOPBACK, 0))
            port = taken.getsockname()[1]

            async def main(_: Backend) -> None:
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(LOOPBACK, port)

            self.run_main(main)

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_transports_know_their_addresses(self) -> None:
        """get_extra_info gives peername, sockname and the socket, with TCP_NODELAY set."""

        async def main(_: Backend) -> None:
            loop = asyncio.get_running_loop()
            protocol = Recorder()
            async with await loop.create_server(lambda: protocol, LOOPBACK, 0) as server:
                with socket.create_connection((LOOPBACK, _port(server))) as client:
                    await protocol.made
                    info = protocol.transport.get_extra_info
                    assert info("peername") == client.getsockname()
                    assert info("sockname") == client.getpeername()
                    assert info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                    protocol.transport.close()

        self.run_main(main)

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_any_buffer_can_be_written(self) -> None:
        """write takes bytes, bytearray and memoryview, writelines a list of them; order is kept."""

        async def main(_: Backend) -> bytes:
            loop = asyncio.get_running_loop()
            protocol = Recorder()
            async with await loop.create_server(lambda: protocol, LOOPBACK, 0) as server:
                reader, writer = await asyncio.open_connection(LOOPBACK, _port(server))
                await protocol.made
                protocol.transport.write(b"one ")
                protocol.transport.write(bytearray(b"two "))
                protocol.transport.write(memoryview(b"three "))
                protocol.transport.writelines([b"four ", bytearray(b"five "), memoryview(b"six")])
                protocol.transport.close()
                answer = await reader.read()
                writer.close()
                await writer.wait_closed()
                return answer

        assert self.run_main(main) == b"one two three four five six"

    @pytest.mark.requires(Capability.TCP)
    def test_tcp_server_on_a_given_socket(self) -> None:
        """create_server(sock=) serves on a socket that is listening already; close leaves copies of it open."""
        with socket.create_server((LOOPBACK, 0)) as listener:
            port = listener.getsockname()[1]

            async def main(_: Backend) -> bytes:
                server = await asyncio.start_server(_echo, sock=listener.dup())
                async with server:
                    assert _port(server) == port
                    return await _ask(*await asyncio.open_connection(LOOPBACK, port), b"hello")

            assert self.run_main(main) == b"hello"
            with socket.create_connection((LOOPBACK, port)) as client:
                listener.settimeout(self.soon_s)
                accepted, address = listener.accept()
                accepted.close()
                assert address == client.getsockname()

    @pytest.mark.requires(Capability.TCP)
    def test_socket_calls(self) -> None:
        """sock_accept, sock_connect, sock_sendall and sock_recv wait without blocking the loop."""
        data = os.urandom(TRANSFER_BYTES // 10)

        async def main(_: Backend) -> bytes:
            loop = asyncio.get_running_loop()
            with socket.create_server((LOOPBACK, 0)) as listener, socket.socket() as client:
                listener.setblocking(False)
                client.setblocking(False)
                accepting = loop.create_task(loop.sock_accept(listener))
                await loop.sock_connect(client, listener.getsockname())
                peer, _ = await accepting
                with peer:
                    sending = loop.create_task(loop.sock_sendall(client, data))
                    received = bytearray()
                    while len(received) < len(data) and (part := await loop.sock_recv(peer, CHUNK_BYTES)):
                        received += part
                    await sending
                return bytes(received)

        assert self.run_main(main) == data

    @pytest.mark.requires(Capability.UNIX)
    def test_unix_echo(self, tmp_path: Path) -> None:
        """Unix stream sockets work as TCP does, half close included."""
        path = str(tmp_path / "socket")

        async def main(_: Backend) -> bytes:
            async with await asyncio.start_unix_server(_echo, path):
                return await _ask(*await asyncio.open_unix_connection(path), b"through a file")

        assert self.run_main(main) == b"through a file"

    @pytest.mark.requires(Capability.UDP)
    def test_udp_echo(self) -> None:
        """Datagrams keep their boundaries and tell who sent them."""

        class Echo(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                self.transport.sendto(data[::-1], addr)

        async def main(_: Backend) -> list[bytes]:
            loop = asyncio.get_running_loop()
            transport, _protocol = await loop.create_datagram_endpoint(Echo, local_addr=(LOOPBACK, 0))
            answers = []
            with contextlib.closing(transport), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.bind((LOOPBACK, 0))
                client.connect(transport.get_extra_info("sockname"))
                client.setblocking(False)
                for question in (b"abc", b"x" * 1000 + b"y"):
                    client.send(question)
                    answers.append(await asyncio.wait_for(loop.sock_recv(client, 2000), self.soon_s))
            return answers

        assert self.run_main(main) == [b"cba", b"y" + b"x" * 1000]
