"""After a crash: which hook runs, what becomes of its result, and of a request without one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from stellane import Context, DeadLetter, HTTPError, Request, Response, Retry, Server, Skip, retry_original_handler
from stellane.recovery.context import Attempt, RecoveryContext
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


def failing(error: BaseException) -> Callable[[Context, Request], Coroutine[Any, Any, Any]]:
    async def result(ctx: Context, req: Request) -> Any:
        raise error

    return result


async def slow(ctx: Context, req: Request) -> str:
    await asyncio.sleep(5)
    return "too late"


class Callable3:
    async def __call__(self, ctx: Context, req: Request) -> str:
        return "called"


RECOVERY = RecoveryContext(
    request_id="r-9",
    attempt=1,
    max_attempts=3,
    first_received_ns=1,
    crash=None,
    response_started=False,
    idempotency_key=None,
    fencing_token=1,
    traceparent=TRACEPARENT,
    original_span_id=TRACEPARENT.split("-")[2],
)


def recovered(server: Server, method: str = "POST", target: str = "/", body: bytes = b"") -> MemoryExchange:
    exchange = MemoryExchange(method, target, body=body)

    async def recovering() -> None:
        await server.startup()
        await server.recover(exchange, RECOVERY)
        await server.shutdown()

    run(recovering())
    return exchange


def test_enable_request_recovery_sets_keys_of_the_configuration() -> None:
    server = Server()
    assert server.recovery_defaults() == {}
    server.enable_request_recovery(journal_backend="file", max_recovery_attempts=3)
    assert server.recovery_defaults() == {"enabled": True, "journal_backend": "file", "max_recovery_attempts": 3}


def test_without_a_hook_the_original_handler_runs_in_its_middleware() -> None:
    async def result(ctx: Context, req: Request) -> list[Any]:
        assert ctx.recovery is RECOVERY
        return [ctx.request_id, ctx.trace.trace_id, ctx.trace.parent_span_id, (await req.body()).decode()]

    server = serve(result)

    @server.middleware
    async def around(ctx: Context, req: Request, call_next: Any) -> Response:
        response: Response = await call_next(ctx, req)
        response.add_header("x-around", "1")
        return response

    exchange = recovered(server, body=b"body")
    _, trace_id, span_id, _ = TRACEPARENT.split("-")
    assert msgspec.json.decode(exchange.response_body) == ["r-9", trace_id, span_id, "body"]
    assert (b"x-around", b"1") in exchange.response_headers
    assert not server.has_recovery_hook("POST", b"/")


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "error", [KeyError("k"), Retry(1), DeadLetter("no"), Skip(), TimeoutError(), HTTPError(404, "gone")]
)
def test_an_error_of_the_original_handler_is_a_failed_attempt_and_an_http_error_an_answer(
    error: Exception, wrapped: bool
) -> None:
    server = serve(failing(error))

    @server.error_handler(Exception)
    async def everything(ctx: Context, req: Request, error: Exception) -> str:
        raise AssertionError("the last resort must not hide a failed attempt")

    if wrapped:

        @server.middleware
        async def around(ctx: Context, req: Request, call_next: Any) -> Any:
            return await call_next(ctx, req)

    if isinstance(error, HTTPError):
        assert (recovered(server).status, recovered(server).response_body) == (404, b"gone")
    else:
        with pytest.raises(type(error)):
            recovered(server)


def test_an_error_with_a_handler_of_its_own_is_an_answer() -> None:
    server = serve(failing(KeyError("k")))

    @server.error_handler(KeyError)
    async def missing(ctx: Context, req: Request, error: KeyError) -> Response:
        return Response.text("missing", 404)

    assert recovered(server).status == 404


def test_a_replay_over_its_routes_timeout_is_a_failed_attempt() -> None:
    with pytest.raises(TimeoutError):
        recovered(serve(slow, timeout_s=0.01))


def test_a_request_that_no_route_answers_any_more_is_a_dead_letter() -> None:
    with pytest.raises(DeadLetter, match="no route answers POST /gone"):
        recovered(serve("x"), target="/gone")


def hooked(**hooks: Any) -> Server:
    """A server with three routes and a hook that answers its own name for each (route, methods) given."""
    server = Server()
    for pattern in ("/orders", "/orders/{id}", "/other"):
        server.route(pattern, methods=("POST", "PUT"))(Callable3())

    def add(name: str, where: dict[str, Any]) -> None:
        async def hook(ctx: Context, req: Request) -> str:
            return f"{name} {dict(req.params)}"

        server.on_recover(**where)(hook)

    for name, where in hooks.items():
        add(name, where)
    return server


def test_the_hook_of_a_route_beats_the_general_one_and_that_of_a_method_both() -> None:
    server = hooked(
        general={},
        puts={"methods": ["PUT"]},
        orders={"route": "/orders/{id}"},
        order_posts={"route": "/orders/{id}", "methods": ["POST"]},
    )
    for method, target, expected in (
        ("POST", "/other", b"general {}"),
        ("PUT", "/other", b"puts {}"),
        ("PUT", "/orders/7", b"orders {'id': '7'}"),
        ("POST", "/orders/7", b"order_posts {'id': '7'}"),
        ("POST", "/gone", b"general {}"),
        ("POST", "/%zz", b"general {}"),
    ):
        assert server.has_recovery_hook(method, target.encode())
        assert recovered(server, method, target).response_body == expected


def test_has_recovery_hook_is_false_where_none_covers_the_request() -> None:
    server = hooked(orders={"route": "/orders", "methods": {"POST"}})
    assert server.has_recovery_hook("POST", b"/orders")
    assert not server.has_recovery_hook("PUT", b"/orders")
    assert not server.has_recovery_hook("POST", b"/orders/7")
    assert not server.has_recovery_hook("POST", b"/%zz")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"route": "/order"}, "no route has that pattern. Did you mean '/orders'"),
        ({"route": "/orders", "methods": ["GET"]}, "GET is not a method of that route; it has POST, PUT"),
    ],
)
def test_a_hook_that_could_never_run_is_refused_at_the_start(where: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(hooked(wrong=where).startup())


def test_a_hook_runs_instead_of_the_handler_and_may_run_it() -> None:
    calls: list[str] = []

    async def result(ctx: Context, req: Request) -> Response:
        calls.append("handler")
        return Response.json(await req.json(), 201)

    server = serve(result)

    @server.on_recover
    async def recover(ctx: Context, req: Request) -> Response:
        calls.append(f"hook {await req.json()}")
        response = await retry_original_handler(req)
        calls.append(f"got {response.status}")
        return response

    exchange = recovered(server, body=b'{"a":1}')
    assert calls == ["hook {'a': 1}", "handler", "got 201"]
    assert (exchange.status, exchange.response_body) == (201, b'{"a":1}')


def test_a_hook_without_a_result_answers_204_and_its_errors_pass() -> None:
    async def nothing(ctx: Context, req: Request) -> None:
        """Settled without an answer."""

    server = serve("x")
    server.on_recover(nothing)
    assert recovered(server).status == 204
    for error in (Retry(2), HTTPError(404)):
        server = serve("x")
        server.on_recover(failing(error))
        with pytest.raises(type(error)):
            recovered(server)


def test_retry_original_handler_is_for_hooks_only() -> None:
    async def result(ctx: Context, req: Request) -> Response:
        with pytest.raises(RuntimeError, match="the request that an on_recover hook was given"):
            await retry_original_handler(req)
        return Response("checked")

    assert ask(serve(result)).text == "checked"


def test_journal_wish_is_the_routes() -> None:
    server = Server()
    server.post("/a", journal=True)(Callable3())
    server.post("/b/{x}", journal=False)(Callable3())
    server.post("/c")(Callable3())
    assert server.journal_wish("POST", b"/a") is True
    assert server.journal_wish("POST", b"/b/1") is False
    assert server.journal_wish("POST", b"/c") is None
    assert server.journal_wish("GET", b"/a") is False
    assert server.journal_wish("POST", b"/%zz") is False


def test_what_no_route_answers_is_journaled_only_for_a_middleware() -> None:
    server = Server()

    @server.middleware
    async def takes_anything(ctx: Context, req: Request, call_next: Any) -> Response:
        return Response("taken")

    assert server.journal_wish("POST", b"/anything") is None


def test_the_dead_letter_hook_is_told() -> None:
    told: list[Any] = []
    server = serve("x")

    @server.on_dead_letter
    async def dead(ctx: Context, req: Request, attempts: list[Attempt]) -> None:
        told.append((req.path, ctx.request_id, [attempt.error for attempt in attempts]))

    exchange = MemoryExchange("POST", "/")
    exchange.journal_request_id = "r-9"
    run(server.dead_letter(exchange, [Attempt(number=1, started_ns=1, error="KeyError: 'k'")]))
    assert told == [("/", "r-9", ["KeyError: 'k'"])]
    run(serve("x").dead_letter(exchange, []))
