"""gRPC by grpclib: many streams on one connection, large messages, deadlines, cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import TLS, Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload

require("grpclib")
from grpclib import GRPCError, Status  # noqa: E402
from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod  # noqa: E402
from grpclib.const import Cardinality, Handler  # noqa: E402
from grpclib.encoding.base import CodecBase  # noqa: E402
from grpclib.server import Server, Stream  # noqa: E402

Run = Callable[[Program], Any]


class BytesCodec(CodecBase):
    """Messages are bytes, so that no generated code is needed."""

    __content_subtype__ = "bytes"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        return bytes(data)


class Service:
    """/test.Service: Reverse one message, Echo each, wait for Ever, Refuse."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.entered = self.cancelled = 0

    async def reverse(self, stream: Stream[bytes, bytes]) -> None:
        message = await stream.recv_message()
        assert message is not None
        await stream.send_message(message[::-1])

    async def echo(self, stream: Stream[bytes, bytes]) -> None:
        async for message in stream:
            await stream.send_message(message)

    async def ever(self, stream: Stream[bytes, bytes]) -> None:
        self.entered += 1
        self.waiting.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def refuse(self, stream: Stream[bytes, bytes]) -> None:
        raise GRPCError(Status.PERMISSION_DENIED, "not you")

    def __mapping__(self) -> dict[str, Handler]:
        unary, streams = Cardinality.UNARY_UNARY, Cardinality.STREAM_STREAM
        methods = (("Reverse", self.reverse, unary), ("Echo", self.echo, streams))
        methods += (("Ever", self.ever, unary), ("Refuse", self.refuse, unary))
        return {f"/test.Service/{name}": Handler(method, kind, bytes, bytes) for name, method, kind in methods}


@pytest.fixture(params=["plain", "tls", "unix"])
def how(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def channel_to(service: Service, how: str, tls: TLS, path: Path) -> AsyncIterator[Channel]:
    server = Server([service], codec=BytesCodec())
    if how == "unix":
        await server.start(path=str(path))
        channel = Channel(path=str(path), codec=BytesCodec())
    else:
        await server.start("127.0.0.1", 0, ssl=tls.server if how == "tls" else None)
        port = server._server.sockets[0].getsockname()[1]
        channel = Channel("127.0.0.1", port, ssl=tls.client if how == "tls" else None, codec=BytesCodec())
    try:
        yield channel
    finally:
        channel.close()
        server.close()
        await server.wait_closed()


def unary(channel: Channel, name: str) -> UnaryUnaryMethod[bytes, bytes]:
    return UnaryUnaryMethod(channel, f"/test.Service/{name}", bytes, bytes)


def test_many_calls_on_one_connection(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        async with channel_to(Service(), how, tls, tmp_path / "socket") as channel:
            reverse = unary(channel, "Reverse")

            async def call(number: int) -> None:
                sent = payload(number * 10, number)
                assert await reverse(sent) == sent[::-1]

            await asyncio.gather(*map(call, range(100)))

    run(program())


def test_large_messages_and_long_streams(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        async with channel_to(Service(), how, tls, tmp_path / "socket") as channel:
            sent = payload(LARGE_BYTES // 2)
            assert await unary(channel, "Reverse")(sent) == sent[::-1]
            async with StreamStreamMethod(channel, "/test.Service/Echo", bytes, bytes).open() as stream:
                for number in range(200):
                    await stream.send_message(payload(1000, number))
                    assert await stream.recv_message() == payload(1000, number)
                await stream.end()
                assert await stream.recv_message() is None

    run(program())


def test_deadlines_cancellation_and_errors(run: Run, how: str, tls: TLS, tmp_path: Path) -> None:
    async def program() -> None:
        service = Service()
        async with channel_to(service, how, tls, tmp_path / "socket") as channel:
            ever, reverse = unary(channel, "Ever"), unary(channel, "Reverse")
            for _ in range(3):
                with pytest.raises((TimeoutError, GRPCError)) as late:  # whose clock was faster, ours or the server's
                    await ever(b"", timeout=0.05)
                assert getattr(late.value, "status", Status.DEADLINE_EXCEEDED) is Status.DEADLINE_EXCEEDED
                service.waiting.clear()
                call = asyncio.create_task(ever(b""))
                await service.waiting.wait()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
                assert await reverse(b"ab") == b"ba"
            assert service.entered >= 3  # a deadline may pass before the server has heard of the call
            while service.cancelled < service.entered:
                await asyncio.sleep(0.01)
            with pytest.raises(GRPCError) as refused:
                await unary(channel, "Refuse")(b"")
            assert refused.value.status is Status.PERMISSION_DENIED

    run(program())
