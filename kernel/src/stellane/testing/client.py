"""A client that calls an application in the same process, without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from stellane.app.headers import Headers, encode_field
from stellane.app.target import as_application
from stellane.testing.exchange import MemoryExchange


@dataclass(frozen=True, slots=True)
class ClientResponse:
    """What came back. `aborted`: the server cut the connection before the response was complete."""

    status: int
    headers: Headers
    body: bytes
    aborted: bool = False

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body decoded from JSON."""
        return msgspec.json.decode(self.body)


class TestClient:
    """Calls a Server, or an ASGI 3 app, with its resources or lifespan open.

        async with TestClient(server) as client:
            response = await client.request("GET", "/hello/Ada")

    A request returns when the application is through with it, background work included.
    """

    __test__ = False

    def __init__(self, application: Any) -> None:
        self._application = as_application(application, "TestClient")
        self._open = False

    async def __aenter__(self) -> Self:
        await self._application.startup()
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        await self._application.shutdown()

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        json: Any = None,
    ) -> ClientResponse:
        """Send one request. `target` is path and query, percent-encoded. `json` is encoded as the body."""
        if not self._open:
            raise RuntimeError("use the client inside `async with TestClient(server) as client:`")
        fields = [encode_field(name, value) for name, value in (headers or {}).items()]
        if json is not None:
            body = msgspec.json.encode(json)
            fields.append((b"content-type", b"application/json"))
        if body:
            fields.append((b"content-length", b"%d" % len(body)))
        exchange = MemoryExchange(method, target, [(b"host", b"testserver"), *fields], body)
        await self._application.handle(exchange)
        return ClientResponse(
            exchange.status, Headers(exchange.response_headers), exchange.response_body, exchange.aborted
        )

    async def get(self, target: str, *, headers: Mapping[str, str] | None = None) -> ClientResponse:
        """`request` with GET."""
        return await self.request("GET", target, headers=headers)

    async def post(
        self, target: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"", json: Any = None
    ) -> ClientResponse:
        """`request` with POST."""
        return await self.request("POST", target, headers=headers, body=body, json=json)
