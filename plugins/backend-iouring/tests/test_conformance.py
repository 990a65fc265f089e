"""The io_uring backend keeps the contract of backends."""

from __future__ import annotations

import pytest

from stellane.config import PerformanceConfig
from stellane.testing.backend import BackendConformance
from stellane_backend_iouring import IoUringBackend, stellane_probe

probe = stellane_probe(None)
pytestmark = pytest.mark.skipif(not probe.usable, reason=f"not run: {probe.reason}; {probe.remedy}")


class TestIoUringBackend(BackendConformance):
    """The native loop over io_uring."""

    def make_backend(self) -> IoUringBackend:
        return IoUringBackend()

    def make_ordered_backend(self) -> IoUringBackend:
        return IoUringBackend(PerformanceConfig(ready_order="priority"))


class TestOrderedIoUringBackend(BackendConformance):
    """The same while callbacks are ordered by priority: all other rules hold there too."""

    def make_backend(self) -> IoUringBackend:
        return IoUringBackend(PerformanceConfig(ready_order="priority"))

    make_ordered_backend = make_backend
