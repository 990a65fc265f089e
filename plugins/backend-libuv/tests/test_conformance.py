"""The libuv backend keeps the contract of backends."""

from __future__ import annotations

from typing import ClassVar

from stellane.testing.backend import BackendConformance
from stellane_backend_libuv import LibUVBackend


class TestLibUVBackend(BackendConformance):
    """uvloop's loop."""

    expected_failures: ClassVar[dict[str, str]] = {
        "test_removing_tells_what_was_there": "uvloop 0.23 returns None where it has removed something",
    }

    def make_backend(self) -> LibUVBackend:
        return LibUVBackend()
