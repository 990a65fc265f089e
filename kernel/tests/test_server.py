"""A Server from the outside: what is registered, and what a client sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import msgspec
import pytest
from stellane import Context, DeadLetter, HTTPError, Request, Response, Retry, Server, Skip, retry_original_handler
from stellane.app.resources import ResourceError
from stellane.config import Config, LimitsConfig
from stellane.errors import ConfigError, RemoteProtocolError
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


# --- Answers ------------------------------------------------------------------------------------


def test_the_example_of_the_specification() -> None:
    server = Server()

    @server.get("/hello/{name}")
    async def hello(ctx: Context, req: Request) -> str:
        return f"Hello {req.params['name']}"

    response = ask(server, target="/hello/Ada%20L")
    assert (response.status, response.text) == (200, "Hello Ada L")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("result", "status", "body"),
    [
        ("text", 200, b"text"),
        (b"bytes", 200, b"bytes"),
        ({"a": 1}, 200, b'{"a":1}'),
        (None, 204, b""),
        (Response("r", 202), 202, b"r"),
    ],
)
def test_results_become_answers(result: Any, status: int, body: bytes) -> None:
    response = ask(serve(result))
    assert (response.status, response.body) == (status, body)


def test_head_has_gets_fields_and_no_body() -> None:
    response = ask(serve("text"), "HEAD")
    assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "4")


def test_unknown_paths_and_methods() -> None:
    server = serve("x")
    assert ask(server, target="/none").status == 404
    assert ask(server, target="/%zz").status == 400
    refused = ask(server, "DELETE")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")
    options = ask(server, "OPTIONS")
    assert (options.status, options.headers["allow"], options.body) == (204, "GET, HEAD, OPTIONS, POST", b"")
    assert ask(server, "OPTIONS", "/none").status == 404
    every = ask(server, "OPTIONS", "*")
    assert (every.status, every.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")


def test_options_and_head_may_have_handlers_of_their_own() -> None:
    server = Server()

    @server.options("/")
    async def options(ctx: Context, req: Request) -> str:
        return "mine"

    @server.head("/")
    async def head(ctx: Context, req: Request) -> Response:
        return Response(headers={"x-mine": "1"})

    @server.get("/")
    async def get(ctx: Context, req: Request) -> str:
        return "get"

    assert ask(server, "OPTIONS").text == "mine"
    assert ask(server, "HEAD").headers["x-mine"] == "1"
    assert ask(server).text == "get"


def test_every_method_has_its_decorator() -> None:
    server = Server()

    async def handler(ctx: Context, req: Request) -> str:
        return req.method

    for name in ("get", "post", "put", "patch", "delete"):
        getattr(server, name)("/")(handler)
        assert ask(serve("x"), "GET").status == 200
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        assert ask(server, method).text == method


def test_a_result_that_is_no_answer_is_500_and_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    response = ask(serve(7))
    assert (response.status, response.text) == (500, "Internal Server Error")
    (event,) = events(caplog, logging.ERROR)
    assert "handler returned int; return a Response" in str(event["exc_info"])


# --- Streaming ----------------------------------------------------------------------------------


def streaming(chunks: AsyncIterator[Any], **response: Any) -> Server:
    async def result(ctx: Context, req: Request) -> Response:
        return Response.stream(chunks, **response)

    return serve(result)


async def letters(closed: list[str]) -> AsyncIterator[bytes | str]:
    try:
        yield b"a"
        await asyncio.sleep(0)
        yield "é"
        yield b""
        yield b"c"
    finally:
        closed.append("closed")


def test_a_stream_is_sent_part_by_part_and_closed() -> None:
    closed: list[str] = []
    exchange = started(streaming(letters(closed)), MemoryExchange())
    assert exchange.parts_sent == [b"a", "é".encode(), b"", b"c"]
    assert exchange.response_body == "aéc".encode()
    assert exchange.response_ended
    assert closed == ["closed"]


def test_an_async_iterator_is_streamed() -> None:
    async def result(ctx: Context, req: Request) -> AsyncIterator[bytes | str]:
        return letters([])

    response = ask(serve(result))
    assert (response.body, response.headers["content-type"]) == ("aéc".encode(), "application/octet-stream")


def test_head_starts_a_stream_and_takes_nothing_from_it() -> None:
    taken: list[str] = []

    class Watched:
        def __aiter__(self) -> Watched:
            taken.append("asked")
            return self

    exchange = started(streaming(Watched()), MemoryExchange("HEAD"))
    assert (exchange.status, exchange.response_body, exchange.response_ended) == (200, b"", True)
    assert taken == []


def test_a_stream_that_fails_half_way_is_cut_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise KeyError("half way")

    exchange = started(streaming(broken()), MemoryExchange())
    assert (exchange.response_body, exchange.aborted) == (b"a", True)
    (event,) = events(caplog, logging.ERROR)
    assert isinstance(event["exc_info"], KeyError)


def test_a_waiting_stream_is_closed_when_its_client_goes(caplog: pytest.LogCaptureFixture) -> None:
    """Server-sent events wait for news; a client that has gone must not be waited for with them."""
    closed: list[str] = []

    async def news(exchange: MemoryExchange) -> AsyncIterator[bytes]:
        try:
            yield b"first"
            asyncio.get_running_loop().call_soon(exchange.disconnect)
            await asyncio.Event().wait()
        finally:
            closed.append("closed")

    exchange = MemoryExchange()
    started(streaming(news(exchange)), exchange)
    assert closed == ["closed"]
    assert exchange.aborted
    assert events(caplog, logging.INFO) == []


def test_a_timeout_inside_a_stream_is_the_handlers_own(caplog: pytest.LogCaptureFixture) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"a"
        async with asyncio.timeout(0.001):
            await asyncio.sleep(5)

    assert started(streaming(slow()), MemoryExchange()).aborted
    (event,) = events(caplog, logging.ERROR)
    assert isinstance(event["exc_info"], TimeoutError)


# --- Errors -------------------------------------------------------------------------------------


def failing(error: BaseException) -> Callable[[Context, Request], Coroutine[Any, Any, Any]]:
    async def result(ctx: Context, req: Request) -> Any:
        raise error

    return result


def test_http_errors_are_answers() -> None:
    response = ask(serve(failing(HTTPError(418, "a teapot", {"x-tea": "oolong"}))))
    assert (response.status, response.text, response.headers["x-tea"]) == (418, "a teapot", "oolong")
    assert ask(serve(failing(HTTPError(403)))).text == "Forbidden"
    assert ask(serve(failing(HTTPError(499)))).text == "Error 499"


def test_an_unhandled_exception_is_500_with_its_traceback_and_ids_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    error = ZeroDivisionError("secret")
    server = serve(failing(error))
    response = ask(server, headers={"x-request-id": "r-1", "traceparent": TRACEPARENT})
    assert (response.status, response.text) == (500, "Internal Server Error")
    assert response.headers["x-request-id"] == "r-1"
    (event,) = events(caplog, logging.ERROR)
    assert event["exc_info"] is error
    assert (event["request_id"], event["trace_id"]) == ("r-1", TRACEPARENT.split("-")[1])
    assert event["span_id"] == response.headers["traceresponse"].split("-")[2]


def test_the_error_handler_of_the_nearest_class_answers() -> None:
    server = serve(failing(KeyError("k")))

    @server.error_handler(LookupError)
    async def lookup(ctx: Context, req: Request, error: LookupError) -> Response:
        return Response.text(f"lookup {error.args[0]}", 404)

    assert (ask(server).status, ask(server).text) == (404, "lookup k")

    server = serve(failing(KeyError("k")))
    server.error_handler(LookupError)(lookup)

    @server.error_handler(KeyError)
    async def key(ctx: Context, req: Request, error: KeyError) -> str:
        return "key"

    assert ask(server).text == "key"


def test_a_handler_for_our_own_errors_takes_the_place_of_the_standard_answer() -> None:
    server = serve("x")

    @server.error_handler(HTTPError)
    async def as_json(ctx: Context, req: Request, error: HTTPError) -> Response:
        return Response.json({"error": error.detail}, error.status, error.headers)

    assert ask(server, target="/none").json() == {"error": "Not Found"}
    assert ask(server, "PUT").headers["allow"] == "GET, HEAD, OPTIONS, POST"


def test_the_handler_of_exception_words_the_500_which_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    server = serve(failing(ZeroDivisionError()))

    @server.error_handler(Exception)
    async def everything(ctx: Context, req: Request, error: Exception) -> Response:
        return Response.json({"oops": type(error).__name__}, 500)

    assert ask(server).json() == {"oops": "ZeroDivisionError"}
    assert len(events(caplog, logging.ERROR)) == 1
    assert ask(server, target="/none").text == "Not Found", "HTTPError has a nearer answer"


def test_an_error_handler_that_fails_gives_500(caplog: pytest.LogCaptureFixture) -> None:
    server = serve(failing(KeyError()))

    @server.error_handler(KeyError)
    async def worse(ctx: Context, req: Request, error: KeyError) -> None:
        raise RuntimeError("worse")

    assert ask(server).status == 500
    (event,) = events(caplog, logging.ERROR)
    assert str(event["exc_info"]) == "worse"
    assert isinstance(event["exc_info"].__context__, KeyError)

    last = serve(failing(KeyError()))

    @last.error_handler(Exception)
    async def worst(ctx: Context, req: Request, error: Exception) -> None:
        raise RuntimeError("worst")

    assert (ask(last).status, ask(last).text) == (500, "Internal Server Error")


def test_a_response_that_the_protocol_refuses_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async def result(ctx: Context, req: Request) -> Response:
        response = Response("x")
        response.fields = ((b"a", b"1\r\nb: 2"),)
        return response

    response = ask(serve(result))
    assert (response.status, response.text) == (500, "Internal Server Error")
    assert "b" not in response.headers
    assert "CR, LF or NUL" in str(events(caplog, logging.ERROR)[0]["exc_info"])


def test_a_body_over_the_limit_is_413_and_bad_framing_its_own_status() -> None:
    async def read(ctx: Context, req: Request) -> bytes:
        return await req.body()

    exchange = started(serve(read), MemoryExchange("POST", body=b"12345", body_bytes_max=4))
    assert exchange.status == 413
    assert b"4 bytes" in exchange.response_body
    assert (b"connection", b"close") in exchange.response_headers
    response = ask(serve(failing(RemoteProtocolError("too slow", 408))))
    assert (response.status, response.text, response.headers["connection"]) == (408, "too slow", "close")


def test_a_client_that_goes_during_its_body_gets_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def read(ctx: Context, req: Request) -> bytes:
        return await req.body()

    exchange = MemoryExchange("POST", body=b"a", more_body=True)
    exchange.disconnect()
    started(serve(read), exchange)
    assert (exchange.status, exchange.aborted) == (0, True)
    assert events(caplog, logging.INFO) == []


def test_cancellation_is_passed_on_and_the_client_cut_off() -> None:
    async def forever(ctx: Context, req: Request) -> None:
        await asyncio.Event().wait()

    async def cancelling() -> MemoryExchange:
        server = serve(forever)
        server.error_handler(Exception)(failing_handler)
        exchange = MemoryExchange()
        task = asyncio.create_task(server.handle(exchange))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return exchange

    async def failing_handler(ctx: Context, req: Request, error: Exception) -> None:
        raise AssertionError("a cancellation is no error to answer")

    exchange = run(cancelling())
    assert (exchange.aborted, exchange.status) == (True, 0)


# --- Deadlines ----------------------------------------------------------------------------------


async def slow(ctx: Context, req: Request) -> str:
    await asyncio.sleep(5)
    return "too late"


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


def test_a_stream_over_its_timeout_is_cut() -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b"x"
            await asyncio.sleep(0.001)

    async def result(ctx: Context, req: Request) -> AsyncIterator[bytes]:
        return drip()

    exchange = started(serve(result, timeout_s=0.02), MemoryExchange())
    assert (exchange.status, exchange.aborted) == (200, True)


def test_a_handlers_own_timeout_error_is_no_deadline(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(serve(failing(TimeoutError("of the database")), timeout_s=5)).status == 500
    assert str(events(caplog, logging.ERROR)[0]["exc_info"]) == "of the database"


# --- Context ------------------------------------------------------------------------------------


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


def test_ids_go_with_streams_and_errors_too() -> None:
    for server in (streaming(letters([])), serve(failing(HTTPError(400))), serve(failing(OSError()))):
        assert ask(server, headers={"x-request-id": "r-1"}).headers["x-request-id"] == "r-1"


def test_a_journaled_request_has_the_id_it_is_on_record_with() -> None:
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


# --- Middleware ---------------------------------------------------------------------------------


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


# --- Resources ----------------------------------------------------------------------------------


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
            LookupError, match="no open resource is called 'cach'; open are: db, cache. Did you mean 'cache'"
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


# --- Registration -------------------------------------------------------------------------------


def plain(ctx: Context, req: Request) -> str:
    return ""


async def generator(ctx: Context, req: Request) -> AsyncIterator[bytes]:
    yield b""


async def no_request(ctx: Context) -> str:
    return ""


async def three(ctx: Context, req: Request, more: int) -> str:
    return ""


class Callable3:
    async def __call__(self, ctx: Context, req: Request) -> str:
        return "called"


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (plain, r"test_server.plain is not async; write `async def plain\(ctx, req\)`"),
        (generator, r"async generator .* return Response.stream"),
        (no_request, r"no_request\(ctx.*cannot be called with \(ctx, req\)"),
        (three, r"three\(ctx.*more.*cannot be called with \(ctx, req\)"),
        (Callable3, "is not a function"),
        ("handler", "is not a function"),
        (lambda ctx, req: "", "is not async"),
    ],
)
def test_a_handler_of_another_shape_is_refused_when_registered(handler: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^route '/a': .*{message}"):
        Server().get("/a")(handler)


def test_methods_partials_and_objects_are_handlers() -> None:
    class Shop:
        async def show(self, ctx: Context, req: Request) -> str:
            return "shown"

    server = Server()
    server.get("/method")(Shop().show)
    server.get("/object")(Callable3())
    server.get("/partial")(functools.partial(three, more=1))
    assert ask(server, target="/method").text == "shown"
    assert ask(server, target="/object").text == "called"
    assert ask(server, target="/partial").status == 200


@pytest.mark.parametrize(
    ("register", "error", "message"),
    [
        (lambda s: s.route("/", methods="POST"), TypeError, "methods is a list"),
        (lambda s: s.route("/", methods=["post"]), ValueError, "'post' is not a method name in upper case"),
        (lambda s: s.route("/", methods=[]), ValueError, "methods is empty"),
        (lambda s: s.get("/", timeout_s=-1), ValueError, "timeout_s is a number of seconds"),
        (lambda s: s.get("/", timeout_s=float("nan")), ValueError, "timeout_s is a number of seconds"),
        (lambda s: s.get("a")(three), TypeError, "cannot be called"),
        (lambda s: s.middleware(no_request), TypeError, r"middleware: .*\(ctx, req, call_next\)"),
        (lambda s: s.error_handler(7), TypeError, "takes an exception class"),
        (lambda s: s.error_handler(KeyboardInterrupt), TypeError, "takes an exception class"),
        (lambda s: s.error_handler(KeyError)(no_request), TypeError, r"error handler of KeyError"),
        (lambda s: s.resource("get")(plain), ValueError, "cannot be that"),
        (lambda s: s.resource("my db")(plain), ValueError, "cannot be that"),
        (lambda s: s.resource("db")(no_request), TypeError, "async generator function"),
        (lambda s: s.resource("db")(plain), TypeError, "takes nothing, or the resources"),
        (lambda s: s.resource("db")(7), TypeError, "async generator function"),
        (lambda s: s.on_recover(plain), TypeError, "on_recover: .* is not async"),
        (lambda s: s.on_recover(methods=["post"]), ValueError, "upper case"),
        (lambda s: s.on_dead_letter(no_request), TypeError, r"\(ctx, req, attempts\)"),
        (lambda s: s.enable_request_recovery(max_atempts=3), ConfigError, "no key 'max_atempts'"),
        (
            lambda s: s.enable_request_recovery(max_recovery_attempt=3),
            ConfigError,
            "Did you mean 'max_recovery_attempts'",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused_at_once(register: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register(Server())


def test_a_resource_name_and_a_hook_are_taken_once() -> None:
    server = Server()
    server.resource("db")(lambda: None)
    with pytest.raises(ValueError, match="registered twice"):
        server.resource("db")(lambda: None)
    server.on_dead_letter(three)
    with pytest.raises(ValueError, match="there is a hook already"):
        server.on_dead_letter(three)
    server.on_recover(methods=["POST"])(Callable3())
    server.on_recover(Callable3())
    with pytest.raises(ValueError, match="already registered for every method of every route"):
        server.on_recover(Callable3())


def test_nothing_is_registered_after_the_start() -> None:
    server = serve("x")
    ask(server)
    for register in (
        lambda: server.get("/late")(Callable3()),
        lambda: server.middleware(three),
        lambda: server.resource("late")(lambda: None),
        lambda: server.error_handler(KeyError)(three),
        lambda: server.on_recover(Callable3()),
        lambda: server.on_dead_letter(three),
        server.enable_request_recovery,
    ):
        with pytest.raises(RuntimeError, match="after the server has started"):
            register()


# --- Recovery -----------------------------------------------------------------------------------


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
    assert server.journal_wish("GET", b"/a") is None
    assert server.journal_wish("POST", b"/%zz") is None


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


# --- The test client ----------------------------------------------------------------------------


def test_the_client_is_used_inside_its_block() -> None:
    with pytest.raises(RuntimeError, match="async with TestClient"):
        run(TestClient(serve("x")).request("GET", "/"))


def test_the_client_sends_json_and_headers() -> None:
    async def echo(ctx: Context, req: Request) -> list[Any]:
        return [await req.json(), req.headers["content-type"], req.headers["content-length"], req.headers["x-a"]]

    async def asking() -> Any:
        async with TestClient(serve(echo)) as client:
            return (await client.post("/", json={"a": 1}, headers={"X-A": "1"})).json()

    assert run(asking()) == [{"a": 1}, "application/json", "7", "1"]
