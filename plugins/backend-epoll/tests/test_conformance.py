"""The epoll backend keeps the contract of backends."""

from __future__ import annotations

from stellane.testing.backend import BackendConformance
from stellane_backend_epoll import EpollBackend


class TestEpollBackend(BackendConformance):
    """The native loop over epoll."""

    def make_backend(self) -> EpollBackend:
        return EpollBackend()
