"""What may fail, and why: exceptions.toml, held strictly. An entry that is not needed any more is a failure too."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loop.tests.conformance.processes import Outcome

FILE = Path(__file__).with_name("exceptions.toml")
GOOD = ("passed", "skipped")


@dataclass(frozen=True)
class Judgement:
    """What is wrong with a run."""

    unexpected: list[Outcome]
    """failed, and not listed"""
    stale: list[str]
    """listed, and passed, or not there at all"""

    @property
    def good(self) -> bool:
        return not (self.unexpected or self.stale)

    def __str__(self) -> str:
        lines = [f"{outcome.status}, and not in {FILE.name}: {outcome.test}" for outcome in self.unexpected]
        lines += [f"in {FILE.name}, but it passed or is not there: {test}; remove the entry" for test in self.stale]
        return "\n".join(lines)


def exceptions(suite: str, loop: str, python: str = "", file: Path = FILE) -> dict[str, str]:
    """Test id -> reason, of the entries that hold for this loop and this Python.

    `python` is "3.13" or "3.13.2", by default the running one. ValueError for an entry without a reason or with a key
    that does not exist.
    """
    release = [int(part) for part in python.split(".")] if python else list(sys.version_info[:3])
    minor = ".".join(map(str, release[:2]))
    held: dict[str, str] = {}
    for entry in tomllib.loads(file.read_text()).get(suite, []):
        if unknown := set(entry) - {"test", "reason", "loops", "pythons", "since"}:
            raise ValueError(f"{file}: {entry.get('test')}: unknown keys {sorted(unknown)}")
        if not entry.get("test") or not entry.get("reason", "").strip() or not entry.get("loops"):
            raise ValueError(f"{file}: {entry}: test, loops and reason are all needed")
        since = [int(part) for part in entry.get("since", "0").split(".")]
        if loop in entry["loops"] and minor in entry.get("pythons", [minor]) and release >= since:
            held[entry["test"]] = entry["reason"]
    return held


def judge(outcomes: Iterable[Outcome], held: dict[str, str]) -> Judgement:
    """Compare a whole run with the exceptions that hold for it."""
    bad = {outcome.test: outcome for outcome in outcomes if outcome.status not in GOOD}
    return Judgement(
        unexpected=[outcome for test, outcome in bad.items() if test not in held],
        stale=[test for test in held if test not in bad],
    )
