"""What surrounds a request: its deadline and its ids."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest

from stellane import Context, HTTPError, Request, Response, Server
from stellane.config import Config, LimitsConfig
from stellane.testing import ClientResponse, MemoryExchange, TestClient

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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


def started(server: Server, exchange: MemoryExchange) -> MemoryExchange:
    """The exchange, after the server has handled it."""

    async def handling() -> None:
        await server.startup()
        await server.handle(exchange)
        await server.shutdown()

    run(handling())
    return exchange


def events(caplog: pytest.LogCaptureFixture, level: int = logging.DEBUG) -> list[dict[str, Any]]:
    """Log events of the application, as structlog hands them over."""
    return [
        record.msg
        for record in caplog.records
        if record.name.startswith("stellane") and record.levelno >= level and isinstance(record.msg, dict)
    ]


def failing(error: BaseException) -> Callable[[Context, Request], Coroutine[Any, Any, Any]]:
    async def result(ctx: Context, req: Request) -> Any:
        raise error

    return result


# --- Deadlines -------------------------------------------------------------------------------------


def test_a_handler_over_its_timeout_is_cancelled_and_answered_504(caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[bool] = []

    async def result(ctx: Context, req: Request) -> None:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    assert ask(serve(result, timeout_s=0.01)).status == 504
    assert cancelled == [True]
    (event,) = events(caplog, logging.WARNING)
    assert (event["event"], event["timeout_s"]) == ("request timed out", 0.01)


def test_limits_request_timeout_s_is_for_routes_that_say_nothing() -> None:
    def configured(**route: Any) -> ClientResponse:
        async def deadline(ctx: Context, req: Request) -> str:
            if route.get("timeout_s") == 0:
                return str(ctx.deadline)
            await asyncio.sleep(1)
            return "in time"

        server = serve(deadline, **route)
        server.configure(Config(limits=LimitsConfig(request_timeout_s=0.01)))
        return ask(server)

    assert configured().status == 504
    assert configured(timeout_s=3).text == "in time"
    assert configured(timeout_s=0).text == "None"


def test_ctx_tells_the_time_that_is_left() -> None:
    async def result(ctx: Context, req: Request) -> dict[str, Any]:
        assert ctx.deadline is not None
        return {"left": ctx.time_left(), "deadline": ctx.deadline - time.monotonic()}

    left = ask(serve(result, timeout_s=60)).json()
    assert 50 < left["left"] <= 60
    assert 50 < left["deadline"] <= 60

    async def none(ctx: Context, req: Request) -> str:
        return f"{ctx.deadline} {ctx.time_left()}"

    assert ask(serve(none)).text == "None None"


async def drip() -> AsyncIterator[bytes]:
    while True:
        yield b"x"
        await asyncio.sleep(0.001)


def test_a_stream_over_its_timeout_is_cut() -> None:
    async def result(ctx: Context, req: Request) -> AsyncIterator[bytes]:
        return drip()

    exchange = started(serve(result, timeout_s=0.02), MemoryExchange())
    assert (exchange.status, exchange.aborted) == (200, True)


def test_a_handlers_own_timeout_error_is_no_deadline(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(serve(failing(TimeoutError("of the database")), timeout_s=5)).status == 500
    assert str(events(caplog, logging.ERROR)[0]["exc_info"]) == "of the database"


# --- Context ---------------------------------------------------------------------------------------


async def ids(ctx: Context, req: Request) -> list[str]:
    assert ctx.request_id == ctx.request_id
    assert ctx.trace is ctx.trace
    return [ctx.request_id, ctx.trace.trace_id, ctx.trace.span_id]


def test_ids_are_sent_back_to_a_client_that_brought_them() -> None:
    response = ask(serve(ids), headers={"x-request-id": "r-1", "traceparent": TRACEPARENT})
    assert response.headers["x-request-id"] == "r-1"
    _, trace_id, span_id, flags = response.headers["traceresponse"].split("-")
    assert response.json() == ["r-1", trace_id, span_id]
    assert (trace_id, flags) == (TRACEPARENT.split("-")[1], "01")
    assert span_id != TRACEPARENT.split("-")[2]


def test_ids_are_not_sent_to_a_client_that_brought_none() -> None:
    response = ask(serve(ids))
    assert list(response.headers) == ["content-type", "content-length"]
    assert all(response.json())


@pytest.mark.parametrize("header", ["x-request-id", "traceparent"])
@pytest.mark.parametrize(
    "result", ["text", Response("x"), b"bytes", None, failing(HTTPError(400)), failing(OSError()), "stream"]
)
def test_ids_go_with_every_kind_of_answer(result: Any, header: str) -> None:
    async def two(ctx: Context, req: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            yield b"x"

        return Response.stream(parts())

    response = ask(serve(two if result == "stream" else result), headers={header: TRACEPARENT})
    if header == "x-request-id":
        assert response.headers["x-request-id"] == TRACEPARENT
        assert "traceresponse" not in response.headers
    else:
        assert response.headers["traceresponse"].split("-")[1] == TRACEPARENT.split("-")[1]
        assert "x-request-id" not in response.headers


def test_an_id_that_the_handler_gives_is_the_only_one() -> None:
    headers = {"x-request-id": "r-1", "traceparent": TRACEPARENT}
    exchange = MemoryExchange(headers=[(name.encode(), value.encode()) for name, value in headers.items()])
    started(serve(Response("x", headers={"X-Request-Id": "mine"})), exchange)
    names = [name for name, _ in exchange.response_headers]
    assert names.count(b"x-request-id") == names.count(b"traceresponse") == 1
    assert (b"x-request-id", b"mine") in exchange.response_headers


def test_a_journaled_request_has_the_id_it_is_on_record_with() -> None:
    """Also when the client's own was not fit to be one."""
    exchange = MemoryExchange(headers=[(b"x-request-id", b"not fit to log"), (b"idempotency-key", b"k-1")])
    exchange.journal_request_id = "on-record"

    async def result(ctx: Context, req: Request) -> list[Any]:
        return [ctx.request_id, ctx.idempotency_key, ctx.fencing_token, ctx.recovery]

    started(serve(result), exchange)
    assert msgspec.json.decode(exchange.response_body) == ["on-record", "k-1", 0, None]
    assert (b"x-request-id", b"on-record") in exchange.response_headers


def test_the_logger_has_the_ids_bound(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def result(ctx: Context, req: Request) -> None:
        ctx.logger().info("taken", order=7)
        assert ctx.logger() is ctx.logger()

    ask(serve(result), headers={"x-request-id": "r-1", "traceparent": TRACEPARENT})
    (event,) = events(caplog)
    assert (event["event"], event["order"], event["request_id"]) == ("taken", 7, "r-1")
    assert event["trace_id"] == TRACEPARENT.split("-")[1]
    assert len(event["span_id"]) == 16
