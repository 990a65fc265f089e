"""The two things that are run: the loop cases, and the whole package compared with the standard library's loop."""

from __future__ import annotations

import fnmatch
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from loop.tests.conformance.processes import TEST_TIMEOUT_S, Outcome, Selection, Unrunnable, names, run

CONTROL = "asyncio"
PIECE_TESTS = 40
"""Tests that share a process at first. Few enough that `jobs` processes end at about the same time."""


def require_test_package() -> None:
    """Unrunnable, with the remedy, if this interpreter came without its tests. (Debian and others ship them apart.)"""
    if importlib.util.find_spec("test") is None or importlib.util.find_spec("test.test_asyncio") is None:
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise Unrunnable(
            f"not run: {sys.executable} has no test.test_asyncio package. "
            f"Install libpython{minor}-testsuite (Debian), or use a Python from pyenv or built from source"
        )


def _pieces(tests: Iterable[str], size: int = PIECE_TESTS) -> list[list[str]]:
    """Groups of at most `size` tests of one class: its fixtures run once for each piece."""
    pieces: list[list[str]] = []
    for _, group in groupby(tests, key=lambda test: test.rpartition(".")[0]):
        members = list(group)
        pieces += [members[start : start + size] for start in range(0, len(members), size)]
    return pieces


def run_cases(loop: str, jobs: int, only: str = "*", timeout_s: float = TEST_TIMEOUT_S) -> list[Outcome]:
    """The loop cases: 182 of them on Python 3.13."""
    require_test_package()
    selection = Selection(loop, "cases", timeout_s=timeout_s)
    tests = fnmatch.filter(names(selection), only)
    return run([(selection, piece) for piece in _pieces(tests)], jobs)


def run_package(loop: str, jobs: int, only: str = "*", timeout_s: float = TEST_TIMEOUT_S) -> list[Outcome]:
    """Every test of test.test_asyncio, with `loop` as what asyncio.new_event_loop() makes. One process a module."""
    require_test_package()
    tests = fnmatch.filter(names(Selection(loop, "package", timeout_s=timeout_s)), only)
    work = []
    for module, members in groupby(tests, key=lambda test: test.split(".")[0]):
        work.append((Selection(loop, "package", (module,), timeout_s), list(members)))
    return run(work, jobs)


@dataclass(frozen=True)
class Comparison:
    """A whole package on two loops."""

    outcomes: list[Outcome]
    control: list[Outcome]

    @property
    def only_here(self) -> list[Outcome]:
        """What does not pass on the loop under test and passes on the control."""
        passed = {outcome.test for outcome in self.control if outcome.status == "passed"}
        return [outcome for outcome in self.outcomes if outcome.status != "passed" and outcome.test in passed]


def compare_package(loop: str, jobs: int, only: str = "*", timeout_s: float = TEST_TIMEOUT_S) -> Comparison:
    """Run the package on `loop` and on the standard library's."""
    return Comparison(run_package(loop, jobs, only, timeout_s), run_package(CONTROL, jobs, only, timeout_s))
