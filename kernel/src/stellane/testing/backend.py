"""The conformance suite of backends.

    from stellane.testing.backend import BackendConformance

    class TestMyBackend(BackendConformance):
        def make_backend(self):
            return MyBackend()

`make_backend` returns a new backend that is not running. A backend that declares own-ready-queue
also defines `make_ordered_backend`: one whose callbacks are ordered by priority. A test that needs a capability the
backend does not declare is skipped and says so. A rule a backend cannot keep is named in
`expected_failures` with the reason; the test is then expected to fail, and its passing is an
error, so the list stays true. Times are bounded generously: no test measures speed.

The rules are in five files: `backend_life` (run, stop, the end), `backend_schedule`,
`backend_order` (priorities), `backend_loop` (callbacks, timers, signals, processes), `backend_network`.
"""

from __future__ import annotations

import pytest

from stellane.abc.backend import Backend
from stellane.testing.backend_life import LifeRules
from stellane.testing.backend_loop import LoopRules
from stellane.testing.backend_network import NetworkRules
from stellane.testing.backend_order import OrderRules
from stellane.testing.backend_schedule import ScheduleRules


class BackendConformance(LifeRules, ScheduleRules, OrderRules, LoopRules, NetworkRules):
    """What every backend must do. Subclass it and define `make_backend`."""

    def make_backend(self) -> Backend:
        """A new backend, not running."""
        raise NotImplementedError("define make_backend in your subclass")

    @pytest.fixture(autouse=True)
    def _prepare(self, request: pytest.FixtureRequest) -> None:
        test = request.node.originalname
        for marker in request.node.iter_markers("requires"):
            if marker.args[0] not in self.make_backend().capabilities:
                pytest.skip(f"not run: the backend does not declare the capability {marker.args[0]}")
        if test in self.expected_failures:
            request.applymarker(pytest.mark.xfail(reason=self.expected_failures[test], strict=True))

    def test_suite_is_intact(self) -> None:
        """No test of this suite is overridden or taken out, and expected failures name tests and reasons."""
        for name in SUITE_TESTS:
            assert getattr(type(self), name, None) is getattr(BackendConformance, name), f"{name} was replaced"
        for name, reason in self.expected_failures.items():
            assert name in SUITE_TESTS, f"expected_failures names {name}, which is not a test of the suite"
            assert reason.strip(), f"expected_failures gives no reason for {name}"
        assert "test_suite_is_intact" not in self.expected_failures


SUITE_TESTS = tuple(name for name in dir(BackendConformance) if name.startswith("test_"))
"""The names of all tests of the suite."""
