"""Served from a disk that is bad while the file `bad` lies in the working directory."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from stellane import Context, Request, Response, Server
from stellane_journal_file import FileJournal

server = Server()
server.enable_request_recovery(max_recovery_attempts=2)

good_append = FileJournal.append


def append(self: FileJournal, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
    if Path("bad").exists():
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    good_append(self, records, first_seq, reserve=reserve)


FileJournal.append = append  # type: ignore[method-assign]


@server.get("/")
async def who(ctx: Context, req: Request) -> str:
    return str(os.getpid())


@server.put("/")
async def journaled(ctx: Context, req: Request) -> str:
    return "on record"


@server.put("/breaks")
async def breaks_the_disk(ctx: Context, req: Request) -> Response:
    """That its answer begins is what cannot be recorded; the rest of it takes a while."""

    async def answer() -> AsyncIterator[bytes]:
        yield b"begun "
        await asyncio.sleep(0.3)
        yield b"ended"

    if ctx.recovery is None:
        Path("bad").touch()
    return Response.stream(answer(), content_type="text/plain")
