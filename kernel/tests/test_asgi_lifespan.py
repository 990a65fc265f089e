"""ASGI 3 apps: their lifespan, and their requests after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from stellane.app.asgi import ASGIApplication
from stellane.app.asgi_lifespan import LifespanError
from stellane.recovery.context import RecoveryContext
from stellane.testing import MemoryExchange, TestClient

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
RECOVERY = RecoveryContext(
    request_id="r",
    attempt=1,
    max_attempts=3,
    first_received_ns=1,
    crash=None,
    response_started=False,
    idempotency_key=None,
    fencing_token=1,
    traceparent=None,
    original_span_id=None,
)


def body(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


def sending(*messages: dict[str, Any]) -> App:
    """An app that sends these messages and returns."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    return app


def errors(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[dict[str, Any]]:
    return [record.msg for record in caplog.records if record.levelno >= level and isinstance(record.msg, dict)]


# --- Recovery -----------------------------------------------------------------------------------


def recover(app: App) -> MemoryExchange:
    exchange = MemoryExchange("POST", body=b"x")
    asyncio.run(ASGIApplication(app).recover(exchange, RECOVERY))
    return exchange


def test_a_replay_is_an_ordinary_request_whose_errors_come_out() -> None:
    assert recover(sending(START, body(b"x"))).response_body == b"x"

    async def fails(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        raise KeyError("k")

    async def answers_500_and_fails(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await sending({**START, "status": 500}, body(b"oops"))(scope, receive, send)
        raise KeyError("k")

    for app in (fails, answers_500_and_fails):
        with pytest.raises(KeyError):
            recover(app)
    with pytest.raises(RuntimeError, match="returned without a response"):
        recover(sending())


def test_a_replay_with_an_answer_is_done_even_if_its_background_work_fails(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        await sending(START, body(b"x"))(scope, receive, send)
        raise KeyError("k")

    assert recover(app).status == 200
    assert len(errors(caplog)) == 1


def test_an_asgi_app_has_no_wishes() -> None:
    application = ASGIApplication(sending())
    assert application.journal_wish("POST", b"/") is None
    assert not application.has_recovery_hook("POST", b"/")
    assert application.recovery_defaults() == {}
    asyncio.run(application.dead_letter(MemoryExchange(), []))


# --- The lifespan -------------------------------------------------------------------------------


def spanned(*answers: str, log: list[Any] | None = None, **message: str) -> App:
    """An app that answers its lifespan events with these words, and requests with its state."""

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await sending(START, body(repr(scope.get("state")).encode()))(scope, receive, send)
            return
        assert scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}
        scope["state"]["db"] = "open"
        for answer in answers:
            event = (await receive())["type"]
            if log is not None:
                log.append(event)
            await send({"type": f"{event}.{answer}", **message})

    return app


def live(app: App) -> bytes:
    """One request between start-up and shutdown."""

    async def living() -> bytes:
        async with TestClient(app) as client:
            return (await client.get("/")).body

    return asyncio.run(asyncio.wait_for(living(), 10))


def test_start_up_and_shutdown_are_run_and_state_is_shared() -> None:
    log: list[Any] = []
    assert live(spanned("complete", "complete", log=log)) == b"{'db': 'open'}"
    assert log == ["lifespan.startup", "lifespan.shutdown"]


def test_each_request_has_a_copy_of_the_state() -> None:
    states: list[dict[str, Any]] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await spanned("complete", "complete")(scope, receive, send)
            return
        states.append(dict(scope["state"]))
        scope["state"]["mine"] = True
        await sending(START, body())(scope, receive, send)

    async def living() -> None:
        async with TestClient(app) as client:
            await client.get("/")
            await client.get("/")

    asyncio.run(living())
    assert states == [{"db": "open"}] * 2


def test_an_app_without_lifespan_goes_on_without_it(caplog: pytest.LogCaptureFixture) -> None:
    async def refuses(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        await sending(START, body(b"state" if "state" in scope else b"none"))(scope, receive, send)

    async def returns(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await refuses(scope, receive, send)

    assert live(refuses) == b"none"
    assert live(returns) == b"none"
    assert errors(caplog) == []


def test_an_app_that_raises_in_its_start_up_goes_on_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            raise OSError("no database")
        await sending(START, body(b"served"))(scope, receive, send)

    assert live(app) == b"served"
    assert str(errors(caplog)[0]["exc_info"]) == "no database"


@pytest.mark.parametrize(("message", "said"), [({"message": "no database"}, "no database"), ({}, "it gave no message")])
def test_a_start_up_that_fails_ends_the_start(message: dict[str, str], said: str) -> None:
    application = ASGIApplication(spanned("failed", **message))

    async def starting() -> None:
        with pytest.raises(LifespanError, match=f"start-up failed: {said}"):
            await application.startup()
        await application.shutdown()

    asyncio.run(starting())


def test_a_shutdown_that_fails_is_told() -> None:
    async def living() -> None:
        application = ASGIApplication(spanned("complete", "failed", message="still busy"))
        await application.startup()
        with pytest.raises(LifespanError, match="shutdown failed: still busy"):
            await application.shutdown()
        await application.shutdown()

    async def crashing() -> None:
        async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
            await receive()
            await send({"type": "lifespan.startup.complete"})
            raise OSError("in the middle")

        application = ASGIApplication(app)
        await application.startup()
        await asyncio.sleep(0)
        with pytest.raises(LifespanError, match="in the middle"):
            await application.shutdown()

    asyncio.run(living())
    asyncio.run(crashing())


def test_a_lifespan_message_out_of_place_is_a_runtime_error() -> None:
    caught: list[str] = []

    async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        for kind in ("lifespan.shutdown.complete", "http.response.start"):
            try:
                await send({"type": kind})
            except RuntimeError as error:
                caught.append(str(error))
        await receive()
        await send({"type": "lifespan.startup.complete"})
        try:
            await send({"type": "lifespan.startup.complete"})
        except RuntimeError as error:
            caught.append(str(error))

    async def living() -> None:
        application = ASGIApplication(app)
        await application.startup()
        await application.shutdown()

    asyncio.run(living())
    assert len(caught) == 3
    assert "cannot answer lifespan.startup" in caught[0]
    assert "nothing had been asked" in caught[2]
