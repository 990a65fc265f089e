"""Which recovery hook a request belongs to: a route's own before the general one."""

from __future__ import annotations

from collections.abc import Iterable

from stellane.app.routing import Handler, Route
from stellane.app.signature import qualified_name
from stellane.nearest import did_you_mean

ANY = ""
"""Stands for every method, or for requests of every route."""


class RecoveryHooks:
    """The on_recover hooks of a server."""

    def __init__(self) -> None:
        self._hooks: dict[tuple[str, str], Handler] = {}

    def add(self, hook: Handler, route: str | None, methods: Iterable[str] | None) -> None:
        """Register `hook` for a route's pattern and methods; None means all of them.

        Raises ValueError when another hook is registered for the same.
        """
        for method in methods or (ANY,):
            key = (route or ANY, method)
            if key in self._hooks:
                raise ValueError(
                    f"on_recover: {qualified_name(self._hooks[key])} is already registered for "
                    f"{method or 'every method'} of {route or 'every route'}"
                )
            self._hooks[key] = hook

    def check(self, routes: Iterable[Route]) -> None:
        """Raise ValueError for a hook whose route does not exist: it would never run."""
        known: dict[str, set[str]] = {}
        for route in routes:
            known.setdefault(route.pattern.text, set()).add(route.method)
        for pattern, method in self._hooks:
            if pattern and pattern not in known:
                raise ValueError(
                    f"on_recover(route={pattern!r}): no route has that pattern.{did_you_mean(pattern, known)}"
                )
            if pattern and method and method not in known[pattern]:
                raise ValueError(
                    f"on_recover(route={pattern!r}, methods=...): {method} is not a method of that route; "
                    f"it has {', '.join(sorted(known[pattern]))}"
                )

    def find(self, method: str, route: Route | None) -> Handler | None:
        """The hook for a request that `route` answers, None when no route does."""
        patterns = (ANY,) if route is None else (route.pattern.text, ANY)
        for pattern in patterns:
            for wanted in (method, ANY):
                hook = self._hooks.get((pattern, wanted))
                if hook is not None:
                    return hook
        return None
