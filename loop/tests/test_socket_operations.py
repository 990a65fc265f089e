"""sock_recv and its like, which keep one registration for the life of a socket."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

import pytest


def pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    client.setblocking(False)
    server.setblocking(False)
    return client, server


def test_the_end_of_file_that_came_with_the_last_bytes_is_told(run):
    """A short receive means that all is read; nothing further announces an end that was there already."""

    async def main():
        loop = asyncio.get_running_loop()
        for wait_first in (False, True):
            ours, theirs = pair()
            with ours, theirs:
                task = asyncio.create_task(loop.sock_recv(ours, 100))
                if wait_first:
                    await asyncio.sleep(0.01)
                theirs.send(b"last words")
                theirs.shutdown(socket.SHUT_WR)
                assert await task == b"last words"
                assert await asyncio.wait_for(loop.sock_recv(ours, 100), 5) == b""
                assert await asyncio.wait_for(loop.sock_recv(ours, 100), 5) == b""

    run(main())


def test_bytes_left_by_a_short_read_are_read_next(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        with ours, theirs:
            task = asyncio.create_task(loop.sock_recv(ours, 4))
            await asyncio.sleep(0.01)
            theirs.send(b"0123456789")
            assert await task == b"0123"
            buffer = bytearray(3)
            assert await loop.sock_recv_into(ours, buffer) == 3
            assert buffer == b"456"
            assert await loop.sock_recv(ours, 100) == b"789"

    run(main())


def test_bytes_that_come_between_two_receives_are_not_missed(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        with ours, theirs:
            for number in range(200):
                theirs.send(b"%03d" % number)
                assert await asyncio.wait_for(loop.sock_recv(ours, 100), 5) == b"%03d" % number
                theirs.send(b"%03d" % number)
                await asyncio.sleep(0.0005 * (number % 3))
                assert await asyncio.wait_for(loop.sock_recv(ours, 100), 5) == b"%03d" % number

    run(main())


def test_a_new_socket_under_an_old_number_is_registered_anew(run):
    async def main():
        loop = asyncio.get_running_loop()
        numbers = set()
        for _ in range(50):
            ours, theirs = pair()
            numbers.add(ours.fileno())
            task = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0)
            await loop.sock_sendall(theirs, b"x")
            assert await asyncio.wait_for(task, 5) == b"x"
            ours.close()
            theirs.close()
        assert len(numbers) < 50, "the numbers were never used anew"

    run(main())


def test_a_closed_socket_leaves_nothing_open_in_the_loop(run):
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)
        before = loop.statistics().open
        for _ in range(10):
            ours, theirs = pair()
            with ours, theirs:
                await loop.sock_sendall(theirs, b"x")
                assert await loop.sock_recv(ours, 1) == b"x"
            del ours, theirs
        await asyncio.sleep(0.01)
        assert loop.statistics().open == before

    run(main())


def test_a_cancelled_receive_takes_no_bytes(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        with ours, theirs:
            first = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0.01)
            first.cancel()
            second = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0)
            theirs.send(b"for the second")
            assert await asyncio.wait_for(second, 5) == b"for the second"
            assert first.cancelled()

    run(main())


def test_two_receives_are_served_in_their_order(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        with ours, theirs:
            tasks = [asyncio.create_task(loop.sock_recv(ours, 2)) for _ in range(3)]
            await asyncio.sleep(0.01)
            theirs.send(b"aabbcc")
            assert await asyncio.wait_for(asyncio.gather(*tasks), 5) == [b"aa", b"bb", b"cc"]

    run(main())


def test_sendall_sends_all_while_the_other_side_reads_slowly(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        sent = random.Random(1).randbytes(3_000_000)
        with ours, theirs:
            task = asyncio.create_task(loop.sock_sendall(ours, sent))
            received = bytearray()
            while len(received) < len(sent):
                received += await loop.sock_recv(theirs, 1 << 20)
            await task
            assert received == sent

    run(main())


def test_connect_reports_refusal_and_success(run):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
            listener.setblocking(False)
            with socket.socket() as client:
                client.setblocking(False)
                accepting = asyncio.create_task(loop.sock_accept(listener))
                await loop.sock_connect(client, ("localhost", address[1]))
                accepted, peer = await accepting
                with accepted:
                    assert peer == client.getsockname()
                    assert accepted.gettimeout() == 0
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(client, address)

    run(main())


def test_accepts_wait_for_each_connection(run):
    async def main():
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            for wait_first in (True, False, True):
                accepting = asyncio.create_task(loop.sock_accept(listener))
                if wait_first:
                    await asyncio.sleep(0.01)
                with socket.create_connection(listener.getsockname()):
                    accepted, _ = await asyncio.wait_for(accepting, 5)
                    accepted.close()

    run(main())


async def keep_sending(loop, sock):
    while True:
        await loop.sock_sendall(sock, b"x" * 1000)
        await asyncio.sleep(0.001)


def test_errors_are_those_of_the_socket_module(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        ours.close()
        with theirs:
            with pytest.raises(OSError, match="Bad file descriptor"):
                await loop.sock_recv(ours, 1)
            with pytest.raises(OSError, match="Bad file descriptor"):
                await loop.sock_sendall(ours, b"x")
            with pytest.raises(ValueError, match="negative"):
                await loop.sock_recv(theirs, -1)
            await loop.sock_recv(theirs, 1)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await keep_sending(loop, theirs)

    run(main())


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_receiving_nothing_waits_for_nothing_and_takes_nothing(run, kind):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with ours, theirs:
            ours.setblocking(False)
            for _ in range(2):
                assert await asyncio.wait_for(loop.sock_recv(ours, 0), 5) == b""
                assert await asyncio.wait_for(loop.sock_recv_into(ours, bytearray()), 5) == 0
                theirs.send(b"next")
            assert await asyncio.wait_for(loop.sock_recv(ours, 4), 5) == b"next"

    run(main())


def test_a_cancelled_accept_does_not_keep_its_socket_open(run):
    async def main():
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        address = listener.getsockname()
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.sock_accept(listener), 0.01)
        listener.close()
        with socket.socket() as client:
            client.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await loop.sock_connect(client, address)

    run(main())


def test_a_cancelled_wait_leaves_the_others_of_its_socket(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        with ours, theirs:
            waiting = [asyncio.create_task(loop.sock_recv(ours, 1)) for _ in range(3)]
            await asyncio.sleep(0.01)
            waiting[0].cancel()
            await asyncio.sleep(0.01)
            theirs.send(b"12")
            assert await asyncio.wait_for(asyncio.gather(*waiting[1:]), 5) == [b"1", b"2"]
            last = asyncio.create_task(loop.sock_recv(ours, 1))
            await asyncio.sleep(0.01)
            last.cancel()
            await asyncio.sleep(0.01)
            theirs.send(b"3")
            assert await asyncio.wait_for(loop.sock_recv(ours, 1), 5) == b"3"

    run(main())


def udp_pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    ours.bind(("127.0.0.1", 0))
    theirs.connect(ours.getsockname())
    return ours, theirs


MESSAGE_PAIRS = {
    "udp": udp_pair,
    "unix datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "unix sequenced packets": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
}


@pytest.mark.parametrize("kind", MESSAGE_PAIRS)
def test_messages_that_lie_behind_a_short_one_are_received(run, kind):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = MESSAGE_PAIRS[kind]()
        ours.setblocking(False)
        with ours, theirs:
            first = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0.01)
            for message in (b"one", b"two", b"three"):
                theirs.send(message)
            assert await asyncio.wait_for(first, 5) == b"one"
            assert await asyncio.wait_for(loop.sock_recv(ours, 100), 5) == b"two"
            buffer = bytearray(100)
            assert await asyncio.wait_for(loop.sock_recv_into(ours, buffer), 5) == 5

    run(main())


HELD_UP_S = 5


@pytest.mark.parametrize("operation", ["sock_recv", "sock_sendall"])
def test_a_blocking_socket_does_not_block_the_loop(run, operation):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = pair()
        ours.setblocking(True)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", HELD_UP_S, 0))
        with ours, theirs:
            began_s = loop.time()
            argument = 1 if operation == "sock_recv" else bytes(20_000_000)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(getattr(loop, operation)(ours, argument), 0.01)
            assert loop.time() - began_s < HELD_UP_S

    run(main())
