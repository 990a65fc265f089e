"""The loop cases of CPython pass on both pollers, but for what exceptions.toml names."""

from __future__ import annotations

import asyncio
import os

import pytest
from loop.tests.conformance.expectations import exceptions, judge
from loop.tests.conformance.loops import loop_factory
from loop.tests.conformance.processes import Unrunnable
from loop.tests.conformance.report import table
from loop.tests.conformance.suites import run_cases

EXCEPTIONS_MAX = 7
"""175 of the 182 cases is the bar: the file may not grow beyond it."""


@pytest.fixture(params=os.environ.get("STELLANE_TEST_POLLER", "epoll,io_uring").split(","))
def poller(request: pytest.FixtureRequest) -> str:
    """A poller that this machine can use."""
    loop = None
    try:
        loop = loop_factory(request.param)()
        loop.run_until_complete(asyncio.sleep(0))  # io_uring makes its ring in the thread that runs it
    except OSError as error:
        pytest.skip(f"not run: {request.param} cannot be used here: {error}")
    finally:
        if loop is not None:
            loop.close()
    return str(request.param)


@pytest.mark.slow
def test_cpython_loop_cases(poller: str) -> None:
    try:
        outcomes = run_cases(poller, jobs=2)
    except Unrunnable as error:
        pytest.skip(str(error))
    print(table(outcomes))
    judgement = judge(outcomes, exceptions("cases", poller))
    details = "\n\n".join(f"{outcome.test}\n{outcome.detail}" for outcome in judgement.unexpected)
    assert judgement.good, f"{judgement}\n{details}"


@pytest.mark.parametrize("poller", ["epoll", "io_uring"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_few_exceptions(poller: str, python: str) -> None:
    assert len(exceptions("cases", poller, python)) <= EXCEPTIONS_MAX
