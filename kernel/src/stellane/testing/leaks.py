"""Counting what a piece of code must give back: descriptors and threads.

before = Resources.now()
...
assert before.leaked(deadline_s=2.0) == []
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

DESCRIPTORS = Path("/proc/self/fd")
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Resources:
    """The open descriptors of this process (number to what it is) and its Python threads."""

    descriptors: dict[int, str]
    threads: frozenset[threading.Thread]

    @classmethod
    def now(cls) -> Resources:
        """What is open and running at this moment."""
        descriptors = {}
        for name in os.listdir(DESCRIPTORS):  # noqa: PTH208 - names, and the listing's own descriptor closed
            try:
                descriptors[int(name)] = str((DESCRIPTORS / name).readlink())
            except FileNotFoundError:
                continue  # the descriptor that listed the directory
        return cls(descriptors, frozenset(threading.enumerate()))

    def leaked(self, *, deadline_s: float) -> list[str]:
        """What is open or running now and was not then; waits up to `deadline_s` for it to go."""
        deadline = time.monotonic() + deadline_s
        while (found := self._new()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found

    def _new(self) -> list[str]:
        now = Resources.now()
        descriptors = [
            f"descriptor {number}: {what}"
            for number, what in now.descriptors.items()
            if self.descriptors.get(number) != what
        ]
        return descriptors + [f"thread {thread.name}" for thread in now.threads - self.threads]
