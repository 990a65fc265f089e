"""The answers to errors that need no error handler of the application's own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stellane.app.context import Context
from stellane.app.http_error import HTTPError
from stellane.app.request import Request
from stellane.app.response import Response
from stellane.errors import BodyTooLarge, RemoteProtocolError, StellaneError

# The rest of a body that was refused is still on its way: the connection cannot be used again.
_CLOSE = {"connection": "close"}


class RequestTimeoutError(StellaneError, TimeoutError):
    """The whole answer took longer than the route's `timeout_s`, or limits.request_timeout_s."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"the request was not answered within {timeout_s:g} s")
        self.timeout_s = timeout_s


async def _http_error(_ctx: Context, _req: Request, error: HTTPError) -> Response:
    return Response.text(error.detail, error.status, error.headers)


async def _body_too_large(_ctx: Context, _req: Request, error: BodyTooLarge) -> Response:
    return Response.text(str(error), 413, _CLOSE)


async def _remote_protocol_error(_ctx: Context, _req: Request, error: RemoteProtocolError) -> Response:
    return Response.text(str(error), error.status, _CLOSE)


async def _request_timeout(ctx: Context, req: Request, error: RequestTimeoutError) -> Response:
    ctx.logger().warning("request timed out", method=req.method, path=req.path, timeout_s=error.timeout_s)
    return Response.text("Gateway Timeout", 504)


DEFAULT_ANSWERS: dict[type[Exception], Callable[[Context, Request, Any], Awaitable[Response]]] = {
    HTTPError: _http_error,
    BodyTooLarge: _body_too_large,
    RemoteProtocolError: _remote_protocol_error,
    RequestTimeoutError: _request_timeout,
}
"""By exception class; an application's handler for the same class takes its place."""
