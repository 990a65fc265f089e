"""Socket names as ASGI writes them."""

from __future__ import annotations

from typing import Any

from stellane.abc.protocol import Address


def address_of(name: Any) -> Address:
    """A socket name as (host, port); a unix socket's path with port 0."""
    if isinstance(name, tuple) and len(name) >= 2:
        return (str(name[0]), int(name[1]))
    if isinstance(name, str) and name:
        return (name, 0)
    return None
