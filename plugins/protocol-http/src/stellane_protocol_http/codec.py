"""The narrow interface between a connection and its HTTP/1.1 parser.

A codec only reads: bytes in, events out. Responses are serialised by `response_head`, the
same way whichever codec parsed the request. zttp's own objects fit this interface as they
are, so the fast codec has no adapter in the way; the h11 codec imitates it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from stellane.config import LimitsConfig
from stellane.errors import ConfigError


class HeaderFields(Protocol):
    """Request header fields as received; lookups ignore case."""

    def __len__(self) -> int: ...
    def get(self, name: bytes, /) -> bytes | None: ...
    def getall(self, name: bytes, /) -> list[bytes]: ...
    def to_list(self, *, lowercase_names: bool = False) -> list[tuple[bytes, bytes]]: ...


class RequestHead(Protocol):
    """A complete request head. `end_stream`: the request has no body, no further event follows."""

    method: bytes
    target: bytes
    path: bytes
    query: bytes
    http_version: bytes
    headers: HeaderFields
    expect_continue: bool
    end_stream: bool


class CodecConnection(Protocol):
    """One connection's parser. Events after a request wait until `start_next_cycle`."""

    def receive_event(self, data: bytes, /) -> Any:
        """Feed bytes and return the first event, or the codec's `need_data`."""

    def receive_data(self, data: bytes, /) -> None:
        """Feed bytes without pulling an event."""

    def next_event(self) -> Any:
        """The next event, or the codec's `need_data`."""

    def start_next_cycle(self) -> None:
        """The request has been answered and its body has ended: parse the next one."""

    def should_close(self) -> bool:
        """Whether the connection ends after this request (RFC 9112 section 9.3)."""


@dataclass(frozen=True, slots=True)
class Codec:
    """A parser and the types of its events; `data_type` has `.data`."""

    name: str
    connect: Callable[[], CodecConnection]
    request_type: type
    data_type: type
    end_type: type
    need_data: object
    remote_error: type[Exception]
    too_large: Callable[[Exception], bool]
    """Whether a `remote_error` says that a size limit of the parser was passed."""
    line_bytes_max: int
    """Longest request line, and longest header field, it takes, bytes without the end of the line."""
    fields_max: int
    """Most header fields it takes."""

    def require(self, limits: LimitsConfig) -> None:
        """Raise ConfigError for a limit that this parser would never let a request reach."""
        for key, most in (("request_line_bytes_max", self.line_bytes_max), ("header_fields_max", self.fields_max)):
            value = getattr(limits, key)
            if value > most:
                raise ConfigError(
                    f"limits.{key} = {value}: the parser {self.name} takes at most {most}. "
                    f'Set it to {most} or less, or http.codec to "h11", which takes more.'
                )


def load_codec(name: str) -> Codec:
    """The codec called `name`; "auto" is the fast one."""
    if name == "h11":
        from stellane_protocol_http.h11_codec import H11  # noqa: PLC0415 - only the chosen parser is imported

        return H11
    from stellane_protocol_http.zttp_codec import ZTTP  # noqa: PLC0415 - only the chosen parser is imported

    return ZTTP
