"""HTTP/1.1 on any asyncio loop, behind the kernel's Protocol contract."""

from __future__ import annotations

from stellane.abc import Protocol
from stellane.hookspecs import hookimpl
from stellane_protocol_http.protocol import HttpProtocol

__all__ = ["HttpProtocol"]

stellane_api_level = 1


@hookimpl
def stellane_create_protocol() -> Protocol:
    """The HTTP protocol of one worker."""
    return HttpProtocol()
