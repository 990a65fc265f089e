"""A Server from the outside: what its handlers return or raise, and what a client sees of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from stellane import Context, HTTPError, Request, Response, Server
from stellane.errors import RemoteProtocolError
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


# --- Answers ---------------------------------------------------------------------------------------


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


# --- Streaming -------------------------------------------------------------------------------------


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


def test_an_http_error_half_way_is_no_answer_any_more(caplog: pytest.LogCaptureFixture) -> None:
    async def refusing() -> AsyncIterator[bytes]:
        yield b"a"
        raise HTTPError(409)

    exchange = started(streaming(refusing()), MemoryExchange())
    assert (exchange.status, exchange.response_body, exchange.aborted) == (200, b"a", True)
    assert isinstance(events(caplog, logging.ERROR)[0]["exc_info"], HTTPError)


def test_a_stream_whose_client_goes_while_it_is_sent_is_closed() -> None:
    """It stands at its `yield` then, where nothing but `aclose` reaches it."""
    closed: list[str] = []
    exchange = MemoryExchange()

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                exchange.disconnect()
        finally:
            closed.append("closed")

    async def handling() -> None:
        server = streaming(endless())
        await server.handle(exchange)
        assert closed == ["closed"]

    run(handling())
    assert exchange.aborted


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


# --- Errors ----------------------------------------------------------------------------------------


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


# --- The test client -------------------------------------------------------------------------------


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
