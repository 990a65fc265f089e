"""Orders that survive `kill -9`.

    stellane run examples/orders.py:server
    curl -d '{"order": "A1"}' 'http://127.0.0.1:8000/orders?work_ms=5000'

Kill the worker while the order is in work: the next one finishes it. What has been done to
each order is in the ledger, a file of JSON lines named by ORDERS_LEDGER (default
./orders.jsonl).
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

from stellane import Context, HTTPError, Request, Response, Server, retry_original_handler

server = Server()
server.enable_request_recovery(journal_backend="file", max_recovery_attempts=3)

WORK_MS_MAX = 60_000


class Ledger:
    """A file that effects are appended to, one JSON object a line, by several processes at once."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def append(self, event: str, order: str, ctx: Context) -> None:
        """Note an effect. One write of one line: a process that dies leaves a whole line or none."""
        line = {
            "event": event,
            "order": order,
            "request_id": ctx.request_id,
            "trace_id": ctx.trace.trace_id,
            "attempt": ctx.recovery.attempt if ctx.recovery else 0,
            "pid": os.getpid(),
        }
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@server.resource("ledger")
async def ledger() -> AsyncIterator[Ledger]:
    """Opened once in each worker, before its first request."""
    book = Ledger(Path(os.environ.get("ORDERS_LEDGER", "orders.jsonl")))
    try:
        yield book
    finally:
        book.close()


@server.get("/health")
async def health(_ctx: Context, _req: Request) -> str:
    """Not journaled: nothing is lost when nobody answers it."""
    return "ok\n"


@server.post("/orders", journal=True)
async def create_order(ctx: Context, req: Request) -> Response:
    """Work on an order for `work_ms` milliseconds, between its two effects."""
    order = await req.json(type=dict[str, str])
    if "order" not in order:
        raise HTTPError(400, 'an order reads {"order": "its id"}')
    try:
        work_ms = int(req.query.get("work_ms", "0"))
    except ValueError:
        raise HTTPError(400, "work_ms is a whole number of milliseconds") from None
    if not 0 <= work_ms <= WORK_MS_MAX:
        raise HTTPError(400, f"work_ms is from 0 to {WORK_MS_MAX}")
    book: Ledger = ctx.resources.ledger
    book.append("started", order["order"], ctx)
    await asyncio.sleep(work_ms / 1000)
    book.append("finished", order["order"], ctx)
    return Response.json({"order": order["order"], "request_id": ctx.request_id}, status=201)


@server.on_recover
async def recover(ctx: Context, req: Request) -> Response:
    """Runs instead of the handler when the worker died under a request."""
    assert ctx.recovery is not None
    ctx.logger().info("recovering", path=req.path, attempt=ctx.recovery.attempt, crash=str(ctx.recovery.crash))
    return await retry_original_handler(req)
