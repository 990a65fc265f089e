"""The epoll backend keeps the contract of backends."""

from __future__ import annotations

from stellane.config import PerformanceConfig
from stellane.testing.backend import BackendConformance
from stellane_backend_epoll import EpollBackend


class TestEpollBackend(BackendConformance):
    """The native loop over epoll."""

    def make_backend(self) -> EpollBackend:
        return EpollBackend()

    def make_ordered_backend(self) -> EpollBackend:
        return EpollBackend(PerformanceConfig(ready_order="priority"))


class TestOrderedEpollBackend(BackendConformance):
    """The same while callbacks are ordered by priority: all other rules hold there too."""

    def make_backend(self) -> EpollBackend:
        return EpollBackend(PerformanceConfig(ready_order="priority"))

    make_ordered_backend = make_backend
