"""Futures of what can not be stopped once it has begun."""

import asyncio
from typing import Any


class LastingFuture(asyncio.Future[Any]):
    """A task that waits for it and is cancelled waits to its end, and is cancelled then."""

    def cancel(self, *_: object, **__: object) -> bool:
        """False: it goes on."""
        return False

    def follow(self, future: asyncio.Future[Any]) -> None:
        """Take over the outcome of `future`, which is done."""
        if self.done():
            return
        if future.cancelled():
            super().cancel()
        elif (error := future.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(future.result())
