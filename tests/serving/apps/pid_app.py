"""Says which process answered."""

from __future__ import annotations

import os

from stellane import Context, Request, Server

server = Server()


@server.get("/")
async def pid(ctx: Context, req: Request) -> str:
    return str(os.getpid())
