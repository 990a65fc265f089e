"""What a handler reads of a request: path, query, headers, body."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import msgspec
import pytest

from stellane import HTTPError, Request
from stellane.app.form import FORM_FIELDS_MAX
from stellane.errors import BodyTooLarge, ClientDisconnected
from stellane.testing import MemoryExchange

FORM = (b"content-type", b"application/x-www-form-urlencoded; charset=utf-8")


def run(coro: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coro, 5))


def request(target: str | bytes = "/", *headers: tuple[bytes, bytes], body: Any = b"", **options: Any) -> Request:
    return Request(MemoryExchange("POST", target, headers, body, **options))


def refused(coro: Coroutine[Any, Any, Any]) -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        run(coro)
    return caught.value


def test_the_request_line_and_the_connection() -> None:
    req = request("/caf%C3%A9/a%2Fb?x=1", scheme="https", http_version="1.0", client=("192.0.2.1", 7))
    assert (req.method, req.path, req.raw_path) == ("POST", "/café/a/b", b"/caf%C3%A9/a%2Fb")
    assert (req.scheme, req.http_version, req.client) == ("https", "1.0", ("192.0.2.1", 7))
    assert dict(req.params) == {}


def test_query_fields_keep_their_order_and_repetitions() -> None:
    query = request("/?x=1&y=&x=%C3%A9+b&z&%26=%3D").query
    assert (query["x"], query.getall("x"), query.getall("none")) == ("1", ["1", "é b"], [])
    assert dict(query) == {"x": "1", "y": "", "z": "", "&": "="}
    assert query.items_all() == [("x", "1"), ("y", ""), ("x", "é b"), ("z", ""), ("&", "=")]
    assert query.get("none", "default") == "default"
    assert "1" not in repr(query), "values may be secrets"


@pytest.mark.parametrize("target", [b"/?x=%FF", b"/?%C3=1", b"/?x=\xff"])
def test_a_query_that_is_not_utf8_is_400(target: bytes) -> None:
    with pytest.raises(HTTPError, match="400: the query string is not UTF-8"):
        _ = request(target).query


def test_a_query_has_a_limit_of_fields() -> None:
    assert len(request("/?" + "&".join(f"f{n}" for n in range(FORM_FIELDS_MAX))).query) == FORM_FIELDS_MAX
    with pytest.raises(HTTPError, match=f"400: the query string has more than {FORM_FIELDS_MAX} fields"):
        _ = request("/?" + "&".join(f"f{n}" for n in range(FORM_FIELDS_MAX + 1))).query


def test_headers_are_case_insensitive_text() -> None:
    headers = request("/", (b"Accept", b"a"), (b"X-Name", b"caf\xe9"), (b"accept", b"b")).headers
    assert (headers["ACCEPT"], headers.getall("Accept"), headers["x-name"]) == ("a", ["a", "b"], "café")
    assert list(headers) == ["accept", "x-name"]
    assert len(headers) == 2
    assert "aCCept" in headers
    assert headers.get("none") is None
    assert "no\u0142 a name" not in headers
    assert headers.items_all() == [("accept", "a"), ("x-name", "café"), ("accept", "b")]
    assert "café" not in repr(headers)


@pytest.mark.parametrize("parts", [b"", b"whole", [b"in ", b"three ", b"parts"]])
def test_the_body_is_read_once_and_kept(parts: Any) -> None:
    req = request(body=parts)
    expected = parts if isinstance(parts, bytes) else b"".join(parts)

    async def read() -> tuple[bytes, bytes, list[bytes]]:
        return await req.body(), await req.body(), [part async for part in req.stream()]

    assert run(read()) == (expected, expected, [expected] if expected else [])


def test_a_streamed_body_arrives_in_parts_and_is_gone_afterwards() -> None:
    async def read() -> None:
        req = request(body=[b"a", b"b"])
        assert [part async for part in req.stream()] == [b"a", b"b"]
        with pytest.raises(RuntimeError, match=r"already taken by req.stream\(\)"):
            await req.body()
        with pytest.raises(RuntimeError, match="already taken"):
            _ = [part async for part in req.stream()]

    run(read())


def test_a_cancelled_read_loses_nothing() -> None:
    """The parts that had arrived are still there for the next one who asks."""

    async def read() -> None:
        exchange = MemoryExchange("POST", body=[b"a"], more_body=True)
        req = Request(exchange)
        first = asyncio.create_task(req.body())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        exchange.feed(b"b")
        exchange.feed_end()
        assert await req.body() == b"ab"

    run(read())


def test_parts_of_a_cancelled_read_come_first_in_a_stream() -> None:
    async def read() -> None:
        exchange = MemoryExchange("POST", body=[b"a"], more_body=True)
        req = Request(exchange)
        first = asyncio.create_task(req.body())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        exchange.feed(b"b")
        exchange.feed_end()
        assert [part async for part in req.stream()] == [b"a", b"b"]

    run(read())


def test_a_body_over_the_limit_raises_every_time() -> None:
    async def read() -> None:
        req = request(body=[b"12", b"345"], body_bytes_max=4)
        for _ in range(2):
            with pytest.raises(BodyTooLarge, match="4 bytes"):
                await req.body()
        assert await request(body=b"1234", body_bytes_max=4).body() == b"1234"

    run(read())


def test_a_client_that_goes_during_its_body_raises() -> None:
    async def read() -> None:
        exchange = MemoryExchange("POST", body=b"a", more_body=True)
        req = Request(exchange)
        assert not req.is_disconnected
        asyncio.get_running_loop().call_soon(exchange.disconnect)
        with pytest.raises(ClientDisconnected):
            await req.body()
        assert req.is_disconnected

    run(read())


class Order(msgspec.Struct):
    """A type for `req.json(type=...)`."""

    id: str
    count: int = 1


def test_json_is_decoded_and_checked() -> None:
    assert run(request(body=b'{"id": "a", "n": [1, 2.5, null]}').json()) == {"id": "a", "n": [1, 2.5, None]}
    assert run(request(body=b'{"id": "a"}').json(type=Order)) == Order("a")
    error = refused(request(body=b'{"id": "a", "count": "x"}').json(type=Order))
    assert error.status == 400
    assert "`int`" in error.detail
    assert "$.count" in error.detail


@pytest.mark.parametrize("body", [b"", b"{", b"{'a': 1}", b"nul", b'"\xff"', b"[1,]", b"1 2"])
def test_bad_json_is_400_with_the_reason(body: bytes) -> None:
    error = refused(request(body=body).json())
    assert error.status == 400
    assert error.detail.startswith("the request body is not the JSON expected: ")


def test_a_form_is_read() -> None:
    form = run(request("/", FORM, body=b"a=1&a=2&b=%C3%A9+x").form())
    assert (form.getall("a"), form["b"]) == (["1", "2"], "é x")


@pytest.mark.parametrize(
    ("headers", "body", "status", "detail"),
    [
        ([(b"content-type", b"multipart/form-data; boundary=x")], b"", 415, "multipart/form-data is not supported"),
        ([(b"content-type", b"application/json")], b"{}", 415, "not application/json"),
        ([], b"a=1", 415, "not none"),
        ([FORM], b"a=%FF", 400, "the form is not UTF-8"),
        ([FORM], b"&".join([b"a=1"] * (FORM_FIELDS_MAX + 1)), 400, "more than 1000 fields"),
    ],
)
def test_a_form_of_another_kind_is_refused(headers: Any, body: bytes, status: int, detail: str) -> None:
    error = refused(request("/", *headers, body=body).form())
    assert error.status == status
    assert detail in error.detail
