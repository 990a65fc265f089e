"""Middleware: order, and what it sees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from stellane import Context, HTTPError, Request, Response, Server
from stellane.testing import ClientResponse, MemoryExchange, TestClient


def run(coro: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coro, 10))


def ask(server: Server, method: str = "GET", target: str = "/", **options: Any) -> ClientResponse:
    """One request to a server that is started and stopped for it."""

    async def asking() -> ClientResponse:
        async with TestClient(server) as client:
            return await client.request(method, target, **options)

    return run(asking())


def serve(result: Any, **route: Any) -> Server:
    """A server whose "/" returns `result`, or calls it with (ctx, req) and awaits that."""
    server = Server()

    @server.route("/", methods=("GET", "POST"), **route)
    async def handler(ctx: Context, req: Request) -> Any:
        return await result(ctx, req) if callable(result) else result

    return server


def failing(error: BaseException) -> Callable[[Context, Request], Coroutine[Any, Any, Any]]:
    async def result(ctx: Context, req: Request) -> Any:
        raise error

    return result


def test_middleware_runs_in_order_around_every_answer() -> None:
    server = serve(failing(HTTPError(409, "conflict")))
    order: list[str] = []

    def layer(name: str) -> None:
        @server.middleware
        async def around(ctx: Context, req: Request, call_next: Any) -> Response:
            order.append(f"{name} in")
            ctx.state[name] = True
            response: Response = await call_next(ctx, req)
            order.append(f"{name} out {response.status}")
            response.add_header("x-layer", name)
            return response

    layer("outer")
    layer("inner")
    response = ask(server)
    assert order == ["outer in", "inner in", "inner out 409", "outer out 409"]
    assert (response.status, response.text) == (409, "conflict")
    assert response.headers.getall("x-layer") == ["inner", "outer"]
    for method, target, status in (("GET", "/none", 404), ("PUT", "/", 405), ("OPTIONS", "/", 204)):
        order.clear()
        assert ask(server, method, target).status == status
        assert order[-1] == f"outer out {status}"


def test_middleware_may_answer_by_itself_and_return_what_handlers_may() -> None:
    server = serve(failing(AssertionError("not reached")))

    @server.middleware
    async def closed(ctx: Context, req: Request, call_next: Any) -> dict[str, str]:
        return {"closed": req.path}

    assert ask(server).json() == {"closed": "/"}


def test_an_unhandled_exception_passes_through_middleware() -> None:
    server = serve(failing(KeyError("k")))
    seen: list[BaseException] = []

    @server.middleware
    async def watching(ctx: Context, req: Request, call_next: Any) -> Any:
        try:
            return await call_next(ctx, req)
        except KeyError as error:
            seen.append(error)
            raise

    assert ask(server).status == 500
    assert len(seen) == 1


def test_a_request_before_the_start_is_not_let_past_the_middleware() -> None:
    server = serve("secret")

    @server.middleware
    async def closed(ctx: Context, req: Request, call_next: Any) -> Response:
        return Response.text("closed", 403)

    exchange = MemoryExchange()
    run(server.handle(exchange))
    assert (exchange.status, exchange.response_body) == (403, b"closed")
