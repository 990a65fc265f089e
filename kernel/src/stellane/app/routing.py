"""Finding the route of a request.

Paths without parameters are in one dict per method, keyed by the bytes as they arrive. All
others are in a trie of decoded segments, where a static segment is tried before a typed
parameter, that before a plain one, and a wildcard last, whatever the order of registration.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote_to_bytes

from stellane.app.context import Context
from stellane.app.request import NO_PARAMS, Request
from stellane.app.route_pattern import WILDCARD, Converter, RoutePattern, parse_pattern
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


class NotRouted(Exception):  # noqa: N818 - a search result that only the server sees
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
        segments = _segments(path)
        allowed: dict[str, None] = {}
        for routes, values in _matches(self._root, segments, 0, ()):
            found = routes.get(method)
            if found is None and method == "HEAD":
                found = routes.get("GET")
            if found is not None:
                return found, dict(zip(found.pattern.names, values, strict=True))
            allowed.update(dict.fromkeys(routes))
        if not allowed:
            raise NotRouted(404, "Not Found")
        raise NotRouted(405, "Method Not Allowed", _allow(allowed))

    def methods(self) -> tuple[str, ...]:
        """Every method some route answers, as an Allow field lists them."""
        return _allow(dict.fromkeys(route.method for route in self.routes))


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


def _matches(
    node: _Node, segments: list[str], index: int, values: tuple[Any, ...]
) -> Iterator[tuple[dict[str, Route], tuple[Any, ...]]]:
    """Every place in the trie that matches, best first."""
    if index == len(segments):
        if node.routes:
            yield node.routes, values
        return
    segment = segments[index]
    static = node.static.get(segment)
    if static is not None:
        yield from _matches(static, segments, index + 1, values)
    for converter, child in node.parameters:
        if converter.name == WILDCARD:
            yield child.routes, (*values, "/".join(segments[index:]))
        elif converter.text.fullmatch(segment):
            try:
                value = converter.convert(segment)
            except ValueError:  # an int of more digits than Python converts
                continue
            yield from _matches(child, segments, index + 1, (*values, value))


def _allow(methods: Mapping[str, None]) -> tuple[str, ...]:
    names = dict(methods)
    if "GET" in names:
        names["HEAD"] = None
    names["OPTIONS"] = None
    return tuple(sorted(names))
