"""Which replays may run at the same time: several innocent ones, or one suspect and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


class ReplayPlaces:
    """`count` places for replays, had in the order in which they are asked for. Belongs to one loop."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._places = asyncio.Semaphore(count)
        self._suspects = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold one place, beside whoever holds the others."""
        async with self._places:
            yield

    @contextlib.asynccontextmanager
    async def all(self) -> AsyncIterator[None]:
        """Hold every place."""
        # Two that each hold some of the places would wait for each other for ever.
        async with self._suspects:
            held = 0
            try:
                while held < self._count:
                    await self._places.acquire()
                    held += 1
                yield
            finally:
                for _ in range(held):
                    self._places.release()
