"""Put load on a server and read what came of it: our C generator, or wrk."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from bench.cpu import running_on

WARMUP_S = 0.5
"""Load before the measured window, on the same connections (C generator) or on others (wrk)."""

GRACE_S = 30.0
"""How much longer than asked a generator may take before it is killed."""


class LoadError(Exception):
    """The generator failed, or the server gave a wrong answer, none, or closed a connection."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every connection asks for, and the body it must get."""

    method: str = "GET"
    path: str = "/"
    body_bytes: int = 0
    expected_body: str = "hello, world"


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One measured window."""

    requests: int
    elapsed_s: float
    p50_us: float
    p99_us: float
    generator_cpu_s: float | None = None
    """CPU time the generator itself used in the window; wrk does not tell."""

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.elapsed_s


def run_c_generator(
    program: Path,
    *,
    port: int,
    request: Request,
    connections: int,
    seconds: float,
    cpu: int,
    at_start: Callable[[], None],
    at_end: Callable[[], None],
) -> LoadResult:
    """Load 127.0.0.1:`port` for `seconds`, pinned to `cpu`.

    `at_start` and `at_end` are called on either side of the measured window, while all
    connections are open. Raises LoadError for any answer that is not exactly right.
    """
    command = [str(program), str(port), str(connections), str(int(WARMUP_S * 1000)), str(int(seconds * 1000))]
    command += [request.method, request.path, str(request.body_bytes), request.expected_body]
    return run_generator(command, cpu=cpu, at_start=at_start, at_end=at_end)


def run_generator(
    command: Sequence[str], *, cpu: int, at_start: Callable[[], None], at_end: Callable[[], None]
) -> LoadResult:
    """Run a generator that talks as bare/generator.h says, pinned to `cpu`. Raises LoadError."""
    with running_on(cpu):
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        # No timeout is needed on these reads: the generator ends by itself, because it gives up
        # on an answer that takes longer than its STALL_MS.
        if process.stdout.readline() != "ready\n":
            _fail(process)
        at_start()
        process.stdin.write("go\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            _fail(process)
        at_end()
        process.stdin.close()
        process.wait(GRACE_S)
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return parse_c_result(line)


def _fail(process: subprocess.Popen[str]) -> NoReturn:
    _, stderr = process.communicate()
    raise LoadError(f"the load generator ended with status {process.returncode}: {stderr.strip()}")


def parse_c_result(line: str) -> LoadResult:
    """Read the generator's JSON line. Raises LoadError when it reports any error."""
    result = json.loads(line)
    errors = {kind: count for kind, count in result["errors"].items() if count}
    if errors or result["connections_lost"] or not result["requests"]:
        counts = ", ".join(f"{count} {kind}" for kind, count in errors.items()) or "no requests completed"
        raise LoadError(
            f"{counts}; {result['connections_lost']} connections lost; the first error: {result['first_error']}"
        )
    return LoadResult(result["requests"], result["elapsed_s"], result["p50_us"], result["p99_us"], result["cpu_s"])


def run_wrk(
    wrk: str,
    *,
    port: int,
    connections: int,
    seconds: float,
    cpu: int,
    at_start: Callable[[], None],
    at_end: Callable[[], None],
) -> LoadResult:
    """Load GET / with wrk. It checks status only, and opens its connections inside the window."""

    def command(duration_s: float) -> list[str]:
        url = f"http://127.0.0.1:{port}/"
        return [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(duration_s))}s", "--latency", url]

    with running_on(cpu):
        subprocess.run(command(WARMUP_S), capture_output=True, check=False, timeout=GRACE_S)
        at_start()
        run = subprocess.run(command(seconds), capture_output=True, text=True, check=False, timeout=seconds + GRACE_S)
        at_end()
    if run.returncode != 0:
        raise LoadError(f"wrk ended with status {run.returncode}: {run.stderr.strip()}")
    return parse_wrk_output(run.stdout)


def parse_wrk_output(text: str) -> LoadResult:
    """Read wrk's report. Raises LoadError when it tells of socket errors or other statuses."""
    for complaint in ("Socket errors", "Non-2xx"):
        if complaint in text:
            raise LoadError(next(line.strip() for line in text.splitlines() if complaint in line))
    total = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m),", text)
    p50, p99 = (re.search(rf"^\s+{p}%\s+([\d.]+)(us|ms|s)$", text, re.MULTILINE) for p in (50, 99))
    if total is None or p50 is None or p99 is None or int(total[1]) == 0:
        raise LoadError(f"wrk's output was not understood:\n{text}")
    in_us = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}
    elapsed_s = float(total[2]) * in_us[total[3]] / 1e6
    return LoadResult(int(total[1]), elapsed_s, float(p50[1]) * in_us[p50[2]], float(p99[1]) * in_us[p99[2]])
