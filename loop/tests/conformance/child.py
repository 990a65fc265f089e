"""The process that runs the tests. It says what it begins and how that ended, so that a hang or a crash has a name.

Started by `processes.py`; the events are JSON lines on the file descriptor it names. Nothing here
judges: the parent does.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import json
import os
import pkgutil
import unittest
from collections.abc import Iterator
from typing import Any

from loop.tests.conformance.loops import install


def flatten(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """The single tests of nested suites."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def loop_cases() -> list[unittest.TestCase]:
    """The cases that judge a loop: 182 on Python 3.13."""
    from loop.tests.conformance.cases import CASES

    return [test for case in CASES for test in unittest.defaultTestLoader.loadTestsFromTestCase(case)]


def package_tests(modules: list[str]) -> list[unittest.TestCase]:
    """The tests of the named modules of test.test_asyncio, or of all."""
    import test.test_asyncio as package

    names = modules or [entry.name for entry in pkgutil.iter_modules(package.__path__) if entry.name[:5] == "test_"]
    found: list[unittest.TestCase] = []
    for name in names:
        try:
            module = importlib.import_module(f"{package.__name__}.{name}")
        except unittest.SkipTest:  # written for another operating system
            continue
        found += flatten(unittest.defaultTestLoader.loadTestsFromModule(module))
    return found


def short_id(test: Any) -> str:
    """`Events.test_call_later`, `test_events.HandleTests.test_handle`: without the package."""
    return test.id().removeprefix("loop.tests.conformance.cases.").removeprefix("test.test_asyncio.")


class Reporter(unittest.TestResult):
    """Writes each event at once; the process may not live to write it later."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._status = ""
        self._detail = ""

    def _write(self, **event: Any) -> None:
        os.write(self._fd, json.dumps(event).encode() + b"\n")

    def _set(self, status: str, detail: str) -> None:
        """The first failure is kept: what follows it, in tearDown, is often its consequence."""
        if self._status != "failed":
            self._status, self._detail = status, detail

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802  (unittest's names)
        super().startTest(test)
        self._status, self._detail = "passed", ""
        self._write(begin=short_id(test))

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().stopTest(test)
        self._write(end=short_id(test), status=self._status, detail=self._detail)

    def addError(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addError(test, err)
        self._set("failed", self.errors[-1][1])
        if not isinstance(test, unittest.TestCase):  # setUpClass or setUpModule: no test was begun
            self._write(end=short_id(test), status="failed", detail=self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addFailure(test, err)
        self._set("failed", self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:  # noqa: N802
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._set("failed", "".join(self._exc_info_to_string(err, test)))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._set("skipped", reason)
        if not isinstance(test, unittest.TestCase):
            self._write(end=short_id(test), status="skipped", detail=reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        super().addUnexpectedSuccess(test)
        self._set("failed", "marked as expected to fail, and passed")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--loop", required=True)
    parser.add_argument("--suite", choices=("cases", "package"), required=True)
    parser.add_argument("--module", action="append", default=[], help="of the package; repeatable")
    parser.add_argument("--list", action="store_true", help="name the tests instead of running them")
    parser.add_argument("--events", type=int, required=True, help="the file descriptor for the events")
    parser.add_argument("tests", nargs="*", help="ids; in this order")
    arguments = parser.parse_args()
    faulthandler.enable()  # SIGABRT from the parent, when a test hangs, shows where
    os.set_inheritable(arguments.events, False)
    install(arguments.loop)

    found = loop_cases() if arguments.suite == "cases" else package_tests(arguments.module)
    tests = {short_id(test): test for test in found}
    if arguments.list:
        os.write(arguments.events, json.dumps(list(tests)).encode() + b"\n")
        return
    unittest.TestSuite(tests[name] for name in arguments.tests).run(Reporter(arguments.events))


if __name__ == "__main__":
    main()
