"""What a Response becomes, and which ones cannot be made."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stellane import HTTPError, Response
from stellane.app.response import as_response
from stellane.app.signature import qualified_name


def fields(response: Response) -> list[tuple[str, str]]:
    return response.headers.items_all()


async def parts() -> AsyncIterator[bytes]:
    yield b"a"


@pytest.mark.parametrize(
    ("response", "status", "body", "content_type"),
    [
        (Response(), 200, b"", None),
        (Response("é"), 200, "é".encode(), "text/plain; charset=utf-8"),
        (Response(b"x"), 200, b"x", "application/octet-stream"),
        (Response("x", 201, content_type="text/csv"), 201, b"x", "text/csv"),
        (Response("x", headers={"Content-Type": "text/csv"}), 200, b"x", "text/csv"),
        (Response.text("x", 404), 404, b"x", "text/plain; charset=utf-8"),
        (Response.html("<p>é"), 200, "<p>é".encode(), "text/html; charset=utf-8"),
        (Response.json({"a": [1, "é", None]}), 200, '{"a":[1,"é",null]}'.encode(), "application/json"),
        (Response.json(uuid.UUID(int=1)), 200, b'"00000000-0000-0000-0000-000000000001"', "application/json"),
        (Response.json([], content_type="application/problem+json"), 200, b"[]", "application/problem+json"),
        (Response(status=204), 204, b"", None),
        (Response(status=304, headers={"etag": '"1"'}), 304, b"", None),
    ],
)
def test_status_body_and_content_type(response: Response, status: int, body: bytes, content_type: str | None) -> None:
    assert (response.status, response.body, response.headers.get("content-type")) == (status, body, content_type)
    assert response.chunks is None


def test_header_fields_are_set_added_and_removed() -> None:
    response = Response("x", headers=[("A", "1"), ("b", "2"), ("a", "3")])
    assert fields(response) == [("content-type", "text/plain; charset=utf-8"), ("a", "1"), ("b", "2"), ("a", "3")]
    response.set_header("A", "4")
    response.add_header("B", "5")
    response.remove_header("Content-Type")
    response.remove_header("none")
    assert fields(response) == [("b", "2"), ("a", "4"), ("b", "5")]
    assert response.headers.getall("b") == ["2", "5"]


def test_changing_one_response_changes_no_other() -> None:
    """The usual fields are shared tuples."""
    first, second = Response.text("x"), Response.text("y")
    first.set_header("content-type", "text/csv")
    first.add_header("a", "1")
    assert fields(second) == [("content-type", "text/plain; charset=utf-8")]


@pytest.mark.parametrize("value", ["a\r\nset-cookie: b", "a\nb", "a\rb", "a\0b", "\u0142"])
@pytest.mark.parametrize("how", ["headers", "content_type", "set_header", "add_header"])
def test_a_value_that_would_break_the_head_is_refused(value: str, how: str) -> None:
    """RFC 9110 section 5.5: response splitting begins with CR or LF in a value."""
    response = Response("x")
    make = {
        "headers": lambda: Response("x", headers={"a": value}),
        "content_type": lambda: Response("x", content_type=value),
        "set_header": lambda: response.set_header("a", value),
        "add_header": lambda: response.add_header("a", value),
    }[how]
    with pytest.raises(ValueError, match="header field"):
        make()


@pytest.mark.parametrize("name", ["", "a b", "a:", "a\r\n", "é", "(a)"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a header field name"):
        Response("x", headers={name: "1"})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Response("x", 199), ValueError, "one of 200 to 599"),
        (lambda: Response("x", 600), ValueError, "one of 200 to 599"),
        (lambda: Response("x", "200"), ValueError, "one of 200 to 599"),
        (lambda: Response("x", 204), ValueError, "204 has no body"),
        (lambda: Response(b"x", 304), ValueError, "304 has no body"),
        (lambda: Response.stream(parts(), 204), ValueError, "204 has no body"),
        (lambda: Response({"a": 1}), TypeError, r"not dict; for data use Response.json\(\)"),
        (lambda: Response(None), TypeError, "not NoneType"),
        (lambda: Response("x", headers={"a": 1}), TypeError, "name and value are str"),
        (lambda: Response("x", headers={"content-type": "a"}, content_type="b"), ValueError, "both given"),
        (lambda: Response.json(object()), TypeError, "object"),
        (lambda: Response.stream([b"a"]), TypeError, "takes an async iterator.*not list"),
        (lambda: Response.stream(parts), TypeError, "takes an async iterator.*not function"),
        (lambda: Response.redirect("/a", 200), ValueError, "redirect status 200"),
        (lambda: HTTPError(200), ValueError, "400 to 599"),
    ],
)
def test_what_cannot_become_a_response_is_refused(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_redirect_names_its_target() -> None:
    response = Response.redirect("/a b/é?x=1&y=%20#f", 303)
    assert (response.status, response.body) == (303, b"")
    assert fields(response) == [("location", "/a%20b/%C3%A9?x=1&y=%20#f")]
    assert Response.redirect("https://example.org/", headers={"a": "1"}).headers["a"] == "1"
    assert "\r" not in Response.redirect("/a\r\nset-cookie: b").headers["location"]


def test_a_stream_keeps_its_iterator() -> None:
    iterator = parts()
    response = Response.stream(iterator, content_type="text/event-stream")
    assert response.chunks is iterator
    assert fields(response) == [("content-type", "text/event-stream")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"value": "1"}, "a=1; HttpOnly; Path=/; SameSite=Lax"),
        ({"value": "b c", "max_age_s": 60}, 'a="b c"; HttpOnly; Max-Age=60; Path=/; SameSite=Lax'),
        ({"value": 'q"\\;'}, 'a="q\\"\\\\\\073"; HttpOnly; Path=/; SameSite=Lax'),
        (
            {"value": "1", "domain": "example.org", "secure": True, "same_site": "none", "http_only": False},
            "a=1; Domain=example.org; Path=/; SameSite=None; Secure",
        ),
        ({"value": "x-_.~!#$%&'()*+/:<=>?@[]^`{|}", "same_site": None}, None),
    ],
)
def test_cookies(arguments: dict[str, Any], expected: str | None) -> None:
    response = Response("x")
    response.set_cookie("a", **arguments)
    cookie = response.headers["set-cookie"]
    if expected is None:
        expected = f"a={arguments['value']}; HttpOnly; Path=/"
    assert cookie == expected


def test_cookies_are_fields_of_their_own_and_can_be_deleted() -> None:
    response = Response("x")
    response.set_cookie("a", "1")
    response.delete_cookie("b", path="/p")
    first, second = response.headers.getall("set-cookie")
    assert first.startswith("a=1;")
    assert second.startswith(("b=;", 'b="";'))
    assert "Max-Age=0" in second
    assert "Path=/p" in second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a b"}, "set_cookie"),
        ({"name": "a;b"}, "set_cookie"),
        ({"name": ""}, "set_cookie"),
        ({"name": "path"}, "set_cookie"),
        ({"name": "a", "path": "/; secure"}, "semicolon"),
        ({"name": "a", "domain": "a\r\nb"}, "control character"),
        ({"name": "a", "same_site": "none"}, "needs secure=True"),
    ],
)
def test_a_cookie_that_is_none_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Response("x").set_cookie(**arguments)


def test_a_cookie_value_cannot_break_the_head() -> None:
    response = Response("x")
    response.set_cookie("a", "1\r\nset-cookie: b=2")
    assert not {"\r", "\n"} & set(response.headers["set-cookie"])


@pytest.mark.parametrize(
    ("result", "status", "body", "content_type"),
    [
        ("é", 200, "é".encode(), "text/plain; charset=utf-8"),
        ("", 200, b"", "text/plain; charset=utf-8"),
        (b"x", 200, b"x", "application/octet-stream"),
        (b"", 200, b"", "application/octet-stream"),
        ({"a": 1}, 200, b'{"a":1}', "application/json"),
        ([1], 200, b"[1]", "application/json"),
        (None, 204, b"", None),
    ],
)
def test_what_a_handler_returns_becomes_a_response(
    result: Any, status: int, body: bytes, content_type: str | None
) -> None:
    response = as_response(result, test_cookies)
    assert (response.status, response.body, response.headers.get("content-type")) == (status, body, content_type)


@pytest.mark.parametrize("result", [1, 1.5, True, (1, 2), {1}, object(), iter([b"a"])])
def test_anything_else_is_refused_with_the_handlers_name(result: Any) -> None:
    with pytest.raises(TypeError, match=rf"{qualified_name(test_cookies)} returned {type(result).__name__}; return a"):
        as_response(result, test_cookies)
