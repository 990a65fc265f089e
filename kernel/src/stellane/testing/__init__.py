"""For tests: a client that needs no network, the conformance suites of the contracts, and broken
plugins that prove the suites."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellane.testing.client import ClientResponse, TestClient
    from stellane.testing.exchange import MemoryExchange

__all__ = ["ClientResponse", "MemoryExchange", "TestClient"]


def __getattr__(name: str) -> Any:
    # Loaded when first used: pytest imports this package in every run where the kernel is installed.
    if name == "MemoryExchange":
        from stellane.testing.exchange import MemoryExchange  # noqa: PLC0415

        return MemoryExchange
    if name in ("ClientResponse", "TestClient"):
        from stellane.testing import client  # noqa: PLC0415

        return getattr(client, name)
    raise AttributeError(f"module 'stellane.testing' has no attribute {name!r}")
