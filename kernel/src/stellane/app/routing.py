"""Finding the route of a request.

Paths without parameters are in one dict per method, keyed by the bytes as they arrive. All
others are in a trie of decoded segments, where a static segment is tried before a typed
parameter, that before a plain one, and a wildcard last, whatever the order of registration.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from stellane.app.context import Context
from stellane.app.request import NO_PARAMS, Request
from stellane.app.route_pattern import Converter, RoutePattern, parse_pattern
from stellane.app.signature import qualified_name

Handler = Callable[[Context, Request], Awaitable[Any]]

_BAD_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")


class Route:
    """One pattern and method, and what answers them. `endpoint` is `handler` inside its middleware."""

    __slots__ = ("endpoint", "handler", "journal", "method", "pattern", "timeout_s")

    def __init__(
        self,
        pattern: RoutePattern,
        method: str,
        handler: Handler,
        *,
        journal: bool | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.pattern = pattern
        self.method = method
        self.handler = handler
        self.endpoint = handler
        self.journal = journal
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<Route {self.method} {self.pattern.text}>"


class NotRouted(Exception):
    """No route answers. `status` is 400, 404 or 405; `allow` the methods that the path has."""

    def __init__(self, status: int, detail: str, allow: tuple[str, ...] = ()) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.allow = allow


class _Node:
    """One segment's place in the trie."""

    __slots__ = ("parameters", "routes", "static")

    def __init__(self) -> None:
        self.static: dict[str, _Node] = {}
        self.parameters: list[tuple[Converter, _Node]] = []
        self.routes: dict[str, Route] = {}

    def search(
        self, segments: list[str], index: int, method: str, values: list[Any], allowed: set[str]
    ) -> Route | None:
        """The best route for the segments from `index` on. `values` are those of the parameters on the
        way to it; `allowed` collects the methods of places that match but do not answer `method`."""
        if index == len(segments):
            return self._of_method(method, allowed)
        segment = segments[index]
        static = self.static.get(segment)
        if static is not None:
            found = static.search(segments, index + 1, method, values, allowed)
            if found is not None:
                return found
        for converter, child in self.parameters:
            if converter.rest:
                values.append("/".join(segments[index:]))
                found = child._of_method(method, allowed)
            else:
                try:
                    values.append(converter.convert(segment))
                except ValueError:
                    continue
                found = child.search(segments, index + 1, method, values, allowed)
            if found is not None:
                return found
            values.pop()
        return None

    def _of_method(self, method: str, allowed: set[str]) -> Route | None:
        routes = self.routes
        found = routes.get(method)
        if found is None:
            if method == "HEAD" and "GET" in routes:
                return routes["GET"]
            allowed.update(routes)
        return found


class Router:
    """All routes of a server."""

    def __init__(self) -> None:
        self._root = _Node()
        self.routes: list[Route] = []
        self.static: dict[str, dict[bytes, Route]] = {}
        """method -> raw path -> route; HEAD is answered by GET's."""

    def add(self, route: Route) -> None:
        """Add a route. Raises ValueError when another one already matches exactly the same requests."""
        node = self._root
        for segment in route.pattern.segments:
            node = _child(node, segment)
        other = node.routes.get(route.method)
        if other is not None:
            raise ValueError(
                f"route {route.method} {route.pattern.text!r} is already registered"
                f"{'' if other.pattern.text == route.pattern.text else f' as {other.pattern.text!r}'}"
                f" for {qualified_name(other.handler)}"
            )
        node.routes[route.method] = route
        self.routes.append(route)
        path = route.pattern.text.encode()
        if not route.pattern.names and b"%" not in path:
            self.static.setdefault(route.method, {})[path] = route
            if route.method == "HEAD" or (route.method == "GET" and "HEAD" not in node.routes):
                self.static.setdefault("HEAD", {})[path] = route

    def find(self, method: str, path: bytes) -> tuple[Route, Mapping[str, Any]]:
        """The route of a request and its parameters. Raises NotRouted."""
        table = self.static.get(method)
        if table is not None and (route := table.get(path)) is not None:
            return route, NO_PARAMS
        values: list[Any] = []
        allowed: set[str] = set()
        found = self._root.search(_segments(path), 0, method, values, allowed)
        if found is not None:
            return found, dict(zip(found.pattern.names, values, strict=True))
        if not allowed:
            raise NotRouted(404, "Not Found")
        raise NotRouted(405, "Method Not Allowed", _allow(allowed))

    def methods(self) -> tuple[str, ...]:
        """Every method some route answers, as an Allow field lists them."""
        return _allow({route.method for route in self.routes})


def make_route(
    pattern: str, method: str, handler: Handler, *, journal: bool | None = None, timeout_s: float | None = None
) -> Route:
    """A route of a pattern that is still text. Raises ValueError for a pattern that is wrong."""
    return Route(parse_pattern(pattern), method, handler, journal=journal, timeout_s=timeout_s)


def _child(node: _Node, segment: str | Converter) -> _Node:
    if isinstance(segment, str):
        return node.static.setdefault(segment, _Node())
    for converter, child in node.parameters:
        if converter is segment:
            return child
    child = _Node()
    node.parameters.append((segment, child))
    node.parameters.sort(key=lambda parameter: parameter[0].rank)
    return child


def _segments(path: bytes) -> list[str]:
    """The path's segments, each decoded by itself, so that %2F stays inside one. Raises NotRouted 400."""
    if not path.startswith(b"/"):
        raise NotRouted(404, "Not Found")
    raw = path[1:].split(b"/")
    try:
        if b"%" not in path:
            return [segment.decode("utf-8") for segment in raw]
        if _BAD_ESCAPE.search(path):
            raise NotRouted(400, "the path has a '%' that is not followed by two hex digits")
        return [unquote_to_bytes(segment).decode("utf-8") for segment in raw]
    except UnicodeDecodeError:
        raise NotRouted(400, "the path is not UTF-8") from None


def _allow(methods: set[str]) -> tuple[str, ...]:
    return tuple(sorted(methods | ({"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"})))
