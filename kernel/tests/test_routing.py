"""Routes: what a pattern matches, which of several wins, and what is refused at registration."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from stellane.app.context import Context
from stellane.app.request import Request
from stellane.app.routing import NotRouted, Router, make_route


async def handler(_ctx: Context, _req: Request) -> None:
    """Stands at every route: these tests look at the route found, not at its answer."""


def router(*routes: str) -> Router:
    """A router with routes written as "GET /path"."""
    made = Router()
    for route in routes:
        method, pattern = route.split(" ")
        made.add(make_route(pattern, method, handler))
    return made


def find(made: Router, method: str, path: bytes) -> tuple[str, dict[str, Any]]:
    route, params = made.find(method, path)
    return route.pattern.text, dict(params)


def refused(made: Router, method: str, path: bytes) -> NotRouted:
    with pytest.raises(NotRouted) as caught:
        made.find(method, path)
    return caught.value


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/", ("/", {})),
        (b"/users", ("/users", {})),
        (b"/users/", ("/users/", {})),
        (b"/users/me", ("/users/me", {})),
        (b"/users/7", ("/users/{id:int}", {"id": 7})),
        (b"/users/-7", ("/users/{id:int}", {"id": -7})),
        (b"/users/7.5", ("/users/{share:float}", {"share": 7.5})),
        (
            b"/users/0af76519-16cd-43dd-8448-eb211c80319c",
            ("/users/{key:uuid}", {"key": uuid.UUID("0af76519-16cd-43dd-8448-eb211c80319c")}),
        ),
        (b"/users/ada", ("/users/{name}", {"name": "ada"})),
        (b"/users/7/files", ("/users/{rest:path}", {"rest": "7/files"})),
        (b"/users/me/", ("/users/{rest:path}", {"rest": "me/"})),
        (b"/other/a/b", ("/{anything:path}", {"anything": "other/a/b"})),
    ],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_static_beats_typed_beats_plain_beats_wildcard_in_any_order(
    path: bytes, expected: tuple[str, dict[str, Any]], reverse: bool
) -> None:
    routes = [
        "GET /",
        "GET /users",
        "GET /users/",
        "GET /users/me",
        "GET /users/{id:int}",
        "GET /users/{share:float}",
        "GET /users/{key:uuid}",
        "GET /users/{name}",
        "GET /users/{rest:path}",
        "GET /{anything:path}",
    ]
    made = router(*(reversed(routes) if reverse else routes))
    assert find(made, "GET", path) == expected


def test_a_dead_end_is_left_for_the_next_best_route() -> None:
    """/a/{x}/c is tried first for /a/b/d, fails at its end, and /{y}/b/d still matches."""
    made = router("GET /a/{x}/c", "GET /{y}/b/d")
    assert find(made, "GET", b"/a/b/d") == ("/{y}/b/d", {"y": "a"})
    assert find(made, "GET", b"/a/b/c") == ("/a/{x}/c", {"x": "b"})


def test_a_better_place_without_the_method_does_not_hide_a_worse_one_with_it() -> None:
    made = router("GET /users/me", "POST /users/{id}")
    assert find(made, "POST", b"/users/me") == ("/users/{id}", {"id": "me"})
    assert refused(made, "PUT", b"/users/me").allow == ("GET", "HEAD", "OPTIONS", "POST")


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("/{id:int}", b"/seven"),
        ("/{id:int}", b"/1_000"),
        ("/{id:int}", b"/%D9%A1"),  # ARABIC-INDIC DIGIT ONE, which int() would take
        ("/{id:int}", b"/" + b"9" * 5000),
        ("/{id:int}", b"/7%0A"),
        ("/{x:float}", b"/nan"),
        ("/{x:float}", b"/1e3"),
        ("/{x:float}", b"/" + b"9" * 400),
        ("/{u:uuid}", b"/0af7651916cd43dd8448eb211c80319c"),
        ("/{name}", b"/"),
        ("/a/{name}", b"/a"),
        ("/a/{rest:path}", b"/a"),
        ("/a", b"/a/"),
        ("/a", b"/A"),
        ("/a", b"a"),
        ("/a", b"*"),
        ("/a", b""),
        ("/a/b", b"/a//b"),
    ],
)
def test_what_does_not_fit_is_404(pattern: str, path: bytes) -> None:
    assert refused(router(f"GET {pattern}"), "GET", path).status == 404


def test_parameters_are_decoded_each_by_itself() -> None:
    """An encoded slash stays inside its segment (RFC 3986 section 2.2)."""
    made = router("GET /files/{name}/info", "GET /all/{rest:path}", "GET /été", "GET /100%")
    assert find(made, "GET", b"/files/a%2Fb%20c/info") == ("/files/{name}/info", {"name": "a/b c"})
    assert find(made, "GET", b"/files/%C3%A9/info") == ("/files/{name}/info", {"name": "é"})
    assert find(made, "GET", b"/files/a+b/info") == ("/files/{name}/info", {"name": "a+b"})
    assert find(made, "GET", b"/all/x%2Fy/z") == ("/all/{rest:path}", {"rest": "x/y/z"})
    assert find(made, "GET", b"/%C3%A9t%C3%A9") == ("/été", {})
    assert find(made, "GET", b"/%66iles/a/info") == ("/files/{name}/info", {"name": "a"})
    assert find(made, "GET", b"/100%25") == ("/100%", {})


@pytest.mark.parametrize("path", [b"/%", b"/%4", b"/%zz", b"/a%", b"/%C3", b"/%FF", b"/\xff", b"/100%"])
def test_bad_escapes_and_bad_utf8_are_400(path: bytes) -> None:
    assert refused(router("GET /{name}", "GET /100%"), "GET", path).status == 400


def test_a_wildcard_may_be_empty() -> None:
    made = router("GET /{rest:path}")
    assert find(made, "GET", b"/") == ("/{rest:path}", {"rest": ""})


def test_head_is_answered_by_get_unless_it_has_a_route_of_its_own() -> None:
    for routes in (["GET /a", "HEAD /a"], ["HEAD /a", "GET /a"]):
        assert router(*routes).find("HEAD", b"/a")[0].method == "HEAD"
    assert router("GET /a").find("HEAD", b"/a")[0].method == "GET"
    assert router("GET /{x}").find("HEAD", b"/a")[0].method == "GET"
    assert refused(router("POST /a"), "HEAD", b"/a").status == 405


def test_405_names_the_methods_there_are() -> None:
    made = router("GET /a", "PUT /a", "DELETE /{x}", "POST /b")
    missing = refused(made, "PATCH", b"/a")
    assert (missing.status, missing.allow) == (405, ("DELETE", "GET", "HEAD", "OPTIONS", "PUT"))
    assert refused(made, "PATCH", b"/b").allow == ("DELETE", "OPTIONS", "POST")
    assert refused(made, "get", b"/a").status == 405, "methods are compared as they stand"


@pytest.mark.parametrize(
    ("first", "second"),
    [("GET /a", "GET /a"), ("GET /a/{x}", "GET /a/{y}"), ("GET /{x:int}", "GET /{y:int}"), ("GET /{x:path}",) * 2],
)
def test_a_second_route_for_the_same_requests_is_refused(first: str, second: str) -> None:
    with pytest.raises(ValueError, match=r"already registered.*test_routing.handler"):
        router(first, second)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("users", "begins with '/'"),
        ("", "begins with '/'"),
        ("/a?x=1", "has no query"),
        ("/{id:it}", "'it' is not a parameter type.*Did you mean 'int'"),
        ("/{id", "is not a parameter"),
        ("/a-{id}", "fills a whole segment"),
        ("/{1d}", "is not a parameter"),
        ("/{a}/{a}", "appears twice"),
        ("/{rest:path}/more", "must come last"),
    ],
)
def test_a_wrong_pattern_is_refused_with_its_reason(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_route(pattern, "GET", handler)


def test_a_pattern_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="a route's pattern is a str"):
        make_route(b"/a", "GET", handler)  # type: ignore[arg-type]


def test_a_very_long_path_is_searched_without_recursion_into_it() -> None:
    """As long as a request line can be; only routes that are registered cost depth."""
    made = router("GET /a/{rest:path}")
    rest = "x/" * 4000
    assert find(made, "GET", b"/a/" + rest.encode()) == ("/a/{rest:path}", {"rest": rest})
