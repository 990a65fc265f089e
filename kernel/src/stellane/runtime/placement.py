"""Where a worker runs: which CPU."""

from __future__ import annotations

import os

from stellane.config import Config


def pin_to_cpu(config: Config, slot: int) -> int | None:
    """Pin this process to one CPU when the configuration asks for it; the CPU's number, or None.

    Worker i gets the i-th CPU of those this process may use, round and round
    (sched_setaffinity(2)).
    """
    if not (config.runtime.enable_cpu_affinity or config.performance.enable_cpu_affinity):
        return None
    usable = sorted(os.sched_getaffinity(0))
    cpu = usable[slot % len(usable)]
    os.sched_setaffinity(0, {cpu})
    return cpu
