"""What a Server takes, and what it refuses at once."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from stellane import Context, Request, Server
from stellane.errors import ConfigError
from stellane.testing import ClientResponse, TestClient


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
        (plain, r"test_registration.plain is not async; write `async def plain\(ctx, req\)`"),
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
