"""The runner tells a pass, a failure, a hang and a crash apart, and holds its exceptions file strictly."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from loop.tests.conformance import suites
from loop.tests.conformance.expectations import exceptions, judge
from loop.tests.conformance.loops import install, loop_factory
from loop.tests.conformance.processes import ROOT, Outcome, Selection, Unrunnable, run_together
from loop.tests.conformance.suites import Comparison, run_cases

BROKEN = "loop.tests.conformance.broken_loops:"
TIMER = "Events.test_run_until_complete"
NO_TIMER = "Events.test_call_soon"


@pytest.fixture(autouse=True)
def _test_package() -> None:
    try:
        suites.require_test_package()
    except Unrunnable as error:
        pytest.skip(str(error))


def run_two(loop: str, first: str = TIMER, second: str = NO_TIMER) -> dict[str, Outcome]:
    """A case that needs a timer, and after it, in the same process if that lives, one that does not."""
    outcomes = run_together(Selection(loop, "cases", timeout_s=2), [first, second])
    return {outcome.test: outcome for outcome in outcomes}


def test_a_good_loop_passes() -> None:
    found = run_two("asyncio")
    assert {test: outcome.status for test, outcome in found.items()} == {TIMER: "passed", NO_TIMER: "passed"}


@pytest.mark.parametrize(
    ("loop", "status", "detail"),
    [
        ("Deaf", "hung", "in test_run_until_complete"),  # where it hangs, from faulthandler
        ("Mortal", "crashed", "Fatal Python error: Aborted"),
        ("Hasty", "failed", "AssertionError"),
    ],
)
def test_each_way_not_to_pass_has_its_name_and_spares_the_others(loop: str, status: str, detail: str) -> None:
    found = run_two(BROKEN + loop)
    assert found[TIMER].status == status
    assert detail in found[TIMER].detail
    assert found[NO_TIMER].status == "passed"


def test_what_passes_alone_only_is_said_to() -> None:
    found = run_two(BROKEN + "Spoiling", NO_TIMER, TIMER)
    assert (found[TIMER].status, found[TIMER].unsteady) == ("passed", True)
    assert (found[NO_TIMER].status, found[NO_TIMER].unsteady) == ("passed", False)


def test_a_loop_that_cannot_be_imported_is_not_a_result() -> None:
    with pytest.raises(Unrunnable, match="No module named 'no_such_loop'"):
        run_cases("no_such_loop:new_event_loop", 1)
    with pytest.raises(ValueError, match=r"neither one of asyncio, .* nor of the form module:factory"):
        loop_factory("nonsense")


def test_to_install_a_loop_takes_nothing_that_is_deprecated() -> None:
    """Warnings are errors here; the loop is the one that is installed anyway."""
    factory = install("asyncio")
    loop = asyncio.new_event_loop()
    loop.close()
    assert type(loop) is factory


def test_a_missing_test_package_is_reported_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unrunnable, match=r"not run: .* has no test\.test_asyncio package. Install libpython"):
        run_cases("asyncio", 1)


def test_the_command_says_by_its_exit_status_what_happened() -> None:
    def status(loop: str) -> int:
        command = [sys.executable, "-m", "loop.tests.conformance", "--loop", loop, "--only", TIMER, "--timeout-s", "2"]
        return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, timeout=60).returncode

    assert [status(loop) for loop in ("asyncio", BROKEN + "Hasty", "no_such_loop:new_event_loop")] == [0, 1, 2]


def test_exceptions_are_strict() -> None:
    outcomes = [Outcome("A.good", "passed"), Outcome("A.known", "failed"), Outcome("A.new", "hung")]
    assert judge(outcomes, {"A.known": "why"}).unexpected == [outcomes[2]]
    assert judge(outcomes, {"A.known": "why", "A.new": "why"}).good
    assert judge(outcomes, {"A.known": "why", "A.new": "why", "A.good": "why"}).stale == ["A.good"]
    assert judge(outcomes, {"A.known": "why", "A.new": "why", "A.gone": "why"}).stale == ["A.gone"]


def test_exceptions_hold_for_the_loops_and_pythons_they_name(tmp_path: Path) -> None:
    file = tmp_path / "exceptions.toml"
    file.write_text('[[cases]]\ntest = "A.x"\nreason = "why"\nloops = ["epoll"]\npythons = ["3.12"]\n')
    assert exceptions("cases", "epoll", "3.12", file) == {"A.x": "why"}
    assert exceptions("cases", "io_uring", "3.12", file) == {}
    assert exceptions("cases", "epoll", "3.13", file) == {}
    assert exceptions("package", "epoll", "3.12", file) == {}
    file.write_text('[[cases]]\ntest = "A.x"\nreason = "why"\nloops = ["epoll"]\nsince = "3.13.2"\n')
    releases = ("3.12.9", "3.13.1", "3.13.2", "3.13.10", "3.14.0")
    held = [release for release in releases if exceptions("cases", "epoll", release, file)]
    assert held == ["3.13.2", "3.13.10", "3.14.0"]


@pytest.mark.parametrize("entry", ['reason = ""', 'python = ["3.13"]'])
def test_an_exception_needs_a_reason_and_known_keys(tmp_path: Path, entry: str) -> None:
    file = tmp_path / "exceptions.toml"
    reason = "" if entry.startswith("reason") else 'reason = "why"\n'
    file.write_text(f'[[cases]]\ntest = "A.x"\nloops = ["epoll"]\n{reason}{entry}\n')
    with pytest.raises(ValueError, match=r"exceptions\.toml"):
        exceptions("cases", "epoll", file=file)


def test_the_package_is_compared_by_what_the_control_passes() -> None:
    control = [Outcome("m.A.both", "failed"), Outcome("m.A.skip", "skipped"), Outcome("m.A.ours", "passed")]
    here = [Outcome("m.A.both", "failed"), Outcome("m.A.skip", "failed"), Outcome("m.A.ours", "skipped")]
    assert Comparison(here, control).only_here == [here[2]]
