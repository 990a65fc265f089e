"""A real server on a real loop in a thread, and clients that are plain sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest

from stellane.abc import Exchange
from stellane.config import Config, HttpConfig, LimitsConfig, RuntimeConfig
from stellane_protocol_http import HttpProtocol

Handler = Callable[[Exchange], Awaitable[None]]


class RunningServer:
    """One HttpProtocol serving `handler` on a loop of its own thread."""

    def __init__(self, handler: Handler, config: Config) -> None:
        self.protocol = HttpProtocol()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.errors: list[BaseException] = []
        self._clients: list[Client] = []
        self._handler = handler
        self._config = config
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> RunningServer:
        self._thread.start()
        assert self._started.wait(5)
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.sock.close()
        self.call(self._stop.set)
        self._thread.join(5)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the loop's thread and return what it returns."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(5)

    def _run(self) -> None:
        asyncio.run(self._main())

    def _begin(self, exchange: Exchange) -> None:
        task = self.loop.create_task(self._guard(exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _guard(self, exchange: Exchange) -> None:
        try:
            await self._handler(exchange)
        except Exception as error:
            self.errors.append(error)
            if not exchange.response_started:
                exchange.respond(500, [], repr(error).encode())
            else:
                exchange.abort()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        factory = self.protocol.connection_factory(self._begin, config=self._config, loop=self.loop)
        server = await self.loop.create_server(factory, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        await asyncio.sleep(0.02)  # a connection being accepted gets its transport only now
        self.protocol.abort()
        await self.protocol.wait_drained()
        for task in self.tasks:
            task.cancel()

    def connect(self) -> Client:
        client = Client(socket.create_connection(("127.0.0.1", self.port), timeout=5))
        self._clients.append(client)
        return client


class Response:
    """One parsed response."""

    def __init__(self, status: int, headers: dict[bytes, bytes], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Client:
    """A socket that can read HTTP/1.1 responses; deliberately simple-minded."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(self._rest)
        self._rest += data

    def read_head(self) -> tuple[int, dict[bytes, bytes]]:
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        return int(line.split()[1]), {name.lower(): value for name, value in (f.split(b": ", 1) for f in fields)}

    def response(self, *, head_only: bool = False) -> Response:
        status, headers = self.read_head()
        if head_only or status in (204, 304) or status < 200:
            return Response(status, headers, b"")
        if headers.get(b"transfer-encoding") == b"chunked":
            return Response(status, headers, self._chunked())
        if b"content-length" in headers:
            length = int(headers[b"content-length"])
            body, self._rest = bytearray(self._rest[:length]), self._rest[length:]
            while len(body) < length:
                self._more()
                missing = length - len(body)
                body += self._rest[:missing]
                self._rest = self._rest[missing:]
            return Response(status, headers, bytes(body))
        return Response(status, headers, self.rest())

    def _chunked(self) -> bytes:
        body = bytearray()
        while True:
            while b"\r\n" not in self._rest:
                self._more()
            size, _, self._rest = self._rest.partition(b"\r\n")
            while len(self._rest) < int(size, 16) + 2:
                self._more()
            part, self._rest = self._rest[: int(size, 16)], self._rest[int(size, 16) + 2 :]
            if not part:
                return bytes(body)
            body += part

    def rest(self) -> bytes:
        """Everything until the server closes."""
        while True:
            try:
                self._more()
            except EOFError:
                rest, self._rest = self._rest, b""
                return rest

    def closed(self) -> bool:
        """Whether the server has closed, with nothing more to read."""
        return self.rest() == b""


@pytest.fixture(params=["zttp", "h11"])
def codec(request: pytest.FixtureRequest) -> str:
    """Every test runs with both parsers."""
    return str(request.param)


@pytest.fixture
def serve(codec: str) -> Iterator[Callable[..., RunningServer]]:
    """`serve(handler, http=…, limits=…)`: a running server, stopped at the end of the test."""
    running: list[RunningServer] = []

    def start(handler: Handler, **tables: dict[str, Any]) -> RunningServer:
        config = Config(
            http=HttpConfig(codec=codec, **tables.get("http", {})),
            limits=LimitsConfig(**tables.get("limits", {})),
            runtime=RuntimeConfig(**tables.get("runtime", {})),
        )
        server = RunningServer(handler, msgspec.convert(msgspec.to_builtins(config), Config))
        running.append(server.__enter__())
        return server

    yield start
    for server in running:
        server.__exit__()
