"""A Starlette app as somebody would write it for any server."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

background: list[str] = []


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"opened": "by the lifespan"}


async def hello(request: Request) -> Response:
    return PlainTextResponse(f"Hello {request.path_params['name']}, {request.state.opened}")


async def upload(request: Request) -> Response:
    digest, size = hashlib.sha256(), 0
    async for part in request.stream():
        digest.update(part)
        size += len(part)
    return JSONResponse({"sha256": digest.hexdigest(), "size": size})


async def stream(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d\n" % number
            if number % 10 == 0:
                await asyncio.sleep(0)

    return StreamingResponse(parts(), media_type="text/plain")


async def later(request: Request) -> Response:
    async def work() -> None:
        await asyncio.sleep(0.2)
        background.append(request.query_params["id"])

    return PlainTextResponse("accepted", background=BackgroundTask(work))


async def done(request: Request) -> Response:
    return JSONResponse(background)


async def slow(request: Request) -> Response:
    body = await request.body()
    print("slow has the body", flush=True)
    await asyncio.sleep(float(request.query_params.get("seconds", "0.3")))
    return PlainTextResponse(str(len(body)))


async def broken(request: Request) -> Response:
    raise RuntimeError("on purpose")


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-stamp"] = "middleware"
        return response


app = Starlette(
    lifespan=lifespan,
    middleware=[Middleware(Stamp)],
    routes=[
        Route("/hello/{name}", hello),
        Route("/upload", upload, methods=["POST"]),
        Route("/stream", stream),
        Route("/later", later, methods=["POST"]),
        Route("/done", done),
        Route("/slow", slow, methods=["POST"]),
        Route("/broken", broken),
    ],
)
