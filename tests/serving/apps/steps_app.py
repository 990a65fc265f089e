"""Tells how much background work ran between the steps of a request; flooding is the extension `flood`."""

from __future__ import annotations

import asyncio

import acme_listener

from stellane import Context, Request, Server

server = Server()


@server.get("/")
async def ten_steps(ctx: Context, req: Request) -> str:
    before = acme_listener.steps
    for _ in range(10):
        await asyncio.sleep(0)
    return f"{before} {acme_listener.steps}"
