"""What a handler is given of the request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from stellane.abc import Exchange
from stellane.abc.protocol import Address
from stellane.app.form import FormFields, parse_form
from stellane.app.headers import Headers
from stellane.app.http_error import HTTPError

NO_PARAMS: Mapping[str, Any] = MappingProxyType({})

_decode_json = msgspec.json.decode
_URLENCODED = "application/x-www-form-urlencoded"


class Request:
    """One request. `params` holds what the route's pattern matched, decoded and converted.

    Everything but the method and the params is decoded when it is first asked for.
    """

    # Class-level defaults instead of slots: half the time to make one, and one is made for every request.
    _body: bytes | None = None
    _parts: list[bytes] | None = None
    _streamed = False
    _headers: Headers | None = None
    _query: FormFields | None = None

    def __init__(self, exchange: Exchange, params: Mapping[str, Any] = NO_PARAMS) -> None:
        self._exchange = exchange
        self.params = params

    @property
    def method(self) -> str:
        """The method, upper case."""
        return self._exchange.method

    @property
    def path(self) -> str:
        """The path, percent-decoded. An encoded slash is a slash here; `params` keeps them apart."""
        raw = self._exchange.path
        if b"%" in raw:
            raw = unquote_to_bytes(raw)
        return raw.decode("utf-8", "replace")

    @property
    def raw_path(self) -> bytes:
        """The path as it came, without the query."""
        return self._exchange.path

    @property
    def query(self) -> FormFields:
        """The query string's fields. Raises HTTPError 400 when it cannot be decoded."""
        if self._query is None:
            self._query = parse_form(self._exchange.query, "query string")
        return self._query

    @property
    def headers(self) -> Headers:
        """The header fields, case-insensitive."""
        if self._headers is None:
            self._headers = Headers(self._exchange.headers)
        return self._headers

    @property
    def client(self) -> Address:
        """The peer: (host, port), (path, 0) for a unix socket, or None."""
        return self._exchange.client

    @property
    def scheme(self) -> str:
        """ "http" or "https"."""
        return self._exchange.scheme

    @property
    def http_version(self) -> str:
        """ "1.0", "1.1" or "2"."""
        return self._exchange.http_version

    @property
    def is_disconnected(self) -> bool:
        """Whether the client has gone, so that nobody waits for the answer."""
        return self._exchange.disconnected

    async def body(self) -> bytes:
        """The whole body; read once, then kept.

        Raises BodyTooLarge (413 when not caught), RemoteProtocolError, ClientDisconnected, and
        RuntimeError when `stream` has taken it.
        """
        if self._body is None:
            self._refuse_streamed()
            if self._parts is None:
                self._parts = []
            receive = self._exchange.receive
            # Kept on self: a read that was cancelled half way goes on where it stopped.
            while part := await receive():
                self._parts.append(part)
            self._body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._parts = None
        return self._body

    async def stream(self) -> AsyncIterator[bytes]:
        """The body in parts, as they arrive. Errors as `body`; afterwards the body is gone."""
        if self._body is None:
            self._refuse_streamed()
            self._streamed = True
            for part in self._parts or ():
                yield part
            while part := await self._exchange.receive():
                yield part
        elif self._body:
            yield self._body

    def _refuse_streamed(self) -> None:
        if self._streamed:
            raise RuntimeError(
                "the request body was already taken by req.stream(); read it once, or use req.body(), which keeps it"
            )

    async def json(self, type: Any = Any) -> Any:  # noqa: A002 - msgspec's word
        """The body decoded from JSON, checked against `type` (anything msgspec decodes into).

        Raises HTTPError 400 that says where it does not fit, and what `body` raises.
        """
        body = await self.body()
        try:
            return _decode_json(body, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPError(400, f"the request body is not the JSON expected: {error}") from error

    async def form(self) -> FormFields:
        """The fields of an urlencoded form.

        Raises HTTPError 415 for another content type (multipart/form-data is not supported), 400
        when it cannot be decoded, and what `body` raises.
        """
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            raise HTTPError(415, f"multipart/form-data is not supported here; send {_URLENCODED}")
        if content_type != _URLENCODED:
            raise HTTPError(415, f"a form has content-type {_URLENCODED}, not {content_type or 'none'}")
        return parse_form(await self.body(), "form")

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"
