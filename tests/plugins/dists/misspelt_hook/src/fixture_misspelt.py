"""A backend whose create hook is misspelt; without a check it would never be called."""

from typing import Any

from stellane.hookspecs import hookimpl

stellane_api_level = 1


@hookimpl
def stellane_create_bakend(options: Any) -> Any:
    """Never called."""
    raise AssertionError("a plugin that does not match the hookspecs was used")
