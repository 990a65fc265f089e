"""Work that needs no client: how the measured process is told to run it, and what it answers.

The process listens on its port and obeys one line at a time, outside its loop, with blocking calls,
so that nothing but the work runs in the loop:
    run SECONDS   passes of the work until the time is over -> {"operations": N, "elapsed_s": S}
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Protocol

from bench.load import GRACE_S, WARMUP_S, LoadError, LoadResult
from bench.servers import READY_TIMEOUT_S


class Work(Protocol):
    """What one workload does in the loop."""

    def check(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run it once with everything verified. Raises RuntimeError when the loop did something wrong."""

    def run(self, loop: asyncio.AbstractEventLoop) -> int:
        """One pass; how many operations it was. Raises RuntimeError unless every one was done."""


def run_for(loop: asyncio.AbstractEventLoop, work: Work, seconds: float) -> dict[str, float]:
    """Passes of `work` for `seconds`, at least one; what the harness is answered."""
    operations = 0
    start = time.monotonic()
    while operations == 0 or time.monotonic() - start < seconds:
        operations += work.run(loop)
    return {"operations": operations, "elapsed_s": time.monotonic() - start}


def obey(loop: asyncio.AbstractEventLoop, work: Work, port: int) -> None:
    """Serve the harness for ever."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw") as lines:
                for line in lines:
                    seconds = float(line.removeprefix("run "))
                    lines.write(json.dumps(run_for(loop, work, seconds)) + "\n")
                    lines.flush()


def _run(port: int, seconds: float, timeout_s: float) -> dict[str, float]:
    with (
        socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection,
        connection.makefile("rw") as lines,
    ):
        lines.write(f"run {seconds}\n")
        lines.flush()
        answer = lines.readline()
    if not answer:
        raise LoadError("the process ended instead of running its work")
    result: dict[str, float] = json.loads(answer)
    return result


def ask_work(port: int) -> str:
    """One pass, as a sign of life; the work was checked before the process listened."""
    return json.dumps(_run(port, 0, READY_TIMEOUT_S))


def load_work(
    port: int, *, connections: int, seconds: float, cpu: int, at_start: Callable[[], None], at_end: Callable[[], None]
) -> LoadResult:
    """One measured window. There is no load, so `connections` and `cpu` say nothing here."""
    del connections, cpu
    _run(port, WARMUP_S, GRACE_S)
    at_start()
    result = _run(port, seconds, seconds + GRACE_S)
    at_end()
    return LoadResult(int(result["operations"]), result["elapsed_s"], 0.0, 0.0, 0.0)
