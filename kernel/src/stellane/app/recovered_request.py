"""A request that is run again after its worker died, as a recovery hook sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from stellane.abc import Exchange
from stellane.app.request import Request
from stellane.app.response import Response


class RecoveredRequest(Request):
    """What `on_recover` hooks are given: a Request that knows its original handler."""

    def __init__(
        self, exchange: Exchange, params: Mapping[str, Any], run_original: Callable[[], Awaitable[Response]]
    ) -> None:
        super().__init__(exchange, params)
        self.run_original = run_original


async def retry_original_handler(req: Request) -> Response:
    """Run the route's own handler, with its middleware, for a request in a recovery hook.

    Returns its Response, an HTTPError's included. Raises what the handler raises and the
    application has no error handler for; RuntimeError outside of a recovery hook.
    """
    if not isinstance(req, RecoveredRequest):
        raise RuntimeError("retry_original_handler(req) takes the request that an on_recover hook was given")
    return await req.run_original()
