"""What an idle connection costs: resident memory of the server with 10,000 of them."""

from __future__ import annotations

import resource
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.cpu import read_rss_bytes
from bench.load import LoadError, run_generator
from bench.loops.workloads import SMALL_BYTES, echo_command
from bench.measure import Settings, order_of_round
from bench.rows import Row
from bench.servers import NotRunError, ServerError, serving

CONNECTIONS = 10_000
DESCRIPTORS_SPARE = 200
"""Descriptors a process needs besides its connections."""


@dataclass(frozen=True, slots=True)
class IdleMemory:
    """Medians over the rounds. The connections have each exchanged two messages, and then none."""

    row: Row
    bytes_per_connection: float
    empty_bytes: float
    """Resident memory before the first connection of many."""


def raise_descriptor_limit() -> None:
    """Let this process and its children open enough descriptors. Raises NotRunError where that is forbidden."""
    needed = CONNECTIONS + DESCRIPTORS_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise NotRunError(f"idle memory needs {needed} open files a process and the hard limit is {hard}: ulimit -n")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def measure_idle(row: Row, settings: Settings) -> tuple[float, float]:
    """Bytes per connection, and bytes without any. Raises ServerError."""
    loaded = 0
    with serving(row, settings.server_cpu) as server:
        empty = read_rss_bytes(server.pid)

        def at_end() -> None:
            nonlocal loaded
            loaded = read_rss_bytes(server.pid)

        command = echo_command(server.port, CONNECTIONS, 0.0, SMALL_BYTES)
        try:
            run_generator(command, cpu=settings.load_cpu, at_start=lambda: None, at_end=at_end)
        except LoadError as error:
            raise ServerError(f"{row.name}: with {CONNECTIONS} connections: {error}") from error
    return (loaded - empty) / CONNECTIONS, empty


def measure_all(rows: Sequence[Row], settings: Settings) -> list[IdleMemory]:
    """Every row once a round, rotated. Raises ServerError and NotRunError."""
    raise_descriptor_limit()
    found: dict[str, list[tuple[float, float]]] = {row.name: [] for row in rows}
    for round_number in range(settings.rounds):
        for row in order_of_round(rows, round_number):
            found[row.name].append(measure_idle(row, settings))
    return [
        IdleMemory(
            row,
            statistics.median(connection for connection, _ in found[row.name]),
            statistics.median(empty for _, empty in found[row.name]),
        )
        for row in rows
    ]
