"""The process that is measured: one loop, one workload. `server.py LOOP WORKLOAD PORT [DIRECTORY]`.

It says on its standard output which loop it really runs, and ends with NOT_RUN_STATUS and a reason
when the loop cannot do the workload.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from typing import Any

from bench.loops import callbacks, echo, spawn, web
from bench.loops.control import Work, obey
from bench.loops.loops import identity, loop_named
from bench.servers import NOT_RUN_STATUS

SERVERS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    "protocol": echo.serve_protocol,
    "buffered": echo.serve_buffered,
    "streams": echo.serve_streams,
    "sock": echo.serve_sock,
    "datagrams": echo.serve_datagrams,
    "tls": echo.serve_tls,
    "http": web.serve_http,
}
WORKS: dict[str, Callable[[], Work]] = {
    "call-soon-chain": callbacks.Chain,
    "call-soon-batch": callbacks.Batch,
    "timers": callbacks.Timers,
    "threadsafe": callbacks.Threadsafe,
    "spawn": spawn.Spawn,
}


def tell(loop: Any) -> None:
    """Write what the loop says of itself, null where it says nothing.

    How it would wait now, as [ns to look before it sleeps, events to wait for, ns to wait for them], and
    in the last line how many system calls it has counted.
    """
    wait = loop._next_wait() if hasattr(loop, "_next_wait") else None
    counted = loop.statistics().system_calls if hasattr(loop, "statistics") else None
    print(f"next_wait {json.dumps(wait)}\nsystem_calls {json.dumps(counted)}", flush=True)


def serve(loop: asyncio.AbstractEventLoop, workload: str, port: int, directory: Path) -> None:
    """Run the workload until the process is ended."""

    async def main() -> None:
        await SERVERS[workload](port, directory)
        await loop.create_future()

    # Not the loop's own signal handling: it may be the thing that is missing.
    signal.signal(signal.SIGUSR2, lambda *_: tell(loop))
    loop.run_until_complete(main())


def main(loop_name: str, workload: str, port: int, directory: Path) -> None:
    """Run one workload on one loop."""
    loop = loop_named(loop_name).new()
    print(identity(loop), end="", flush=True)
    asyncio.set_event_loop(loop)
    try:
        if workload in SERVERS:
            serve(loop, workload, port, directory)
        else:
            work = WORKS[workload]()
            work.check(loop)
            obey(loop, work, port)
    except NotImplementedError as error:
        print(f"{loop_name} does not implement it: {error!r}", flush=True)
        sys.exit(NOT_RUN_STATUS)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
