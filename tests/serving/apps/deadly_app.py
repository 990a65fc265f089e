"""Handlers that take their process with them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal

from stellane import Context, Request, Server

server = Server()
server.enable_request_recovery(max_recovery_attempts=2)


@server.get("/")
async def index(ctx: Context, req: Request) -> str:
    return "alive"


@server.put("/{how}")
async def deadly(ctx: Context, req: Request) -> str:
    if ctx.recovery is not None and req.query.get("once"):
        return f"survived attempt {ctx.recovery.attempt} after {ctx.recovery.crash}"
    if ctx.recovery is not None and req.query.get("long"):
        print("a long replay has begun", flush=True)
        await asyncio.sleep(60)
    how = req.params["how"]
    if how == "hang":
        while True:
            pass
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "abort":
        os.abort()
    elif how == "exit":
        os._exit(7)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    return "unharmed"
