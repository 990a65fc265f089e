"""HTTP plaintext: Stellane's protocol-http on any loop, without the rest of Stellane."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.loops.echo import BACKLOG, HOST

HEADERS = [(b"content-type", b"text/plain")]


async def serve_http(port: int, _directory: Path) -> None:
    """Answer every request `200 hello, world` from the protocol's own callback."""
    # Only this workload needs Stellane itself.
    from stellane.abc import Exchange  # noqa: PLC0415
    from stellane.config import Config  # noqa: PLC0415
    from stellane_protocol_http import HttpProtocol  # noqa: PLC0415

    def begin(exchange: Exchange) -> None:
        exchange.respond(200, HEADERS, b"hello, world")

    loop = asyncio.get_running_loop()
    protocol = HttpProtocol()
    factory = protocol.connection_factory(begin, config=Config(), loop=loop)
    print("codec", protocol.codec, flush=True)
    await loop.create_server(factory, HOST, port, backlog=BACKLOG)
