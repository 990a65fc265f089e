"""ASGI 3 apps over exchanges: the scope, both directions, and what goes wrong."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stellane.app.asgi import ASGIApplication
from stellane.config import Config, HttpConfig, LimitsConfig
from stellane.errors import ClientDisconnected, LocalProtocolError, RemoteProtocolError
from stellane.testing import MemoryExchange

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


def body(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages: dict[str, Any]) -> App:
    """An app that sends these messages and returns."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def handle(app: App, exchange: MemoryExchange | None = None, config: Config | None = None) -> MemoryExchange:
    """The exchange, after the app has handled it."""
    exchange = exchange or MemoryExchange()
    application = ASGIApplication(app)
    if config is not None:
        application.configure(config)
    asyncio.run(asyncio.wait_for(application.handle(exchange), 10))
    return exchange


def errors(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[dict[str, Any]]:
    return [record.msg for record in caplog.records if record.levelno >= level and isinstance(record.msg, dict)]


class CountingExchange(MemoryExchange):
    """Says how its response was sent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.calls: list[str] = []
        self.kind_of_headers: type | None = None

    def respond(self, status: int, headers: Any, body: bytes) -> None:
        self.calls.append("respond")
        super().respond(status, headers, body)

    def start(self, status: int, headers: Any) -> None:
        self.calls.append("start")
        self.kind_of_headers = type(headers)
        super().start(status, headers)


# --- The scope ----------------------------------------------------------------------------------


def scope_of(exchange: MemoryExchange, config: Config | None = None) -> dict[str, Any]:
    scopes: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await sending(START, body())(scope, receive, send)

    handle(app, exchange, config)
    return scopes[0]


def test_the_scope_is_complete() -> None:
    exchange = MemoryExchange(
        "PUT", "/caf%C3%A9/a%2Fb?x=1&y", [(b"Host", b"h"), (b"x", b"1"), (b"X", b"2")], http_version="1.0"
    )
    assert scope_of(exchange) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.0",
        "method": "PUT",
        "scheme": "http",
        "path": "/café/a/b",
        "raw_path": b"/caf%C3%A9/a%2Fb",
        "query_string": b"x=1&y",
        "root_path": "",
        "headers": [(b"host", b"h"), (b"x", b"1"), (b"x", b"2")],
        "client": ("127.0.0.1", 49152),
        "server": ("127.0.0.1", 8000),
        "extensions": {},
    }


def test_root_path_is_part_of_the_path() -> None:
    scope = scope_of(MemoryExchange("GET", "/a%20b"), Config(http=HttpConfig(root_path="/api")))
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == ("/api", "/api/a b", b"/api/a%20b")


def test_a_unix_socket_has_no_port() -> None:
    scope = scope_of(MemoryExchange(server=("/run/a.sock", 0), client=None))
    assert (scope["server"], scope["client"]) == (("/run/a.sock", None), None)


@pytest.mark.parametrize(("target", "path"), [(b"/\xff", "/\ufffd"), (b"/%FF", "/\ufffd"), (b"/\xc3\xa9", "/é")])
def test_a_path_that_is_not_ascii_is_decoded_as_utf8(target: bytes, path: str) -> None:
    scope = scope_of(MemoryExchange("GET", target))
    assert (scope["path"], scope["raw_path"]) == (path, target)


def test_each_request_has_a_scope_of_its_own() -> None:
    first, second = scope_of(MemoryExchange()), scope_of(MemoryExchange())
    assert first["asgi"] is not second["asgi"]
    assert first["extensions"] is not second["extensions"]


# --- The response -------------------------------------------------------------------------------


def test_a_start_and_one_body_leave_as_one_piece() -> None:
    exchange = CountingExchange()
    handle(sending(START, body(b"hello")), exchange)
    assert (exchange.status, exchange.response_body, exchange.calls) == (200, b"hello", ["respond"])
    assert exchange.response_headers == [(b"content-type", b"text/plain"), (b"content-length", b"5")]


def test_nothing_leaves_before_the_first_body() -> None:
    started: list[bool] = []
    exchange = MemoryExchange()

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        started.append(exchange.response_started)
        await send({"type": "http.response.body"})

    handle(app, exchange)
    assert started == [False]
    assert (exchange.response_body, exchange.response_ended) == (b"", True)


@pytest.mark.parametrize("last", [b"", b"c"])
def test_a_streamed_body_is_sent_part_by_part(last: bytes) -> None:
    exchange = CountingExchange()
    handle(sending(START, body(b"a", more=True), body(b"b", more=True), body(last)), exchange)
    assert exchange.calls == ["start"]
    assert exchange.parts_sent == [part for part in (b"a", b"b", last) if part]
    assert (exchange.response_body, exchange.response_ended) == (b"ab" + last, True)


def test_an_empty_first_part_lets_the_head_go() -> None:
    """How apps of server-sent events tell the client at once that it is connected."""
    exchange = MemoryExchange()
    handle(sending(START, body(b"", more=True), body()), exchange)
    assert exchange.parts_sent == [b""]


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_a_body_may_be_any_kind_of_bytes(make: Any) -> None:
    assert handle(sending(START, {**body(), "body": make(b"x")})).response_body == b"x"


def test_headers_may_be_any_iterable_of_pairs() -> None:
    pairs = ([name, value] for name, value in [(b"a", b"1"), (b"A", b"2")])
    exchange = CountingExchange()
    handle(sending({**START, "headers": pairs}, body(b"", more=True), body()), exchange)
    assert exchange.kind_of_headers is tuple, "a protocol may need to go through them twice"
    assert exchange.response_headers == [(b"a", b"1"), (b"a", b"2")]
    assert handle(sending({"type": "http.response.start", "status": 204}, body())).status == 204


def test_head_answers_carry_no_body() -> None:
    for messages in ([body(b"hello")], [body(b"he", more=True), body(b"llo")]):
        start = {**START, "headers": [(b"content-length", b"5")]}
        exchange = handle(sending(start, *messages), MemoryExchange("HEAD"))
        assert (exchange.response_body, exchange.response_headers) == (b"", [(b"content-length", b"5")])


@pytest.mark.parametrize("status", [204, 304])
def test_a_body_that_its_status_forbids_is_dropped(status: int) -> None:
    """Frameworks send "null" with a 204 and expect the server to know better."""
    exchange = handle(sending({**START, "status": status}, body(b"null")))
    assert (exchange.status, exchange.response_body) == (status, b"")


# --- The request --------------------------------------------------------------------------------


def receiving(count: int, exchange: MemoryExchange) -> list[dict[str, Any]]:
    """The first `count` messages that an app receives before it answers."""
    messages: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        for _ in range(count):
            messages.append(await receive())
        await sending(START, body())(scope, receive, send)

    handle(app, exchange)
    return messages


def test_the_body_arrives_in_parts() -> None:
    assert receiving(3, MemoryExchange("POST", body=[b"a", b"b"])) == [
        {"type": "http.request", "body": b"a", "more_body": True},
        {"type": "http.request", "body": b"b", "more_body": True},
        {"type": "http.request", "body": b"", "more_body": False},
    ]
    assert receiving(1, MemoryExchange()) == [{"type": "http.request", "body": b"", "more_body": False}]


def test_disconnect_comes_after_the_answer() -> None:
    messages: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def listen() -> None:
            messages.append(await receive())
            messages.append(await receive())

        listening = asyncio.create_task(listen())
        await asyncio.sleep(0)
        assert [message["type"] for message in messages] == ["http.request"]
        await sending(START, body(b"x"))(scope, receive, send)
        await listening
        messages.append(await receive())

    handle(app)
    assert [message["type"] for message in messages] == ["http.request", "http.disconnect", "http.disconnect"]


def test_disconnect_comes_after_an_answer_that_did_not_wait_for_the_body() -> None:
    types: list[str] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        reading = asyncio.create_task(receive())
        await asyncio.sleep(0)
        await sending(START, body(b"x"))(scope, receive, send)
        types.append((await reading)["type"])
        types.append((await receive())["type"])

    handle(app, MemoryExchange("POST", more_body=True))
    assert types == ["http.disconnect", "http.disconnect"]


def test_a_client_that_goes_is_told_to_receive_and_to_send(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    exchange = MemoryExchange("POST", body=b"a", more_body=True)

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await receive()
        exchange.disconnect()
        seen.append((await receive())["type"])
        await send(START)
        try:
            await send(body(b"x"))
        except OSError as error:
            seen.append(error)
            raise

    handle(app, exchange)
    assert seen[0] == "http.disconnect"
    assert isinstance(seen[1], ClientDisconnected)
    assert (exchange.status, exchange.aborted) == (0, True)
    assert errors(caplog) == []


def test_send_raises_an_oserror_once_the_client_has_gone(caplog: pytest.LogCaptureFixture) -> None:
    """ASGI 2.4: frameworks stop their streams on OSError."""
    exchange = MemoryExchange()
    stopped: list[int] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        for number in range(100):
            if number == 3:
                exchange.disconnect()
            try:
                await send(body(b"x", more=True))
            except OSError:
                stopped.append(number)
                return

    handle(app, exchange)
    assert stopped == [3]
    assert exchange.aborted
    assert errors(caplog) == []


def test_a_body_over_the_limit_is_413_whatever_the_app_makes_of_it(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ValueError("a framework's own error for a client that went")

    exchange = handle(app, MemoryExchange("POST", body=[b"123", b"45"], body_bytes_max=4))
    assert exchange.status == 413
    assert b"4 bytes" in exchange.response_body
    assert (b"connection", b"close") in exchange.response_headers
    assert errors(caplog) == []


def test_a_body_that_breaks_the_protocol_has_its_own_status() -> None:
    class Broken(MemoryExchange):
        async def receive(self) -> bytes:
            raise RemoteProtocolError("no part of the body arrived", 408)

    exchange = Broken("POST")
    assert receiving(1, exchange) == [{"type": "http.disconnect"}]
    assert (exchange.status, exchange.response_body) == (408, b"no part of the body arrived")


def test_a_body_over_the_limit_cuts_a_response_that_has_begun() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await sending(START, body(b"a", more=True))(scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"

    exchange = handle(app, MemoryExchange("POST", body=b"12345", body_bytes_max=4))
    assert (exchange.response_body, exchange.aborted) == (b"a", True)


# --- Apps that go wrong -------------------------------------------------------------------------


def test_an_app_that_raises_is_answered_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = ZeroDivisionError("secret")

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        raise error

    exchange = handle(app)
    assert (exchange.status, exchange.response_body) == (500, b"Internal Server Error")
    (event,) = errors(caplog)
    assert (event["event"], event["path"], event["exc_info"]) == ("ASGI app raised", "/", error)


def test_an_app_that_raises_half_way_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await sending(START, body(b"a", more=True))(scope, receive, send)
        raise ZeroDivisionError

    exchange = handle(app)
    assert (exchange.status, exchange.response_body, exchange.aborted) == (200, b"a", True)
    assert len(errors(caplog)) == 1


def test_work_after_the_response_goes_on_and_its_errors_are_only_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Starlette's background tasks."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await sending(START, body(b"x"))(scope, receive, send)
        await asyncio.sleep(0.01)
        raise ZeroDivisionError

    exchange = handle(app)
    assert (exchange.status, exchange.aborted) == (200, False)
    assert [event["event"] for event in errors(caplog)] == ["ASGI app raised after its response"]


@pytest.mark.parametrize(
    ("messages", "status", "message"),
    [
        ([], 500, "returned without a response"),
        ([START], 500, "returned before its response was complete"),
        ([body(b"x")], 500, "http.response.body was sent before http.response.start"),
        ([START, START], 500, "http.response.start was sent twice"),
        ([{**START, "status": 99}], 500, "status 99 in http.response.start"),
        ([{**START, "status": "200"}], 500, "status '200' in http.response.start"),
        ([{"type": "http.response.trailers"}], 500, "'http.response.trailers' cannot be sent"),
        ([{"type": "websocket.send"}], 500, "'websocket.send' cannot be sent"),
        ([START, {**body(), "body": "text"}], 500, "body in http.response.body is str"),
        ([START, body(b"x"), body(b"y")], 200, "sent after the response was complete"),
        ([START, body(b"x"), START], 200, "http.response.start was sent twice"),
    ],
)
def test_a_message_out_of_place_is_a_runtime_error(
    messages: list[dict[str, Any]], status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert handle(sending(*messages)).status == status
    (event,) = errors(caplog)
    assert isinstance(event["exc_info"], RuntimeError)
    assert message in str(event["exc_info"])


def test_an_app_that_returns_half_way_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    exchange = handle(sending(START, body(b"a", more=True)))
    assert (exchange.response_body, exchange.aborted) == (b"a", True)
    assert "returned before its response was complete" in str(errors(caplog)[0]["exc_info"])


@pytest.mark.parametrize(
    "headers", [[(b"a", b"1\r\nb: 2")], [(b"a b", b"1")], [("a", "1")], [(b"content-length", b"7")]]
)
def test_headers_that_cannot_be_sent_are_500(headers: Any, caplog: pytest.LogCaptureFixture) -> None:
    exchange = handle(sending({**START, "headers": headers}, body(b"x")))
    assert exchange.status == 500
    assert isinstance(errors(caplog)[0]["exc_info"], LocalProtocolError)


def test_a_cancelled_app_leaves_a_cut_connection() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def cancelling() -> MemoryExchange:
        exchange = MemoryExchange()
        task = asyncio.create_task(ASGIApplication(app).handle(exchange))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return exchange

    assert asyncio.run(cancelling()).aborted


# --- The deadline -------------------------------------------------------------------------------

LIMITED = Config(limits=LimitsConfig(request_timeout_s=0.02))


def test_an_app_over_the_request_timeout_is_504(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await asyncio.sleep(5)

    assert handle(app, config=LIMITED).status == 504
    assert errors(caplog)[0]["event"] == "request timed out"


def test_a_stream_over_the_request_timeout_is_cut() -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await send(START)
        while True:
            await send(body(b"x", more=True))
            await asyncio.sleep(0.001)

    assert handle(app, config=LIMITED).aborted


@pytest.mark.parametrize("parts", [[body(b"x")], [body(b"x", more=True), body()]])
def test_work_after_the_response_has_no_deadline(parts: list[dict[str, Any]], caplog: pytest.LogCaptureFixture) -> None:
    done: list[bool] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await sending(START, *parts)(scope, receive, send)
        await asyncio.sleep(0.06)
        done.append(True)

    exchange = handle(app, config=LIMITED)
    assert (done, exchange.status, exchange.aborted) == ([True], 200, False)
    assert errors(caplog) == []


def test_an_apps_own_timeout_error_is_no_deadline(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        raise TimeoutError("of the database")

    assert handle(app, config=Config(limits=LimitsConfig(request_timeout_s=5))).status == 500
