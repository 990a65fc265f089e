"""The Server: what an application registers, and how a request is answered with it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar, overload

import msgspec

from stellane.abc import Exchange
from stellane.app.context import Context
from stellane.app.error_answers import DEFAULT_ANSWERS, RequestTimeoutError
from stellane.app.http_error import HTTPError
from stellane.app.middleware import Middleware, compose
from stellane.app.recovered_request import RecoveredRequest
from stellane.app.recovery_hooks import RecoveryHooks
from stellane.app.request import NO_PARAMS, Request
from stellane.app.resources import ResourceFactory, ResourceStack
from stellane.app.response import TEXT_FIELDS, Response, as_response
from stellane.app.routing import Handler, NotRouted, Route, Router, make_route
from stellane.app.signature import require_async
from stellane.app.streaming import send_stream
from stellane.config.schema import Config, RecoveryConfig
from stellane.errors import ClientDisconnected, ConfigError, DeadLetter
from stellane.nearest import did_you_mean
from stellane.recovery.context import Attempt, RecoveryContext
from stellane.runtime.application import Application

_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")

H = TypeVar("H", bound=Callable[..., Any])
ErrorHandler = Callable[[Context, Request, Any], Awaitable[Any]]
DeadLetterHook = Callable[[Context, Request, list[Attempt]], Awaitable[Any]]


class Server(Application):
    """An application: routes, middleware, resources, error handlers and recovery hooks.

    Everything is registered before the first request; the server then composes it once, and
    registering more raises RuntimeError.
    """

    kind = "native"

    def __init__(self) -> None:
        self._router = Router()
        self._static: dict[str, dict[bytes, Route]] = {}
        self._middleware: list[Middleware] = []
        self._stack = ResourceStack()
        self._resources = self._stack.resources
        self._error_handlers: dict[type[Exception], ErrorHandler] = dict(DEFAULT_ANSWERS)
        self._last_resort: ErrorHandler | None = None
        self._recovery_hooks = RecoveryHooks()
        self._dead_letter_hook: DeadLetterHook | None = None
        self._recovery_options: dict[str, Any] = {}
        self._request_timeout_s = 0.0
        self._frozen = False

    # --- Registering ----------------------------------------------------------------------------

    def route(
        self,
        pattern: str,
        *,
        methods: Iterable[str] = ("GET",),
        journal: bool | None = None,
        timeout_s: float | None = None,
    ) -> Callable[[H], H]:
        """Register `async def handler(ctx, req)` for a pattern such as "/users/{id:int}".

        Parameter types: str (the default), int, float, uuid, and path, which takes the rest of
        the path. `journal` says whether its requests are journaled when recovery is on; None
        leaves it to the method. `timeout_s` is the time for the whole answer, seconds, instead of
        limits.request_timeout_s; 0 means no limit. GET also answers HEAD.
        Raises ValueError and TypeError that say what is wrong.
        """
        wanted = _methods(methods, pattern)
        if timeout_s is not None and not 0 <= timeout_s < float("inf"):
            raise ValueError(f"route {pattern!r}: timeout_s is a number of seconds from 0, not {timeout_s!r}")

        def register(handler: H) -> H:
            self._require_open("route()")
            require_async(handler, f"route {pattern!r}", "ctx", "req")
            for method in wanted:
                self._router.add(make_route(pattern, method, handler, journal=journal, timeout_s=timeout_s))
            return handler

        return register

    def get(self, pattern: str, *, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for GET, and HEAD with it."""
        return self.route(pattern, methods=("GET",), timeout_s=timeout_s)

    def head(self, pattern: str, *, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for HEAD, where GET's handler should not answer it."""
        return self.route(pattern, methods=("HEAD",), timeout_s=timeout_s)

    def options(self, pattern: str, *, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for OPTIONS, in place of the automatic answer."""
        return self.route(pattern, methods=("OPTIONS",), timeout_s=timeout_s)

    def post(self, pattern: str, *, journal: bool | None = None, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for POST."""
        return self.route(pattern, methods=("POST",), journal=journal, timeout_s=timeout_s)

    def put(self, pattern: str, *, journal: bool | None = None, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for PUT."""
        return self.route(pattern, methods=("PUT",), journal=journal, timeout_s=timeout_s)

    def patch(self, pattern: str, *, journal: bool | None = None, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for PATCH."""
        return self.route(pattern, methods=("PATCH",), journal=journal, timeout_s=timeout_s)

    def delete(self, pattern: str, *, journal: bool | None = None, timeout_s: float | None = None) -> Callable[[H], H]:
        """`route` for DELETE."""
        return self.route(pattern, methods=("DELETE",), journal=journal, timeout_s=timeout_s)

    def middleware(self, function: H) -> H:
        """Register `async def middleware(ctx, req, call_next)`; the first one is outermost.

        `await call_next(ctx, req)` gives the Response of what is inside, 404 and 405 included.
        """
        self._require_open("middleware()")
        require_async(function, "middleware", "ctx", "req", "call_next")
        self._middleware.append(function)
        return function

    def resource(self, name: str) -> Callable[[H], H]:
        """Register what each worker opens at start and closes at stop, as `ctx.resources.<name>`.

        The function is an async generator that yields it once, or returns an async context
        manager; it may take one parameter, the resources opened before it.
        """

        def register(factory: H) -> H:
            self._require_open("resource()")
            checked: ResourceFactory = factory
            self._stack.register(name, checked)
            return factory

        return register

    def error_handler(self, error: type[Exception]) -> Callable[[H], H]:
        """Register `async def handler(ctx, req, error)` for an exception class and those below it.

        The most specific class wins. One for Exception itself is the last resort: it words the
        500, which is logged all the same, and a replay it had to answer counts as failed.
        """
        if not (isinstance(error, type) and issubclass(error, Exception)):
            raise TypeError(f"error_handler() takes an exception class, not {error!r}")

        def register(handler: H) -> H:
            self._require_open("error_handler()")
            require_async(handler, f"error handler of {error.__name__}", "ctx", "req", "error")
            if error is Exception:
                self._last_resort = handler
            else:
                self._error_handlers[error] = handler
            return handler

        return register

    @overload
    def on_recover(self, hook: H) -> H: ...

    @overload
    def on_recover(self, *, route: str | None = None, methods: Iterable[str] | None = None) -> Callable[[H], H]: ...

    def on_recover(
        self,
        hook: Any = None,
        *,
        route: str | None = None,
        methods: Iterable[str] | None = None,
    ) -> Any:
        """Register `async def hook(ctx, req)`, which runs instead of the handler after a crash.

        `route` is the pattern of a registered route, `methods` the methods it is for; the hook of
        a route is preferred to the general one. `await retry_original_handler(req)` runs the
        handler; raising Retry, DeadLetter or Skip decides otherwise.
        """
        wanted = None if methods is None else _methods(methods, route or "on_recover")

        def register(function: H) -> H:
            self._require_open("on_recover()")
            require_async(function, "on_recover", "ctx", "req")
            self._recovery_hooks.add(function, route, wanted)
            return function

        return register if hook is None else register(hook)

    def on_dead_letter(self, hook: H) -> H:
        """Register `async def hook(ctx, req, attempts)`, told when a request has been given up."""
        self._require_open("on_dead_letter()")
        require_async(hook, "on_dead_letter", "ctx", "req", "attempts")
        if self._dead_letter_hook is not None:
            raise ValueError("on_dead_letter: there is a hook already")
        self._dead_letter_hook = hook
        return hook

    def enable_request_recovery(self, **options: Any) -> None:
        """Turn the request journal on. `options` are keys of [recovery]; file, environment and
        command line win over them. Raises ConfigError for a key that does not exist."""
        self._require_open("enable_request_recovery()")
        known = msgspec.structs.fields(RecoveryConfig)
        names = [field.name for field in known]
        for name, value in options.items():
            if name not in names:
                raise ConfigError(
                    f"enable_request_recovery({name}={value!r}): [recovery] has no key {name!r}."
                    f"{did_you_mean(name, names)} Known are: {', '.join(names)}."
                )
        self._recovery_options = {"enabled": True, **options}

    def _require_open(self, what: str) -> None:
        if self._frozen:
            raise RuntimeError(f"Server.{what} after the server has started: register everything before")

    # --- Starting and stopping --------------------------------------------------------------------

    def configure(self, config: Config) -> None:
        """Take what the configuration says about requests. Before `startup`."""
        self._request_timeout_s = config.limits.request_timeout_s

    def _freeze(self) -> None:
        """Compose everything that is registered, once."""
        self._frozen = True
        self._recovery_hooks.check(self._router.routes)
        for route in self._router.routes:
            route.endpoint = self._compose(route.handler)
            timeout_s = self._request_timeout_s if route.timeout_s is None else route.timeout_s
            route.timeout_s = timeout_s or None
        self._static = self._router.static

    def _compose(self, handler: Handler) -> Handler:
        return compose(self._middleware, handler, self._answer_error)

    async def startup(self) -> None:
        if not self._frozen:
            self._freeze()
        await self._stack.open()

    async def shutdown(self) -> None:
        await self._stack.close()

    # --- Answering ----------------------------------------------------------------------------------

    async def handle(self, exchange: Exchange) -> None:
        # The hot path: whatever a plain request does not need is done in another method.
        try:
            table = self._static.get(exchange.method)
            route = None if table is None else table.get(exchange.path)
            params = NO_PARAMS
            if route is None:
                route, params = self._find(exchange)
            ctx = Context(exchange, self._resources)
            req = Request(exchange, params)
            try:
                if route.timeout_s is not None:
                    await self._answer_in_time(exchange, ctx, req, route, route.timeout_s)
                    return
                result = await route.endpoint(ctx, req)
                if type(result) is str:
                    status, fields, body = 200, TEXT_FIELDS, result.encode()
                elif type(result) is Response and result.chunks is None:
                    status, fields, body = result.status, result.fields, result.body
                else:
                    await self._send(exchange, ctx, as_response(result, route.handler))
                    return
                if exchange.brings_ids:
                    exchange.respond_with_ids(status, fields, body, ctx.answer_fields(fields))
                else:
                    exchange.respond(status, fields, body)
            except Exception as error:
                await self._failed(exchange, ctx, req, error)
        except BaseException:
            # Cancelled, or worse: nobody will answer any more, and the client should know.
            if not exchange.response_ended:
                exchange.abort()
            raise

    def _find(self, exchange: Exchange) -> tuple[Route, Mapping[str, Any]]:
        """The route, or one made for this request that answers what is wrong with it."""
        if not self._frozen:
            self._freeze()
        try:
            return self._router.find(exchange.method, exchange.path)
        except NotRouted as missing:
            return self._fallback(exchange, missing), NO_PARAMS

    def _fallback(self, exchange: Exchange, missing: NotRouted) -> Route:
        allow = missing.allow
        if exchange.method == "OPTIONS" and exchange.target == b"*":
            allow = self._router.methods()
        headers = {"allow": ", ".join(allow)} if allow else None

        async def answer(ctx: Context, req: Request) -> Response:  # noqa: ARG001 - a handler's signature
            if exchange.method == "OPTIONS" and allow:
                return Response(status=204, headers=headers)
            raise HTTPError(missing.status, missing.detail, headers)

        route = make_route("/", exchange.method, answer)
        route.endpoint = self._compose(answer)
        route.timeout_s = self._request_timeout_s or None
        return route

    async def _answer_in_time(
        self, exchange: Exchange, ctx: Context, req: Request, route: Route, timeout_s: float
    ) -> None:
        ctx.deadline = time.monotonic() + timeout_s
        scope = asyncio.timeout(timeout_s)
        try:
            async with scope:
                await self._send(exchange, ctx, as_response(await route.endpoint(ctx, req), route.handler))
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise RequestTimeoutError(timeout_s) from error

    async def _send(self, exchange: Exchange, ctx: Context, response: Response) -> None:
        ids = ctx.answer_fields(response.fields)
        if response.chunks is not None:
            await send_stream(exchange, response.status, response.fields + ids, response.chunks)
        else:
            exchange.respond_with_ids(response.status, response.fields, response.body, ids)

    async def _answer_error(self, ctx: Context, req: Request, error: Exception) -> Response | None:
        """The Response that an error handler, or our own table, has for `error`."""
        for cls in type(error).__mro__:
            handler = self._error_handlers.get(cls)
            if handler is not None:
                return as_response(await handler(ctx, req, error), handler)
        return None

    async def _failed(self, exchange: Exchange, ctx: Context, req: Request, error: Exception) -> None:
        """Answer a request whose handler raised, or whose Response could not be sent."""
        log = ctx.logger()
        if isinstance(error, ClientDisconnected):
            log.debug("client went away", method=req.method, path=req.path)
            exchange.abort()
            return
        try:
            response = None if exchange.response_started else await self._answer_error(ctx, req, error)
            if response is not None:
                await self._send(exchange, ctx, response)
                return
        except Exception as another:
            error = another
        log.error("unhandled exception", method=req.method, path=req.path, exc_info=error)
        if exchange.response_started:
            exchange.abort()
            return
        await self._send(exchange, ctx, await self._internal_error(ctx, req, error))

    async def _internal_error(self, ctx: Context, req: Request, error: Exception) -> Response:
        if self._last_resort is not None:
            try:
                return as_response(await self._last_resort(ctx, req, error), self._last_resort)
            except Exception as another:
                ctx.logger().error("the error handler of Exception failed", exc_info=another)
        return Response.text("Internal Server Error", 500)

    # --- After a crash ------------------------------------------------------------------------------

    async def recover(self, exchange: Exchange, recovery: RecoveryContext) -> None:
        ctx = Context(exchange, self._resources)
        ctx.recovery = recovery
        route, params = self._known(exchange.method, exchange.path)
        hook = self._recovery_hooks.find(exchange.method, route)
        req = RecoveredRequest(exchange, params, lambda: self._run_original(ctx, req, route))
        if hook is None:
            response = await self._run_original(ctx, req, route)
        else:
            response = as_response(await hook(ctx, req), hook)
        await self._send(exchange, ctx, response)

    async def _run_original(self, ctx: Context, req: Request, route: Route | None) -> Response:
        if route is None:
            # Its 404 would put an end to a request that the application once had a handler for.
            raise DeadLetter(f"no route answers {req.method} {req.path}")
        try:
            if route.timeout_s is None:
                return as_response(await route.endpoint(ctx, req), route.handler)
            ctx.deadline = time.monotonic() + route.timeout_s
            async with asyncio.timeout(route.timeout_s):
                return as_response(await route.endpoint(ctx, req), route.handler)
        except Exception as error:
            response = await self._answer_error(ctx, req, error)
            if response is None:
                raise
            return response

    async def dead_letter(self, exchange: Exchange, attempts: list[Attempt]) -> None:
        if self._dead_letter_hook is not None:
            _, params = self._known(exchange.method, exchange.path)
            await self._dead_letter_hook(Context(exchange, self._resources), Request(exchange, params), attempts)

    def journal_wish(self, method: str, path: bytes) -> bool | None:
        table = self._static.get(method)
        route = None if table is None else table.get(path)
        if route is None:
            route, _ = self._known(method, path)
        if route is None:
            # Its 404 does nothing that could be lost, and strangers ask for a lot of them; a middleware may do more.
            return None if self._middleware else False
        return route.journal

    def has_recovery_hook(self, method: str, path: bytes) -> bool:
        return self._recovery_hooks.find(method, self._known(method, path)[0]) is not None

    def recovery_defaults(self) -> dict[str, Any]:
        return dict(self._recovery_options)

    def _known(self, method: str, path: bytes) -> tuple[Route | None, Mapping[str, Any]]:
        """The route of a request, or None when no route answers it."""
        if not self._frozen:
            self._freeze()
        try:
            return self._router.find(method, path)
        except NotRouted:
            return None, NO_PARAMS


def _methods(methods: Iterable[str], where: str) -> tuple[str, ...]:
    """Check method names: they are compared as they stand (RFC 9110 section 9.1)."""
    if isinstance(methods, str):
        raise TypeError(f"{where!r}: methods is a list of method names, such as ['{methods}'], not a str")
    wanted = tuple(dict.fromkeys(methods))
    for method in wanted:
        if not isinstance(method, str) or _METHOD.fullmatch(method) is None:
            raise ValueError(f"{where!r}: {method!r} is not a method name in upper case, such as 'POST'")
    if not wanted:
        raise ValueError(f"{where!r}: methods is empty, so nothing could ever match")
    return wanted
