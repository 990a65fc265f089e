"""Runs tests in child processes, with a time limit for each test: a hang is a result, and so is a crash.

Tests share a process while they pass, which saves the interpreter's start. A test that does not pass is
run again, alone in a fresh process, and that is its result: it may have been the
victim of its neighbours. A process that dies or hangs is replaced; its remaining tests go on.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
TEST_TIMEOUT_S = 30.0
"""The slowest case takes 5 s on the standard library's loop; the rest is for a machine that does something else."""
IMPORT_TIMEOUT_S = 60.0
DETAIL_CHARACTERS_MAX = 6000


class Unrunnable(Exception):
    """The tests could not be run at all: the test package or the loop cannot be imported."""


@dataclass(frozen=True)
class Outcome:
    """What became of one test."""

    test: str
    status: str
    """passed, failed, hung, crashed or skipped"""
    detail: str = ""
    """the traceback, the reason, or what the process wrote before it died"""
    unsteady: bool = False
    """passed alone, and not beside others"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """What a child is to load: the loop cases, or modules of the interpreter's package."""

    loop: str
    suite: str
    """cases or package"""
    modules: tuple[str, ...] = ()
    timeout_s: float = TEST_TIMEOUT_S

    def command(self, events: int, *arguments: str) -> list[str]:
        modules = [part for module in self.modules for part in ("--module", module)]
        command = [sys.executable, "-m", "loop.tests.conformance.child", "--loop", self.loop, "--suite", self.suite]
        return [*command, *modules, "--events", str(events), *arguments]


class _Child:
    """One process, its events and what it wrote, in a directory of its own."""

    def __init__(self, selection: Selection, *arguments: str) -> None:
        self._directory = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  (closed by end())
        self._events, write_end = os.pipe()
        os.set_blocking(self._events, False)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            selection.command(write_end, *arguments),
            cwd=self._directory.name,  # the tests leave files where they are
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            pass_fds=[write_end],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a test started ends with it
        )
        os.close(write_end)
        self._buffer = b""

    def event(self, timeout_s: float) -> dict[str, Any] | list[str] | None:
        """The next event; None once there will be none. TimeoutError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._events, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                data = os.read(self._events, 1 << 16)
                if not data:
                    return None
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self, *, hung: bool = False) -> str:
        """End the process if it has not ended; how it ended, and the last of what it wrote."""
        try:
            if hung:  # faulthandler writes where every thread is
                self._process.send_signal(signal.SIGABRT)
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._events)
        self._output.seek(0)
        written = self._output.read().decode(errors="replace")[-DETAIL_CHARACTERS_MAX:]
        self._output.close()
        self._directory.cleanup()
        how = "did not exit" if code is None else f"exit code {code}"
        return f"{how}\n{written}"


def names(selection: Selection) -> list[str]:
    """The ids of the tests there are. Unrunnable, with the child's words, if they cannot be imported."""
    child = _Child(selection, "--list")
    try:
        found = child.event(IMPORT_TIMEOUT_S)
    except TimeoutError:
        raise Unrunnable(f"the tests took more than {IMPORT_TIMEOUT_S} s to import\n{child.end(hung=True)}") from None
    ended = child.end()
    if not isinstance(found, list):
        raise Unrunnable(f"the tests cannot be imported: {ended}")
    return found


def _run_one_process(selection: Selection, tests: Sequence[str]) -> list[Outcome]:
    """Outcomes of the first tests, in order; fewer than asked for if the process hung or died."""
    outcomes: list[Outcome] = []
    child = _Child(selection, *tests)
    begun = ""
    how = ""
    try:
        while (event := child.event(selection.timeout_s if begun else IMPORT_TIMEOUT_S)) is not None:
            assert isinstance(event, dict)
            if "begin" in event:
                begun = event["begin"]
            else:
                outcomes.append(Outcome(event["end"], event["status"], event["detail"][-DETAIL_CHARACTERS_MAX:]))
                begun = ""
        how = "crashed"
    except TimeoutError:
        how = "hung"
    ended = child.end(hung=how == "hung")
    done = {outcome.test for outcome in outcomes}
    rest = [test for test in tests if test not in done]
    if begun or (rest and not outcomes):
        outcomes.append(Outcome(begun or rest[0], how, ended))
    elif how == "hung" or not ended.startswith("exit code 0"):
        # Every test ended, the process did not, or not well: the last one is where to look.
        outcomes[-1] = Outcome(outcomes[-1].test, how, f"after the test, at the process's exit: {ended}")
    return outcomes


def run_together(selection: Selection, tests: Sequence[str]) -> list[Outcome]:
    """Run `tests` in as few processes as it takes; each has one outcome."""
    outcomes: list[Outcome] = []
    rest = list(tests)
    while rest:
        some = _run_one_process(selection, rest)
        outcomes += some
        done = {outcome.test for outcome in some}
        # A failed class fixture takes its tests with it, silently.
        left = [test for test in rest if test not in done]
        if len(left) == len(rest):
            status = "skipped" if some[-1].status == "skipped" else "failed"
            outcomes += [Outcome(test, status, f"not run: {some[-1].test}: {some[-1].detail}") for test in left]
            break
        rest = left
    return [_again_alone(selection, outcome) for outcome in outcomes if outcome.test in tests]


def _again_alone(selection: Selection, outcome: Outcome) -> Outcome:
    if outcome.status in ("passed", "skipped"):
        return outcome
    again = _run_one_process(selection, [outcome.test])[-1]
    if again.status in ("passed", "skipped"):
        return Outcome(outcome.test, again.status, f"{outcome.status} beside others: {outcome.detail}", unsteady=True)
    return again


def run(work: Sequence[tuple[Selection, Sequence[str]]], jobs: int) -> list[Outcome]:
    """Run each group of tests in a process of its own, `jobs` of them at a time."""
    stop = threading.Event()

    def group(selection: Selection, tests: Sequence[str]) -> list[Outcome]:
        return [] if stop.is_set() else run_together(selection, tests)

    with ThreadPoolExecutor(jobs) as pool:
        results = [pool.submit(group, selection, tests) for selection, tests in work]
        try:
            return [outcome for result in results for outcome in result.result()]
        finally:
            stop.set()
