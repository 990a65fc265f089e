"""The libuv backend keeps the contract of backends."""

from __future__ import annotations

from stellane.testing.backend import BackendConformance
from stellane_backend_libuv import LibUVBackend


class TestLibUVBackend(BackendConformance):
    """uvloop's loop."""

    def make_backend(self) -> LibUVBackend:
        return LibUVBackend()
