"""The native Stellane application of the benchmark: one answer, and the pair of routes for the journal."""

from __future__ import annotations

from stellane import Context, Request, Server

server = Server()


@server.get("/")
async def hello(_ctx: Context, _req: Request) -> str:
    return "hello, world"


@server.post("/plain", journal=False)
async def plain(_ctx: Context, req: Request) -> str:
    await req.body()
    return "hello, world"


@server.post("/journaled", journal=True)
async def journaled(_ctx: Context, req: Request) -> str:
    await req.body()
    return "hello, world"
