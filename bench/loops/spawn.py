"""Subprocesses: start, read what it says, wait for its end."""

from __future__ import annotations

import asyncio
import shutil

CHILDREN = 50


class Spawn:
    """`create_subprocess_exec` of `echo` with its output in a pipe; an operation is one child."""

    def __init__(self) -> None:
        self.program = shutil.which("echo") or "/bin/echo"

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.run_until_complete(self._one(0))

    async def _one(self, number: int) -> None:
        child = await asyncio.create_subprocess_exec(
            self.program, str(number), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await child.communicate()
        if output != b"%d\n" % number or child.returncode != 0:
            raise RuntimeError(f"child {number} said {output!r} and ended with {child.returncode}")

    async def _all(self) -> None:
        for number in range(CHILDREN):
            await self._one(number)

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        loop.run_until_complete(self._all())
        return CHILDREN
