"""The journal suite passes a correct engine, and every one of its tests fails for some broken engine."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from stellane.testing.broken_journal import BROKEN
from stellane.testing.journal import SUITE_TESTS, JournalEngineConformance
from stellane.testing.plain_journal import PlainJournal

TIMEOUT_S = 300.0


class TestPlainJournal(JournalEngineConformance):
    """The correct engine of the test bed."""

    def make_engine(self) -> PlainJournal:
        return PlainJournal()


def write_suite(directory: Path) -> list[str]:
    """A test file with one class for each broken engine; the node ids of the tests that must fail."""
    lines = [
        "from stellane.testing import broken_journal",
        "from stellane.testing.journal import JournalEngineConformance",
    ]
    nodes = []
    for engine, tests in BROKEN.items():
        lines += [
            f"class Test{engine.__name__}(JournalEngineConformance):",
            "    def make_engine(self):",
            f"        return broken_journal.{engine.__name__}()",
        ]
        nodes += [f"test_broken.py::Test{engine.__name__}::{test}" for test in tests]
    lines += [
        "class TestReplaced(JournalEngineConformance):",
        "    def make_engine(self):",
        "        return broken_journal.Hiding()",
        "    def test_bit_rot_is_noticed(self):",
        "        pass",
        "class TestUntrue(JournalEngineConformance):",
        "    expected_failures = {'test_statistics_are_true': 'it does pass'}",
        "    def make_engine(self):",
        "        return broken_journal.PlainJournal()",
        "class TestUnknown(JournalEngineConformance):",
        "    expected_failures = {'test_of_another_suite': 'there is none'}",
        "    def make_engine(self):",
        "        return broken_journal.PlainJournal()",
        "class TestAdmitted(JournalEngineConformance):",
        "    expected_failures = {'test_statistics_are_true': 'it boasts'}",
        "    def make_engine(self):",
        "        return broken_journal.Boasting()",
    ]
    (directory / "test_broken.py").write_text("\n".join(lines) + "\n")
    nodes += [
        "test_broken.py::TestReplaced::test_suite_is_intact",
        "test_broken.py::TestUntrue::test_statistics_are_true",
        "test_broken.py::TestUnknown::test_suite_is_intact",
        "test_broken.py::TestAdmitted::test_statistics_are_true",
    ]
    return nodes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What became of each test that must fail: (class, test) to "failure", "skipped" or "passed"."""
    directory = tmp_path_factory.mktemp("broken")
    nodes = write_suite(directory)
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\nfilterwarnings = error\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=result.xml", *nodes],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert finished.returncode == 1, finished.stdout + finished.stderr
    found = {}
    for case in ET.parse(directory / "result.xml").getroot().iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        said = "passed" if outcome is None else outcome.tag
        if outcome is not None and outcome.get("type") == "pytest.xfail":
            said = "xfailed"
        found[case.get("classname", "").rpartition(".")[2], case.get("name", "")] = said
    return found


CASES = [(f"Test{engine.__name__}", test) for engine, tests in BROKEN.items() for test in tests]


@pytest.mark.parametrize(("class_name", "test"), CASES)
def test_a_broken_engine_is_caught(outcomes: dict[tuple[str, str], str], class_name: str, test: str) -> None:
    """Each named test fails for its broken engine."""
    outcome = outcomes[class_name, test]
    if outcome == "skipped":
        pytest.skip(f"not run: {test} cannot run on this machine")
    assert outcome == "failure"


def test_every_test_of_the_suite_catches_something() -> None:
    """No test of the suite is without a broken engine that it fails for."""
    caught = {test for tests in BROKEN.values() for test in tests} | {"test_suite_is_intact"}
    assert caught == set(SUITE_TESTS)


def test_a_replaced_test_is_caught(outcomes: dict[tuple[str, str], str]) -> None:
    """An author who overrides a test of the suite fails test_suite_is_intact."""
    assert outcomes["TestReplaced", "test_suite_is_intact"] == "failure"


def test_an_expected_failure_that_passes_is_an_error(outcomes: dict[tuple[str, str], str]) -> None:
    """expected_failures are strict."""
    assert outcomes["TestUntrue", "test_statistics_are_true"] == "failure"


def test_an_expected_failure_of_no_test_is_caught(outcomes: dict[tuple[str, str], str]) -> None:
    """expected_failures must name tests of the suite."""
    assert outcomes["TestUnknown", "test_suite_is_intact"] == "failure"


def test_an_expected_failure_that_fails_is_expected(outcomes: dict[tuple[str, str], str]) -> None:
    """A rule that is admitted not to hold does not fail the run, and is visible."""
    assert outcomes["TestAdmitted", "test_statistics_are_true"] == "xfailed"
