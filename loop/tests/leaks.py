"""Many connections of every kind, and what they leave behind: descriptors, memory and objects.

    python -m loop.tests.leaks --connections 200000 --loop epoll

Run from the root of the repository. Of ten connections four talk and close, three are aborted at one of their stages,
two are streamed through small windows, and one is TLS (where trustme is installed: it makes the certificate).
Exit status: 0 when all is as it was after the warm-up, 1 when something was left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import resource
import ssl
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stellane_loop

AT_ONCE = 40
STREAMED_BYTES = 300_000
RSS_GROWTH_BYTES_MAX = 5 * 1024 * 1024
OBJECTS_GROWTH_MAX = 100
"""What the interpreter and the standard library keep of their own accord, such as code they cached."""

Kind = Callable[["Ends", int], Awaitable[None]]


@dataclass(frozen=True)
class Ends:
    """Where the servers are, and how their TLS is trusted."""

    plain: int
    secured: int
    trust: ssl.SSLContext | None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@dataclass(frozen=True)
class Held:
    """What the process and the loop hold."""

    descriptors: int
    untrimmed_bytes: int
    """resident, with the heap that malloc keeps for reuse; not judged, because it follows the largest moment"""
    rss_bytes: int
    """resident, after malloc gave back what is free"""
    open: int
    """objects the loop's poller knows"""
    objects: Counter[str]
    """by type; what the garbage collector knows"""

    @classmethod
    def by(cls, loop: stellane_loop.Loop) -> Held:
        for _ in range(3):
            gc.collect()
        untrimmed_bytes = resident_bytes()
        ctypes.CDLL(None).malloc_trim(0)
        return cls(
            descriptors=len(list(Path("/proc/self/fd").iterdir())),
            untrimmed_bytes=untrimmed_bytes,
            rss_bytes=resident_bytes(),
            open=loop.statistics().open,
            objects=Counter(type(thing).__qualname__ for thing in gc.get_objects()),
        )

    def left_since(self, before: Held) -> list[str]:
        """What is more than it was, and more than it may be."""
        found = []
        if self.descriptors > before.descriptors:
            found.append(f"descriptors: {before.descriptors} before, {self.descriptors} after")
        if self.open > before.open:
            found.append(f"objects of the poller: {before.open} before, {self.open} after")
        if self.rss_bytes - before.rss_bytes > RSS_GROWTH_BYTES_MAX:
            found.append(f"memory: {before.rss_bytes >> 10} KiB before, {self.rss_bytes >> 10} KiB after")
        if self.objects.total() - before.objects.total() > OBJECTS_GROWTH_MAX:
            found.append(f"Python objects: {(self.objects - before.objects).most_common(8)}")
        return found


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the client ends it, one way or another."""
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def normal(ends: Ends, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ends.plain)
    message = b"%09d" % number
    writer.write(message)
    assert await reader.readexactly(len(message)) == message
    writer.close()
    await writer.wait_closed()


async def aborted(ends: Ends, number: int) -> None:
    """As soon as it is connected, with bytes under way, or while the client waits for them."""
    _, writer = await asyncio.open_connection("127.0.0.1", ends.plain)
    if number % 3:
        writer.write(bytes(number % 3 * 100_000))
    if number % 2:
        await asyncio.sleep(0)
    writer.transport.abort()


async def streamed(ends: Ends, number: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", ends.plain, limit=4096)
    writer.transport.set_write_buffer_limits(high=4096)
    writer.write(b"%d" % (number % 10) * STREAMED_BYTES)
    writer.write_eof()
    received = 0
    while data := await reader.read(1 << 16):
        received += len(data)
    assert received == STREAMED_BYTES
    writer.close()
    await writer.wait_closed()


async def secured(ends: Ends, number: int) -> None:
    if ends.trust is None:
        return await normal(ends, number)
    reader, writer = await asyncio.open_connection("127.0.0.1", ends.secured, ssl=ends.trust)
    writer.write(b"secret")
    assert await reader.readexactly(6) == b"secret"
    if number % 4 == 0:
        writer.transport.abort()
    else:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return None


KINDS: tuple[Kind, ...] = (normal,) * 4 + (aborted,) * 3 + (streamed,) * 2 + (secured,)


async def make(ends: Ends, connections: int) -> None:
    """So many, AT_ONCE at a time."""
    numbers = iter(range(connections))

    async def worker() -> None:
        for number in numbers:
            await KINDS[number % len(KINDS)](ends, number)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def settled(loop: stellane_loop.Loop, at_most: int) -> None:
    """Until the servers have noticed every end, or for ten seconds."""
    for _ in range(200):
        await asyncio.sleep(0.05)
        if loop.statistics().open <= at_most:
            return


def contexts() -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """Of the server and of the client; None and None without trustme."""
    try:
        import trustme
    except ImportError:
        return None, None
    authority = trustme.CA()
    server, client = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def left_behind(connections: int, warm_up: int) -> tuple[Held, Held]:
    """What is held after `warm_up` connections, and after `connections` more."""
    loop: Any = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # aborted handshakes and writes
    server_tls, client_tls = contexts()
    plain = await asyncio.start_server(echo, "127.0.0.1", 0)
    tls = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server_tls)
    ends = Ends(plain.sockets[0].getsockname()[1], tls.sockets[0].getsockname()[1], client_tls)
    idle = loop.statistics().open
    held = []
    for count in (warm_up, connections):
        await make(ends, count)
        await settled(loop, idle)
        held.append(Held.by(loop))
    plain.close()
    tls.close()
    return held[0], held[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=200_000)
    parser.add_argument("--warm-up", type=int, default=10_000)
    parser.add_argument("--loop", choices=("epoll", "io_uring"), default="epoll")
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=lambda: stellane_loop.new_event_loop(arguments.loop)) as runner:
        before, after = runner.run(left_behind(arguments.connections, arguments.warm_up))
    for name, held in (("before", before), ("after", after)):
        print(
            f"{name}: {held.descriptors} descriptors, {held.open} objects of the poller, "
            f"{held.objects.total()} Python objects, {held.rss_bytes >> 10} KiB "
            f"({held.untrimmed_bytes >> 10} KiB with free heap)"
        )
    left = after.left_since(before)
    print("\n".join(left) or "nothing was left")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
