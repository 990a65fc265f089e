"""The ASGI application of the benchmark: one plain-text answer, no framework.

Every ASGI server in the table runs this file unchanged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

BODY = b"hello, world"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"12")]


async def app(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """ASGI 3: `http` is answered with BODY, `lifespan` is acknowledged."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
