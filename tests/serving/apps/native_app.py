"""A native application that uses what there is: resources, middleware, errors, ids, streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from stellane import Context, HTTPError, Request, Response, Server

server = Server()


@server.resource("notes")
async def notes() -> AsyncIterator[Path]:
    path = Path("notes.txt")
    path.write_text("opened\n")
    yield path
    with path.open("a") as file:
        file.write("closed\n")


@server.middleware
async def stamp(ctx: Context, req: Request, call_next: Any) -> Response:
    response: Response = await call_next(ctx, req)
    response.set_header("x-stamp", "middleware")
    return response


@server.get("/")
async def index(ctx: Context, req: Request) -> str:
    return "index"


@server.get("/items/{item:int}")
async def item(ctx: Context, req: Request) -> dict[str, Any]:
    ctx.logger().info("item asked for", item=req.params["item"])
    return {"item": req.params["item"], "trace": ctx.trace.trace_id, "id": ctx.request_id}


@server.post("/echo")
async def echo(ctx: Context, req: Request) -> bytes:
    return await req.body()


@server.get("/stream")
async def stream(ctx: Context, req: Request) -> Response:
    async def parts() -> AsyncIterator[str]:
        for number in range(5):
            yield f"{number}\n"
            await asyncio.sleep(0)

    return Response.stream(parts(), content_type="text/plain")


@server.get("/slow", timeout_s=0.2)
async def slow(ctx: Context, req: Request) -> str:
    await asyncio.sleep(5)
    return "never"


@server.get("/wait")
async def wait(ctx: Context, req: Request) -> str:
    await asyncio.sleep(1)
    return "waited"


@server.get("/broken")
async def broken(ctx: Context, req: Request) -> str:
    raise RuntimeError("on purpose")


@server.get("/refused")
async def refused(ctx: Context, req: Request) -> str:
    raise HTTPError(418, "a teapot")
