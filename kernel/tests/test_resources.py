"""What a worker opens at start and closes at stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from stellane import Context, Request, Server
from stellane.app.resources import ResourceError
from stellane.testing import ClientResponse, TestClient


def run(coro: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coro, 10))


def ask(server: Server, method: str = "GET", target: str = "/", **options: Any) -> ClientResponse:
    """One request to a server that is started and stopped for it."""

    async def asking() -> ClientResponse:
        async with TestClient(server) as client:
            return await client.request(method, target, **options)

    return run(asking())


def events(caplog: pytest.LogCaptureFixture, level: int = logging.DEBUG) -> list[dict[str, Any]]:
    """Log events of the application, as structlog hands them over."""
    return [
        record.msg
        for record in caplog.records
        if record.name.startswith("stellane") and record.levelno >= level and isinstance(record.msg, dict)
    ]


def test_resources_open_in_order_and_close_in_reverse() -> None:
    order: list[str] = []
    server = Server()

    @server.resource("db")
    async def db() -> AsyncIterator[str]:
        order.append("db opens")
        yield "the db"
        order.append("db closes")

    @server.resource("cache")
    @contextlib.asynccontextmanager
    async def cache(resources: Any) -> AsyncIterator[str]:
        order.append(f"cache opens on {resources.db}")
        yield "the cache"
        order.append("cache closes")

    @server.get("/")
    async def handler(ctx: Context, req: Request) -> list[str]:
        with pytest.raises(
            LookupError, match=r"no open resource is called 'cach'; open are: db, cache. Did you mean 'cache'"
        ):
            ctx.resource("cach")
        with pytest.raises(AttributeError, match="no open resource is called 'chache'"):
            _ = ctx.resources.chache
        return [ctx.resources.db, ctx.resource("cache")]

    assert ask(server).json() == ["the db", "the cache"]
    assert order == ["db opens", "cache opens on the db", "cache closes", "db closes"]


def test_a_resource_that_does_not_open_is_named_and_the_others_close() -> None:
    order: list[str] = []
    server = Server()

    @server.resource("db")
    async def db() -> AsyncIterator[str]:
        yield "db"
        order.append("db closes")

    @server.resource("mail")
    async def mail() -> AsyncIterator[str]:
        raise OSError("no route to host")
        yield

    async def starting() -> None:
        with pytest.raises(ResourceError, match="resource 'mail' did not open: OSError: no route to host"):
            await server.startup()
        assert order == ["db closes"]
        await server.shutdown()

    run(starting())
    assert order == ["db closes"]


def test_a_resource_that_does_not_close_is_named_and_the_others_close(caplog: pytest.LogCaptureFixture) -> None:
    order: list[str] = []
    server = Server()

    @server.resource("db")
    async def db() -> AsyncIterator[str]:
        yield "db"
        order.append("db closes")

    @server.resource("mail")
    async def mail() -> AsyncIterator[str]:
        yield "mail"
        raise OSError("stuck")

    async def stopping() -> None:
        await server.startup()
        with pytest.raises(ResourceError, match="resource 'mail' did not close: OSError: stuck"):
            await server.shutdown()

    run(stopping())
    assert order == ["db closes"]
    assert [event["resource"] for event in events(caplog, logging.ERROR)] == ["mail"]


def test_a_factory_that_returns_no_context_manager_is_named() -> None:
    server = Server()
    server.resource("db")(lambda: 7)
    with pytest.raises(
        ResourceError, match=r"resource 'db' did not open: TypeError.*int.*not an async context manager"
    ):
        run(server.startup())
