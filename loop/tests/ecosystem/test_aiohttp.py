"""aiohttp's server and client on one loop: plain, TLS, web sockets, files, clients that go away."""

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

require("aiohttp")
import aiohttp  # noqa: E402
from aiohttp import web  # noqa: E402

Run = Callable[[Program], Any]


class App:
    """What the server does, and what became of its slow handler."""

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.cancelled = asyncio.Event()
        self.entered = asyncio.Event()
        self.web = web.Application(client_max_size=2 * LARGE_BYTES)
        for path, handler in (("/", self.hello), ("/slow", self.slow), ("/socket", self.socket), ("/file", self.file)):
            self.web.router.add_get(path, handler)
        self.web.router.add_post("/mirror", self.mirror)

    async def hello(self, request: web.Request) -> web.Response:
        return web.Response(text=f"hello {request.query['n']}")

    async def mirror(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for chunk in request.content.iter_chunked(1 << 16):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def slow(self, request: web.Request) -> web.Response:
        self.entered.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return web.Response()

    async def socket(self, request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse(max_msg_size=2 * LARGE_BYTES)
        await response.prepare(request)
        async for message in response:
            if message.type is aiohttp.WSMsgType.BINARY:
                await response.send_bytes(message.data[::-1])
        return response

    async def file(self, request: web.Request) -> web.FileResponse:
        assert self._file is not None
        return web.FileResponse(self._file)


@asynccontextmanager
async def served(app: App, tls: TLS | None) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A client and the server's URL."""
    runner = web.AppRunner(app.web, handler_cancellation=True)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls.server if tls else None)
        await site.start()
        port = runner.addresses[0][1]
        connector = aiohttp.TCPConnector(limit=50, ssl=tls.client if tls else True)
        async with aiohttp.ClientSession(connector=connector) as client:
            yield client, f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@pytest.fixture(params=["plain", "tls"])
def secured(request: pytest.FixtureRequest, tls: TLS) -> TLS | None:
    return tls if request.param == "tls" else None


def test_many_requests_at_once(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        async with served(App(), secured) as (client, url):

            async def get(number: int) -> str:
                async with client.get(f"{url}/?n={number}") as response:
                    return await response.text()

            assert await asyncio.gather(*map(get, range(300))) == [f"hello {number}" for number in range(300)]

    run(program())


def test_large_bodies_flow_both_ways_at_once(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        async with served(App(), secured) as (client, url):
            sent = payload(LARGE_BYTES)

            async def pieces() -> AsyncIterator[bytes]:
                for start in range(0, len(sent), 100_000):
                    yield sent[start : start + 100_000]

            async with client.post(f"{url}/mirror", data=pieces()) as response:
                assert await response.read() == sent

    run(program())


def test_web_sockets(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        async with served(App(), secured) as (client, url):

            async def talk(seed: int) -> None:
                async with client.ws_connect(f"{url}/socket", max_msg_size=2 * LARGE_BYTES) as socket:
                    for size_bytes in (1, 1000, 1 << 20):
                        sent = payload(size_bytes, seed)
                        await socket.send_bytes(sent)
                        assert (await socket.receive_bytes()) == sent[::-1]

            await asyncio.gather(*map(talk, range(10)))

    run(program())


def test_a_client_that_goes_away_cancels_its_handler(run: Run, secured: TLS | None) -> None:
    async def program() -> None:
        app = App()
        async with served(app, secured) as (client, url):
            request = asyncio.create_task(client.get(f"{url}/slow"))
            await app.entered.wait()
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            await app.cancelled.wait()
            async with client.get(f"{url}/?n=1") as response:
                assert await response.text() == "hello 1"

    run(program())


def test_files_by_sendfile(run: Run, secured: TLS | None, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(payload(LARGE_BYTES))

    async def program() -> None:
        async with served(App(file), secured) as (client, url):
            async with client.get(f"{url}/file") as response:
                assert await response.read() == payload(LARGE_BYTES)
            async with client.get(f"{url}/file", headers={"Range": "bytes=4097-999999"}) as response:
                assert response.status == 206
                assert await response.read() == payload(LARGE_BYTES)[4097:1_000_000]

    run(program())
