"""httpx, by way of httpcore and anyio, against a server on asyncio's streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import TLS, Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload
from loop.tests.ecosystem.servers import held_port

require("httpx")
import httpx  # noqa: E402

Run = Callable[[Program], Any]

PATIENCE_S = 60.0
"""httpx gives up after 5 s of waiting for one of 20 connections, which a crowded machine may need."""


async def serve(reached: asyncio.Semaphore, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send each request's body back, as a stream of chunks; /never releases `reached` and says nothing."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if head.startswith(b"GET /never"):
                reached.release()
                await reader.read()
                return
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            left = int(lengths[0].partition(b":")[2]) if lengths else 0
            pieces = []
            while left:  # all of it: httpcore reads nothing while it sends, and would be stuck with a server that waits
                pieces.append(await reader.readexactly(min(left, 1 << 16)))
                left -= len(pieces[-1])
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for data in pieces:
                writer.writelines([b"%x\r\n" % len(data), data, b"\r\n"])
                await writer.drain()
            writer.write(b"0\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionResetError):
        pass  # the client has closed
    finally:
        writer.close()


@pytest.fixture(params=["plain", "tls"])
def secured(request: pytest.FixtureRequest, tls: TLS) -> TLS | None:
    return tls if request.param == "tls" else None


@asynccontextmanager
async def client_of(
    secured: TLS | None, reached: asyncio.Semaphore | None = None, **arguments: Any
) -> AsyncIterator[httpx.AsyncClient]:
    handler = partial(serve, reached or asyncio.Semaphore(0))
    server = await asyncio.start_server(handler, "127.0.0.1", 0, ssl=secured.server if secured else None)
    url = f"{'https' if secured else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        verify = secured.client if secured else False
        arguments.setdefault("timeout", PATIENCE_S)
        async with httpx.AsyncClient(base_url=url, verify=verify, trust_env=False, **arguments) as client:
            yield client
        server.close()
        await server.wait_closed()


def test_many_requests_at_once(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        async with client_of(secured, limits=httpx.Limits(max_connections=20)) as client:

            async def post(number: int) -> None:
                sent = payload(1000 + number, number)
                assert (await client.post("/", content=sent)).content == sent

            await asyncio.gather(*map(post, range(200)))

    run(program())


def test_a_large_body_is_streamed_up_and_down(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        async with client_of(secured) as client:
            sent = payload(LARGE_BYTES)
            response = await client.post("/", content=sent)
            assert response.content == sent

    run(program())


def test_timeouts_and_cancellation(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        reached = asyncio.Semaphore(0)
        async with client_of(secured, reached) as client:
            for _ in range(3):
                with pytest.raises(httpx.ReadTimeout):  # of the read alone: to connect, and by TLS, may take longer
                    await client.get("/never", timeout=httpx.Timeout(PATIENCE_S, read=0.05))
                await reached.acquire()
                request = asyncio.create_task(client.get("/never"))
                await reached.acquire()  # cancelled in the TLS handshake, httpcore leaves the connection open for good
                request.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await request
                assert (await client.post("/", content=b"still here")).content == b"still here"

    run(program())


def test_a_closed_port_is_a_connect_error(run: Run) -> None:
    async def program() -> None:
        with held_port() as port:
            async with httpx.AsyncClient(trust_env=False, verify=False, timeout=PATIENCE_S) as client:
                with pytest.raises(httpx.ConnectError):
                    await client.get(f"http://127.0.0.1:{port}/")

    run(program())
