"""The built-in backend keeps the contract, and what LoopBackend adds to it."""

from __future__ import annotations

from stellane.builtin.asyncio_backend import AsyncioBackend
from stellane.testing.backend import BackendConformance


class TestAsyncioBackend(BackendConformance):
    """The standard library's loop."""

    def make_backend(self) -> AsyncioBackend:
        return AsyncioBackend()
