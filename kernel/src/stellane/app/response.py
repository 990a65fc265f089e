"""What a handler returns."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from http.cookies import CookieError, Morsel, SimpleCookie
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from stellane.abc.protocol import Fields
from stellane.app.headers import Headers, encode_field, encode_name
from stellane.app.signature import qualified_name

# Whole tuples made once: the protocol recognises an unchanged one by comparing pointers.
NO_FIELDS: Fields = ()
TEXT_FIELDS: Fields = ((b"content-type", b"text/plain; charset=utf-8"),)
HTML_FIELDS: Fields = ((b"content-type", b"text/html; charset=utf-8"),)
JSON_FIELDS: Fields = ((b"content-type", b"application/json"),)
BYTES_FIELDS: Fields = ((b"content-type", b"application/octet-stream"),)

REDIRECTS = frozenset({301, 302, 303, 307, 308})
BODYLESS = frozenset({204, 205, 304})
"""Statuses whose response has no content (RFC 9110 section 15)."""

HeaderArgument = Mapping[str, str] | Iterable[tuple[str, str]] | None

_encode_json = msgspec.json.encode
_COOKIE_VALUE = re.compile(r"[!#-+\--:<-\[\]-~]*")
_URL_SAFE = ":/%#?=@[]!$&'()*+,;~"


class Response:
    """A status, header fields and a body, or a body that is streamed.

    `Response("text")` is text/plain, `Response(b"bytes")` application/octet-stream, unless
    `content_type` or `headers` say otherwise. Raises ValueError for a status, a header field or
    a combination of them that cannot become valid HTTP.
    """

    __slots__ = ("body", "chunks", "fields", "status")

    def __init__(
        self,
        body: bytes | str = b"",
        status: int = 200,
        headers: HeaderArgument = None,
        content_type: str | None = None,
    ) -> None:
        if type(body) is str:
            body, fields = body.encode(), TEXT_FIELDS
        elif isinstance(body, bytes):
            fields = BYTES_FIELDS if body else NO_FIELDS
        else:
            raise TypeError(f"Response body is bytes or str, not {type(body).__name__}; for data use Response.json()")
        self.body = body
        self.chunks: AsyncIterable[bytes | str] | None = None
        self.status = status
        self.fields = fields
        if headers is not None or content_type is not None or status != 200:
            self._dress(headers, content_type)

    def _dress(self, headers: HeaderArgument, content_type: str | None) -> None:
        """Take over what is not the default, and check it."""
        status = self.status
        if not (isinstance(status, int) and 200 <= status <= 599):
            raise ValueError(f"Response status {status!r}: a response has one of 200 to 599")
        if status in BODYLESS and (self.body or self.chunks is not None):
            raise ValueError(f"Response status {status} has no body (RFC 9110 section 15), but one was given")
        if content_type is not None:
            self.fields = (encode_field("content-type", content_type),)
        elif status in BODYLESS:
            self.fields = NO_FIELDS
        if headers is not None:
            pairs = headers.items() if isinstance(headers, Mapping) else headers
            given = tuple([encode_field(name, value) for name, value in pairs])
            if any(name == b"content-type" for name, _ in given):
                if content_type is not None:
                    raise ValueError("content_type and a content-type header were both given")
                self.fields = given
            else:
                self.fields += given

    @classmethod
    def _of(
        cls, body: bytes, fields: Fields, status: int, headers: HeaderArgument, content_type: str | None
    ) -> Response:
        response = cls.__new__(cls)
        response.body = body
        response.chunks = None
        response.status = status
        response.fields = fields
        if headers is not None or content_type is not None or status != 200:
            response._dress(headers, content_type)
        return response

    @classmethod
    def text(
        cls, text: str, status: int = 200, headers: HeaderArgument = None, content_type: str | None = None
    ) -> Response:
        """text/plain in UTF-8."""
        return cls._of(text.encode(), TEXT_FIELDS, status, headers, content_type)

    @classmethod
    def html(
        cls, html: str, status: int = 200, headers: HeaderArgument = None, content_type: str | None = None
    ) -> Response:
        """text/html in UTF-8."""
        return cls._of(html.encode(), HTML_FIELDS, status, headers, content_type)

    @classmethod
    def json(
        cls, data: Any, status: int = 200, headers: HeaderArgument = None, content_type: str | None = None
    ) -> Response:
        """`data` as JSON: what msgspec encodes, dataclasses, datetimes and UUIDs included.

        Raises TypeError for anything else.
        """
        return cls._of(_encode_json(data), JSON_FIELDS, status, headers, content_type)

    @classmethod
    def redirect(cls, location: str, status: int = 307, headers: HeaderArgument = None) -> Response:
        """Send the client to `location`. 303 makes it use GET there; 301 and 308 are permanent."""
        if status not in REDIRECTS:
            raise ValueError(f"redirect status {status}: it is one of {sorted(REDIRECTS)}")
        response = cls._of(b"", NO_FIELDS, status, headers, None)
        response.fields += (encode_field("location", quote(location, safe=_URL_SAFE)),)
        return response

    @classmethod
    def stream(
        cls,
        chunks: AsyncIterable[bytes | str],
        status: int = 200,
        headers: HeaderArgument = None,
        content_type: str | None = None,
    ) -> Response:
        """A body that is sent as `chunks` yields it; str is encoded as UTF-8.

        The iterator waits while the client reads too slowly, and is closed when the client goes.
        """
        if not hasattr(chunks, "__aiter__"):
            raise TypeError(
                f"Response.stream() takes an async iterator, such as a call of an async generator function, "
                f"not {type(chunks).__name__}"
            )
        response = cls.__new__(cls)
        response.body = b""
        response.chunks = chunks
        response.status = status
        response.fields = BYTES_FIELDS
        response._dress(headers, content_type)
        return response

    @property
    def headers(self) -> Headers:
        """The header fields, to read. Change them with `set_header`, `add_header`, `remove_header`."""
        return Headers(self.fields)

    def set_header(self, name: str, value: str) -> None:
        """Set a field, in place of any that have its name. Raises ValueError when it is not valid."""
        field = encode_field(name, value)
        self.fields = (*[other for other in self.fields if other[0] != field[0]], field)

    def add_header(self, name: str, value: str) -> None:
        """Add a field beside any that have its name. Raises ValueError when it is not valid."""
        self.fields = (*self.fields, encode_field(name, value))

    def remove_header(self, name: str) -> None:
        """Remove every field of that name, if there is one."""
        removed = encode_name(name)
        self.fields = tuple([field for field in self.fields if field[0] != removed])

    def set_cookie(
        self,
        name: str,
        value: str = "",
        *,
        max_age_s: int | None = None,
        path: str = "/",
        domain: str | None = None,
        secure: bool = False,
        http_only: bool = True,
        same_site: Literal["lax", "strict", "none"] | None = "lax",
    ) -> None:
        """Add a Set-Cookie field (RFC 6265 section 4.1). Raises ValueError when a part is not valid.

        Without `max_age_s` the cookie lives as long as the browser. `same_site="none"` needs `secure`.
        """
        if same_site == "none" and not secure:
            raise ValueError('set_cookie(same_site="none") needs secure=True: browsers drop the cookie otherwise')
        morsel: Morsel[str] = Morsel()
        try:
            quoted = value if _is_cookie_value(value) else _quoted(value)
            morsel.set(name, value, quoted)
        except CookieError as error:
            raise ValueError(f"set_cookie: {error}") from None
        for attribute, text in (("path", path), ("domain", domain or "")):
            if ";" in text or not text.isprintable():
                raise ValueError(f"set_cookie: {attribute} {text!r} has a semicolon or a control character in it")
            morsel[attribute] = text
        if max_age_s is not None:
            morsel["max-age"] = str(max_age_s)
        morsel["secure"] = secure
        morsel["httponly"] = http_only
        morsel["samesite"] = same_site.capitalize() if same_site else ""
        self.add_header("set-cookie", morsel.OutputString())

    def delete_cookie(self, name: str, *, path: str = "/", domain: str | None = None) -> None:
        """Make the client forget a cookie that was set with the same path and domain."""
        self.set_cookie(name, max_age_s=0, path=path, domain=domain)

    def __repr__(self) -> str:
        size = "streamed" if self.chunks is not None else f"{len(self.body)} bytes"
        return f"<Response {self.status} {size}>"


def as_response(result: Any, handler: Callable[..., Any]) -> Response:
    """What `handler` returned, as a Response. Raises TypeError, naming it, when it cannot be one."""
    if isinstance(result, Response):
        return result
    if isinstance(result, str):
        return Response.text(result)
    if isinstance(result, bytes):
        return Response._of(result, BYTES_FIELDS, 200, None, None)
    if isinstance(result, (dict, list)):
        return Response.json(result)
    if result is None:
        return Response(status=204)
    if hasattr(result, "__aiter__"):
        return Response.stream(result)
    raise TypeError(
        f"{qualified_name(handler)} returned {type(result).__name__}; "
        "return a Response, str, bytes, dict, list, None or an async iterator"
    )


def _is_cookie_value(value: str) -> bool:
    """Whether a cookie's value needs no quotes (cookie-octet, RFC 6265 section 4.1.1)."""
    return _COOKIE_VALUE.fullmatch(value) is not None


def _quoted(value: str) -> str:
    return SimpleCookie().value_encode(value)[1]
