"""Stellane: an async runtime whose accepted requests survive the death of a process.

The names below are loaded when they are first used: the supervisor, the command line and the
plugins import this package too, and should not pay for what only applications need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellane.app.context import Context
    from stellane.app.http_error import HTTPError
    from stellane.app.recovered_request import retry_original_handler
    from stellane.app.request import Request
    from stellane.app.response import Response
    from stellane.app.server import Server
    from stellane.errors import DeadLetter, Retry, Skip
    from stellane.hookspecs import hookimpl
    from stellane.plugins import API_LEVEL

__version__ = "0.1.0"

_HOMES = {
    "API_LEVEL": "stellane.plugins",
    "Context": "stellane.app.context",
    "DeadLetter": "stellane.errors",
    "HTTPError": "stellane.app.http_error",
    "Request": "stellane.app.request",
    "Response": "stellane.app.response",
    "Retry": "stellane.errors",
    "Server": "stellane.app.server",
    "Skip": "stellane.errors",
    "hookimpl": "stellane.hookspecs",
    "retry_original_handler": "stellane.app.recovered_request",
}

__all__ = [
    "API_LEVEL",
    "Context",
    "DeadLetter",
    "HTTPError",
    "Request",
    "Response",
    "Retry",
    "Server",
    "Skip",
    "__version__",
    "hookimpl",
    "retry_original_handler",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'stellane' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
