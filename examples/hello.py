"""The smallest server: `stellane run examples/hello.py:server`, then `curl http://127.0.0.1:8000/hello/Ada`."""

from __future__ import annotations

from stellane import Context, Request, Server

server = Server()


@server.get("/hello/{name}")
async def hello(_ctx: Context, req: Request) -> str:
    """Greet whoever the path names."""
    return f"Hello {req.params['name']}\n"
