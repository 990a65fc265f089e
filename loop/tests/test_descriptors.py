"""add_reader and add_writer: readiness is level-triggered, whatever the poller does below."""

from __future__ import annotations

import asyncio
import os
import socket

import pytest
from loop.tests.conftest import open_descriptors


def test_a_reader_that_leaves_bytes_is_called_again(run):
    async def main():
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        calls = []
        loop.add_reader(reading, lambda: calls.append(os.read(reading, 1)))
        os.write(writing, b"0123456789")
        await asyncio.sleep(0.05)
        assert b"".join(calls) == b"0123456789"
        assert loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)

    run(main())


def test_add_reader_replaces_and_remove_says_whether_there_was_one(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            seen = []
            loop.add_reader(ours, seen.append, "replaced")
            loop.add_reader(ours, lambda: (seen.append("kept"), ours.recv(10)))
            theirs.send(b"x")
            await asyncio.sleep(0.02)
            assert seen == ["kept"]
            assert loop.remove_reader(ours)
            assert not loop.remove_reader(ours)
            theirs.send(b"x")
            await asyncio.sleep(0.02)
            assert seen == ["kept"]

    run(main())


def test_reader_and_writer_of_one_descriptor_are_apart(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            seen = []
            loop.add_reader(ours, lambda: (seen.append("read"), ours.recv(10)))
            loop.add_writer(ours, lambda: (seen.append("write"), loop.remove_writer(ours)))
            await asyncio.sleep(0.02)
            assert seen == ["write"]
            theirs.send(b"x")
            await asyncio.sleep(0.02)
            assert seen == ["write", "read"]
            loop.remove_reader(ours)

    run(main())


def test_a_number_closed_and_used_anew_reports_the_new_descriptor(run):
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(50):
            ours, theirs = socket.socketpair()
            number = ours.fileno()
            loop.add_reader(number, pytest.fail, "the old reader was called")
            loop.remove_reader(number)
            ours.close()
            again, other = socket.socketpair()
            with again, other, theirs:
                assert again.fileno() == number
                woken = asyncio.Event()
                loop.add_reader(again, woken.set)
                other.send(b"x")
                await asyncio.wait_for(woken.wait(), 5)
                loop.remove_reader(again)

    run(main())


def test_a_reader_forgotten_on_a_closed_number_does_not_block_the_next_one(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        loop.add_reader(number, lambda: None)
        ours.close()
        theirs.close()
        again, other = socket.socketpair()
        with again, other:
            assert again.fileno() == number
            woken = asyncio.Event()
            loop.add_reader(again, woken.set)
            other.send(b"x")
            await asyncio.wait_for(woken.wait(), 5)
            loop.remove_reader(again)

    run(main())


@pytest.mark.parametrize("again_watched", [False, True])
def test_a_reader_of_a_closed_number_leaves_its_new_owner_alone(run, again_watched):
    """The number belongs to a transport by the time the forgotten reader is changed or removed."""

    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        loop.add_reader(number, lambda: None)
        ours.close()
        theirs.close()
        again, other = socket.socketpair()
        assert again.fileno() == number
        reader, writer = await asyncio.open_connection(sock=again)
        if again_watched:
            loop._add_reader(number, lambda: None)
        loop._remove_reader(number)
        with other:
            other.send(b"still here")
            assert await asyncio.wait_for(reader.readexactly(10), 5) == b"still here"
            writer.close()

    run(main())


def test_the_readers_of_a_closed_file_are_found_by_the_object(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        loop.add_reader(ours, lambda: None)
        loop.add_writer(ours, lambda: None)
        ours.close()
        assert not loop.remove_reader(theirs)
        assert loop.remove_reader(ours)
        assert not loop.remove_reader(ours)
        assert loop.remove_writer(ours)
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):  # as asyncio's selector
            loop.remove_writer(ours)
        assert number not in loop._selector.get_map()
        theirs.close()
        with pytest.raises(ValueError, match="Invalid file descriptor: -1"):
            loop.remove_reader(theirs)

    run(main())


def test_a_closed_file_without_readers_leaves_the_new_owner_of_its_number_alone(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        number = ours.fileno()
        loop.add_reader(ours, lambda: None)
        loop.remove_reader(ours)
        ours.close()
        theirs.close()
        again, other = socket.socketpair()
        with again, other:
            assert again.fileno() == number
            woken = asyncio.Event()
            loop.add_reader(again, woken.set)
            with pytest.raises(ValueError, match="Invalid file descriptor: -1"):  # as asyncio's selector
                loop.remove_reader(ours)
            other.send(b"x")
            await asyncio.wait_for(woken.wait(), 5)
            assert loop.remove_reader(again)

    run(main())


def test_one_open_file_under_two_numbers_has_two_readers(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs, ours.dup() as twin:
            first, second = asyncio.Event(), asyncio.Event()
            loop.add_reader(ours, first.set)
            loop.add_reader(twin, second.set)
            theirs.send(b"x")
            await asyncio.wait_for(asyncio.gather(first.wait(), second.wait()), 5)
            loop.remove_reader(ours)
            loop.remove_reader(twin)

    run(main())


def test_a_watch_and_a_sock_operation_share_a_descriptor(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            woken = asyncio.Event()
            loop.add_writer(ours, woken.set)
            received = asyncio.create_task(loop.sock_recv(ours, 10))
            await asyncio.wait_for(woken.wait(), 5)
            theirs.send(b"x")
            assert await asyncio.wait_for(received, 5) == b"x"
            loop.remove_writer(ours)

    run(main())


def test_a_regular_file_is_refused_as_by_epoll(run, tmp_path):
    async def main():
        loop = asyncio.get_running_loop()
        with (tmp_path / "file").open("wb") as file:
            with pytest.raises(PermissionError):
                loop.add_reader(file, lambda: None)
            assert not loop.remove_reader(file)

    run(main())


@pytest.mark.parametrize("wrong", [-1, "text", None])
def test_what_is_no_descriptor_is_refused(run, wrong):
    async def main():
        with pytest.raises(ValueError, match="Invalid file"):
            asyncio.get_running_loop().add_reader(wrong, lambda: None)
        with pytest.raises(ValueError, match="Invalid file"):
            asyncio.get_running_loop().remove_reader(wrong)

    run(main())


def test_the_descriptor_of_a_transport_is_refused(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            _, writer = await asyncio.open_connection(sock=ours)
            with pytest.raises(RuntimeError, match="used by transport"):
                loop.add_reader(ours.fileno(), lambda: None)
            writer.close()
            await writer.wait_closed()

    run(main())


def test_a_closed_loop_has_no_readers(loop):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop.add_reader(ours, lambda: None)
        loop.close()
        assert not loop.remove_reader(ours)
    assert not loop.remove_writer(ours)


def test_a_client_connection_has_one_descriptor_and_one_registration(run):
    """Though its socket had to wait for the connect."""

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        await asyncio.sleep(0.01)
        open_before, descriptors_before = loop.statistics().open, len(open_descriptors())
        transports = [(await loop.create_connection(asyncio.Protocol, *address))[0] for _ in range(10)]
        while loop.statistics().accepts < 10:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert loop.statistics().open - open_before == 20
        assert len(open_descriptors()) - descriptors_before == 20
        for transport in transports:
            transport.abort()
        server.close()
        await asyncio.sleep(0.01)

    run(main())


def test_a_socket_that_waited_once_is_registered_once_with_its_reader(run):
    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            before = loop.statistics().open
            first = asyncio.create_task(loop.sock_recv(ours, 10))
            await asyncio.sleep(0.01)
            theirs.send(b"x")
            assert await first == b"x"
            ready = asyncio.Event()
            loop.add_reader(ours, ready.set)
            await asyncio.sleep(0.01)
            assert loop.statistics().open - before == 1
            theirs.send(b"y")
            await asyncio.wait_for(ready.wait(), 5)
            loop.remove_reader(ours)
            assert await asyncio.wait_for(loop.sock_recv(ours, 10), 5) == b"y"

    run(main())
