"""What to say when a library is not there."""

from __future__ import annotations

import importlib.util

import pytest


def require(*modules: str) -> None:
    """Skip the whole module, with the remedy, unless all of these can be imported."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        remedy = "pip install -r loop/tests/ecosystem/requirements.txt"
        pytest.skip(f"not run: {', '.join(missing)} not installed; {remedy}", allow_module_level=True)
