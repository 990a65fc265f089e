"""What pytest loads wherever the kernel is installed: readable assertions and one marker.

Nothing of the suites is imported here; that happens when a test file asks for one.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "stellane.testing.backend",
    "stellane.testing.backend_life",
    "stellane.testing.backend_loop",
    "stellane.testing.backend_network",
    "stellane.testing.backend_schedule",
    "stellane.testing.journal",
    "stellane.testing.leaks",
)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that conformance suites put on their tests."""
    config.addinivalue_line(
        "markers", "requires(capability): run only for plugins that declare this capability (stellane)"
    )
