"""Every test of the backend suite fails for some broken backend; the suite cannot be weakened unseen."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from stellane.testing.backend import SUITE_TESTS
from stellane.testing.broken_backend import BROKEN, BROKEN_LOOPS

TIMEOUT_S = 300.0
PROCESSES = 4
DEADLINE_S = 1.0
"""How long a broken backend may hang before its test fails."""

CASES = [
    *((broken.__name__, f"broken_backend.{broken.__name__}()", test) for broken in BROKEN for test in BROKEN[broken]),
    *(
        (broken.__name__, f"broken_backend.around(broken_loops.{broken.__name__})", test)
        for broken in BROKEN_LOOPS
        for test in BROKEN_LOOPS[broken]
    ),
]
"""Class name, how it is made, the test that must fail."""

GUARDS = """
class TestReplaced(BackendConformance):
    def make_backend(self):
        return broken_backend.Modest()
    def test_is_running_tells_the_truth(self):
        pass

class TestUntrue(BackendConformance):
    expected_failures = {"test_statistics_are_true": "it does pass"}
    def make_backend(self):
        return broken_backend.AsyncioBackend()

class TestUnknown(BackendConformance):
    expected_failures = {"test_of_another_suite": "there is none"}
    def make_backend(self):
        return broken_backend.AsyncioBackend()

class TestAdmitted(BackendConformance):
    expected_failures = {"test_statistics_are_true": "it does not count"}
    def make_backend(self):
        return broken_backend.Uncounted()

class TestIncapable(BackendConformance):
    def make_backend(self):
        backend = broken_backend.AsyncioBackend()
        backend.capabilities = frozenset()
        return backend
"""

GUARDED = [
    ("TestReplaced", "test_suite_is_intact", "failure"),
    ("TestUntrue", "test_statistics_are_true", "failure"),
    ("TestUnknown", "test_suite_is_intact", "failure"),
    ("TestAdmitted", "test_statistics_are_true", "xfailed"),
    ("TestIncapable", "test_udp_echo", "skipped"),
    ("TestIncapable", "test_statistics_are_true", "passed"),
]
"""What a weakened suite comes to: class, test, outcome."""


def write_suite(path: Path) -> None:
    """A test file with one class for each broken backend."""
    lines = [
        "from stellane.testing import broken_backend, broken_loops",
        "from stellane.testing.backend import BackendConformance",
    ]
    for name, made in dict.fromkeys((name, made) for name, made, _ in CASES):
        lines += [
            f"class Test{name}(BackendConformance):",
            f"    deadline_s = {DEADLINE_S}",
            "    def make_backend(self):",
            f"        return {made}",
            "    def make_ordered_backend(self):",
            f"        return {made}",
        ]
    path.write_text("\n".join(lines) + "\n" + GUARDS)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """What became of each test: (class, test) to failure, skipped, xfailed or passed."""
    directory = tmp_path_factory.mktemp("broken")
    write_suite(directory / "test_broken.py")
    (directory / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\nfilterwarnings = error\n")
    nodes = [f"test_broken.py::Test{name}::{test}" for name, _, test in CASES]
    nodes += [f"test_broken.py::{name}::{test}" for name, test, _ in GUARDED]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    program = [sys.executable, "-m", "pytest", "-q", "-p", "stellane.testing.pytest_plugin", "-p", "no:cacheprovider"]
    # Most of the time goes in waiting for what never comes, so several processes wait at once.
    runs = [
        subprocess.Popen(
            [*program, f"--junitxml={number}.xml", *nodes[number::PROCESSES]],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    found: dict[tuple[str, str], str] = {}
    for number, run in enumerate(runs):
        try:
            output, _ = run.communicate(timeout=TIMEOUT_S)
        finally:
            run.kill()
        assert run.returncode == 1, output
        found |= read_outcomes(directory / f"{number}.xml")
    return found


def read_outcomes(path: Path) -> dict[tuple[str, str], str]:
    """What a JUnit report says of each test."""
    found: dict[tuple[str, str], str] = {}
    for case in ET.parse(path).getroot().iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        said = "passed" if outcome is None else outcome.tag
        if outcome is not None and outcome.get("type") == "pytest.xfail":
            said = "xfailed"
        # A failed test that also fails to clean up is reported twice.
        key = case.get("classname", "").rpartition(".")[2], case.get("name", "")
        if found.get(key) != "failure":
            found[key] = said
    return found


@pytest.mark.parametrize(("name", "test"), [(name, test) for name, _, test in CASES])
def test_a_broken_backend_is_caught(outcomes: dict[tuple[str, str], str], name: str, test: str) -> None:
    """Each named test fails for its broken backend."""
    outcome = outcomes[f"Test{name}", test]
    if outcome == "skipped":
        pytest.skip(f"not run: {test} cannot run on this Python")
    assert outcome == "failure"


def test_every_test_of_the_suite_catches_something() -> None:
    """No test of the suite is without a broken backend that it fails for."""
    assert {test for _, _, test in CASES} | {"test_suite_is_intact"} == set(SUITE_TESTS)


def test_every_test_states_its_rule() -> None:
    """Each test of the suite has a docstring: the author of a backend reads it when it fails."""
    from stellane.testing.backend import BackendConformance

    for name in SUITE_TESTS:
        assert (getattr(BackendConformance, name).__doc__ or "").strip(), name


@pytest.mark.parametrize(("name", "test", "expected"), GUARDED)
def test_the_suite_cannot_be_weakened_unseen(
    outcomes: dict[tuple[str, str], str], name: str, test: str, expected: str
) -> None:
    """Replaced tests, stale and unknown expected failures are errors; what is not run is said to be skipped."""
    assert outcomes[name, test] == expected
