"""TCP's urgent mark: a receive ends there, whatever lies behind it."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios

import pytest

DEADLINE_S = 5


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.setblocking(False)
    server.setblocking(False)
    return client, server


def send_around_mark(sock: socket.socket) -> None:
    sock.send(b"abc")
    sock.send(b"X", socket.MSG_OOB)
    sock.send(b"def")


async def until_readable(sock: socket.socket, length: int) -> None:
    """FIONREAD stops at the mark too, and then counts from there on."""
    async with asyncio.timeout(DEADLINE_S):
        while struct.unpack("i", fcntl.ioctl(sock, termios.FIONREAD, bytes(4)))[0] < length:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)  # the loop has heard of what is behind the mark, too


async def receive(sock: socket.socket, operation: str) -> bytes:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(DEADLINE_S):
        if operation == "sock_recv":
            return await loop.sock_recv(sock, 100)
        if operation == "sock_recvfrom":
            return (await loop.sock_recvfrom(sock, 100))[0]
        buffer = bytearray(100)
        return bytes(buffer[: await loop.sock_recv_into(sock, buffer)])


@pytest.mark.parametrize("operation", ["sock_recv", "sock_recv_into", "sock_recvfrom"])
@pytest.mark.parametrize("inline", [False, True])
def test_bytes_behind_the_mark_are_received_without_more_to_come(run, operation, inline):
    async def main():
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)
        with ours, theirs:
            waiting = asyncio.create_task(receive(ours, operation))  # the socket is registered by it
            await asyncio.sleep(0)
            theirs.send(b"first")
            assert await waiting == b"first"
            for _ in range(3):
                send_around_mark(theirs)
                await until_readable(ours, 3)
                assert await receive(ours, operation) == b"abc"
                assert await receive(ours, operation) == (b"Xdef" if inline else b"def")

    run(main())


def test_an_urgent_byte_with_nothing_behind_it_is_not_readable(run):
    """io_uring's poll takes the kernel's wake-up for readiness once, and a receive then drops the byte."""

    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        unread, its_peer = pair()
        with ours, theirs, unread, its_peer:
            waiting = asyncio.create_task(loop.sock_recv(ours, 100))
            readable = []
            loop.add_reader(unread, readable.append, 1)
            await asyncio.sleep(0)
            theirs.send(b"X", socket.MSG_OOB)
            its_peer.send(b"X", socket.MSG_OOB)
            await asyncio.sleep(0.1)
            assert not waiting.done()
            once = loop.poller_name == "io_uring"
            assert len(readable) <= once
            if not once:
                assert ours.recv(1, socket.MSG_OOB) == b"X"
            loop.remove_reader(unread)
            theirs.send(b"behind")
            assert await asyncio.wait_for(waiting, DEADLINE_S) == b"behind"

    run(main())
