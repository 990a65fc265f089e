"""Middleware: functions around every handler, joined once when the server starts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from stellane.app.context import Context
from stellane.app.request import Request
from stellane.app.response import Response, as_response
from stellane.app.routing import Handler

CallNext = Callable[[Context, Request], Awaitable[Response]]
Middleware = Callable[[Context, Request, CallNext], Awaitable[Any]]
AnswerError = Callable[[Context, Request, Exception], Awaitable[Response | None]]
"""Turns an error into the Response the application has for it, or None."""


def compose(middleware: Sequence[Middleware], handler: Handler, answer_error: AnswerError) -> Handler:
    """`handler` inside `middleware`, the first one outermost. Without any it is `handler` itself.

    A middleware sees a Response from `call_next`, also for the errors the application has an
    answer for; other errors pass through it.
    """
    if not middleware:
        return handler
    endpoint = _innermost(handler, answer_error)
    for layer in reversed(middleware):
        endpoint = _around(layer, endpoint)
    return endpoint


def _innermost(handler: Handler, answer_error: AnswerError) -> CallNext:
    async def call(ctx: Context, req: Request) -> Response:
        try:
            return as_response(await handler(ctx, req), handler)
        except Exception as error:
            response = await answer_error(ctx, req, error)
            if response is None:
                raise
            return response

    return call


def _around(layer: Middleware, call_next: CallNext) -> CallNext:
    async def call(ctx: Context, req: Request) -> Response:
        return as_response(await layer(ctx, req, call_next), layer)

    return call
