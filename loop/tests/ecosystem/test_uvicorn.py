"""uvicorn serves an ASGI application on the loop, with each of its HTTP parsers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loop.tests.ecosystem.conftest import Program
from loop.tests.ecosystem.installed import require
from loop.tests.ecosystem.payload import LARGE_BYTES, payload

require("uvicorn", "httptools", "h11")
import uvicorn  # noqa: E402

Run = Callable[[Program], Any]


class App:
    """Sends each request's body back in pieces; knows of its lifespan and of clients that left."""

    def __init__(self) -> None:
        self.lifespan: list[str] = []
        self.waiting, self.left = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while self.lifespan[-1:] != ["shutdown"]:
                what = (await receive())["type"]
                self.lifespan.append(what.removeprefix("lifespan."))
                await send({"type": f"{what}.complete"})
            return
        if scope["path"] == "/wait":
            while (await receive())["type"] != "http.disconnect":
                self.waiting.set()
            self.left.set()
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        more = True
        while more:
            message = await receive()
            more = message.get("more_body", False)
            await send({"type": "http.response.body", "body": message["body"], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def post(port: int, body: bytes, times: int = 1) -> list[bytes]:
    """Bodies of the responses to `times` requests on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    bodies = []

    async def send() -> None:
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        await writer.drain()

    try:
        for _ in range(times):
            sending = asyncio.create_task(send())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert b"transfer-encoding: chunked" in head.lower()
            pieces = []
            while size_bytes := int(await reader.readline(), 16):
                pieces.append(await reader.readexactly(size_bytes))
                assert await reader.readline() == b"\r\n"
            assert await reader.readline() == b"\r\n"
            await sending
            bodies.append(b"".join(pieces))
    finally:
        writer.close()
        await writer.wait_closed()
    return bodies


@pytest.fixture(params=["h11", "httptools"])
def parser(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def served(app: App, parser: str) -> AsyncIterator[int]:
    """The port; the server has stopped cleanly at the end."""
    settings = {"log_level": "error", "access_log": False, "ws": "none", "timeout_graceful_shutdown": 5}
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, http=parser, lifespan="on", **settings))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
        assert not serving.done()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving
    assert app.lifespan == ["startup", "shutdown"]


def test_many_connections(run: Run, parser: str) -> None:
    async def program() -> None:
        async with served(App(), parser) as port:
            bodies = [payload(100 * number, number) for number in range(50)]
            results = await asyncio.gather(*(post(port, body, times=5) for body in bodies))
            assert results == [[body] * 5 for body in bodies]

    run(program())


def test_a_large_body_flows_both_ways_at_once(run: Run, parser: str) -> None:
    async def program() -> None:
        async with served(App(), parser) as port:
            sent = payload(LARGE_BYTES)
            assert await post(port, sent) == [sent]

    run(program())


def test_a_client_that_leaves_is_noticed(run: Run, parser: str) -> None:
    async def program() -> None:
        app = App()
        async with served(app, parser) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
            await app.waiting.wait()  # aborted earlier it might never be a request
            writer.transport.abort()
            await app.left.wait()
            assert await post(port, b"next") == [b"next"]

    run(program())
