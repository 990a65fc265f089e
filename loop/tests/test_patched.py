"""What programs, and the tests of programs, put on the objects of a loop is used, as with asyncio's plain classes."""

from __future__ import annotations

import asyncio
import gc
import inspect
import socket
import time
import weakref
from typing import ClassVar
from unittest import mock

import pytest
from loop.tests.test_stream_turns import connection

import stellane_loop


def test_a_patched_write_of_a_transport_is_what_callers_find(run):
    async def main():
        loop = asyncio.get_running_loop()
        async with connection() as (transport, _, peer):
            writer = asyncio.StreamWriter(transport, None, None, loop)
            patch = mock.patch.object(transport, "write", side_effect=ConnectionResetError)
            with patch as patched, pytest.raises(ConnectionResetError):
                writer.write(b"never sent")
            patched.assert_called_once_with(b"never sent")
            writer.write(b"sent")
            await asyncio.sleep(0)
            assert await loop.run_in_executor(None, peer.recv, 100) == b"sent"

    run(main())


def test_a_transport_has_no_dict_until_something_is_put_there(run):
    async def main():
        async with connection() as (transport, _, _):
            transport.write(b"x")
            assert [held for held in gc.get_referents(transport) if held == {}] == []
            transport.mark = 1
            assert vars(transport) == {"mark": 1}

    run(main())


def test_what_is_put_on_a_transport_does_not_keep_it(run):
    async def main():
        async with connection() as (transport, protocol, _):
            transport.itself = transport
            gone = weakref.ref(transport)
        protocol.transport = None
        del transport
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None

    run(main())


def test_a_connection_is_made_while_a_function_stands_for_the_socket_class(run):
    plain = socket.socket

    def make_socket(*args, **kwargs):
        return plain(*args, **kwargs)

    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            with mock.patch("socket.socket", make_socket):
                transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            transport.write(b"sent")
            transport.close()
            assert await loop.run_in_executor(None, theirs.recv, 100) == b"sent"

    run(main())


def test_a_get_extra_info_that_is_patched_for_all_transports_is_used(run):
    async def main():
        async with connection() as (transport, _, _):
            with mock.patch("asyncio.BaseTransport.get_extra_info", return_value="patched") as patched:
                assert transport.get_extra_info("sockname") == "patched"
                patched.assert_called_with("sockname")
                assert transport.get_extra_info("sockname", 1) == "patched"
                patched.assert_called_with("sockname", 1)
            with mock.patch("asyncio.BaseTransport.get_extra_info", lambda *arguments: arguments):
                assert transport.get_extra_info("sockname") == (transport, "sockname")
            assert transport.get_extra_info("no such thing", 1) == 1

    run(main())


@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_sendall", "sock_accept", "sock_connect"])
def test_a_socket_operation_is_told_to_be_a_coroutine_function(run, name):
    """Else mock puts something in its place that can not be awaited, and wrappers take it for a plain function."""

    async def main():
        loop = asyncio.get_running_loop()
        operation, model = getattr(loop, name), getattr(asyncio.SelectorEventLoop, name)
        assert inspect.iscoroutinefunction(operation)
        assert list(inspect.signature(operation).parameters) == list(inspect.signature(model).parameters)[1:]
        with mock.patch.object(loop, name, return_value="patched") as patched:
            assert await getattr(loop, name)(1, 2) == "patched"
            patched.assert_awaited_once_with(1, 2)

    run(main())


class OwnSocket(socket.socket):
    """Notes how it is used."""

    used: ClassVar[set[str]] = set()

    def recv(self, *arguments):
        self.used.add("recv")
        return super().recv(*arguments)

    def send(self, *arguments):
        self.used.add("send")
        return super().send(*arguments)


def test_a_socket_that_receives_and_sends_in_its_own_way_is_asked_to(run, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"the file")

    async def main():
        loop = asyncio.get_running_loop()
        OwnSocket.used.clear()
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await asyncio.open_connection(sock=OwnSocket(fileno=ours.detach()))
            theirs.send(b"question")
            assert await reader.readexactly(8) == b"question"
            writer.write(b"answer")
            assert theirs.recv(100) == b"answer"
            assert OwnSocket.used == {"recv", "send"}
            with file.open("rb") as opened:
                await loop.sendfile(writer.transport, opened)
            assert theirs.recv(100) == b"the file"
            writer.close()
            await writer.wait_closed()
            assert theirs.recv(100) == b""

    run(main())


def test_timers_go_by_a_patched_time_as_long_as_it_is(run):
    async def main():
        loop = asyncio.get_running_loop()
        called = []
        with mock.patch.object(loop, "time", return_value=1000.0) as patched:
            late = loop.call_later(10, called.append, "later")
            loop.call_at(1005, called.append, "at")
            assert late.when() == 1010
            patched.return_value = 1005.0
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert called == ["at"]
            patched.return_value = 1010.0
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert called == ["at", "later"]
        assert abs(loop.time() - time.monotonic()) < 60
        await asyncio.sleep(0.001)

    run(main())


def test_timers_go_by_the_time_of_a_subclass(poller):
    class Skipping(stellane_loop.Loop):
        skipped_s = 0.0

        def time(self):
            return super().time() + self.skipped_s

    async def main():
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(asyncio.sleep(3600))
        await asyncio.sleep(0)
        loop.skipped_s = 3600
        async with asyncio.timeout(30):
            await waiting

    with asyncio.Runner(loop_factory=lambda: Skipping(poller)) as runner:
        runner.run(main())


def test_an_exception_of_a_patched_time_ends_the_run(loop):
    loop.call_later(0, lambda: None)
    loop.time = mock.Mock(side_effect=ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    del loop.time
    loop.call_soon(loop.stop)
    loop.run_forever()
