"""Sending a response body that is made while it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable

from stellane.abc import Exchange
from stellane.abc.protocol import Fields
from stellane.errors import ClientDisconnected


async def send_stream(exchange: Exchange, status: int, fields: Fields, chunks: AsyncIterable[bytes | str]) -> None:
    """Send `chunks` as they come, then end the response; always close the iterator.

    When the client goes, the iterator is cancelled where it waits, so that one which waits for
    news that never come does not live for ever. Raises ClientDisconnected then, and what the
    iterator raises.
    """
    try:
        exchange.start(status, fields)
        if exchange.method != "HEAD":
            await _send_chunks(exchange, chunks)
        await exchange.end()
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()


async def _send_chunks(exchange: Exchange, chunks: AsyncIterable[bytes | str]) -> None:
    # A timeout without a time is a cancellation that can be told from anybody else's.
    scope = asyncio.timeout(None)
    watching = True

    def client_may_have_gone(_watcher: asyncio.Task[None]) -> None:
        if watching and exchange.disconnected:
            scope.reschedule(0)

    watcher = asyncio.get_running_loop().create_task(exchange.wait_disconnected())
    watcher.add_done_callback(client_may_have_gone)
    try:
        async with scope:
            async for chunk in chunks:
                await exchange.send(chunk.encode() if isinstance(chunk, str) else chunk)
    except TimeoutError:
        if not scope.expired():
            raise
        raise ClientDisconnected("the client went away before the response was complete") from None
    finally:
        watching = False
        watcher.cancel()
