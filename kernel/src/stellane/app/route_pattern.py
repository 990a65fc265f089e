"""The patterns of routes: `/users/{id:int}/files/{path:path}`."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stellane.nearest import did_you_mean


@dataclass(frozen=True, slots=True, eq=False)
class Converter:
    """How a parameter's text becomes its value; `convert` raises ValueError when it does not fit.

    `rank`: lower is tried first. `rest`: it takes all segments that are left.
    """

    name: str
    rank: int
    convert: Callable[[str], Any]
    rest: bool = False


# int(), float() and UUID() take more than a URL should hold: spaces, underscores, "1e3", braces.
_INT = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+)?")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _int(text: str) -> int:
    if _INT.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not an int")
    return int(text)  # raises, too, for more digits than Python converts


def _float(text: str) -> float:
    if _FLOAT.fullmatch(text) is None or math.isinf(value := float(text)):
        raise ValueError(f"{text!r} is not a float, or out of range")
    return value


def _uuid(text: str) -> uuid.UUID:
    if _UUID.fullmatch(text) is None:
        raise ValueError(f"{text!r} is not a UUID")
    return uuid.UUID(text)


def _str(text: str) -> str:
    if not text:
        raise ValueError("a path segment is empty")
    return text


CONVERTERS = {
    converter.name: converter
    for converter in (
        Converter("int", 0, _int),
        Converter("float", 1, _float),
        Converter("uuid", 2, _uuid),
        Converter("str", 3, _str),
        Converter("path", 4, str, rest=True),
    )
}

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(?::([A-Za-z]+))?\}")

Segment = str | Converter


@dataclass(frozen=True, slots=True)
class RoutePattern:
    """A parsed pattern: one entry a path segment, and the names of the parameters among them."""

    text: str
    segments: tuple[Segment, ...]
    names: tuple[str, ...]


def parse_pattern(text: str) -> RoutePattern:
    """Read a pattern. Raises ValueError that says what is wrong with it."""
    if not isinstance(text, str):
        raise TypeError(f"a route's pattern is a str such as '/users/{{id:int}}', not {text!r}")
    if not text.startswith("/"):
        raise ValueError(f"route {text!r}: a pattern begins with '/'")
    if "?" in text or "#" in text:
        raise ValueError(f"route {text!r}: a pattern has no query; read req.query in the handler")
    segments: list[Segment] = []
    names: list[str] = []
    parts = text[1:].split("/")
    for index, part in enumerate(parts):
        if "{" not in part and "}" not in part:
            segments.append(part)
            continue
        name, converter = _parse_parameter(text, part)
        if name in names:
            raise ValueError(f"route {text!r}: the parameter {name!r} appears twice")
        if converter.rest and index != len(parts) - 1:
            raise ValueError(f"route {text!r}: {{{name}:path}} takes the rest of the path, so it must come last")
        segments.append(converter)
        names.append(name)
    return RoutePattern(text, tuple(segments), tuple(names))


def _parse_parameter(text: str, part: str) -> tuple[str, Converter]:
    match = _PARAMETER.fullmatch(part)
    if match is None:
        raise ValueError(
            f"route {text!r}: {part!r} is not a parameter; "
            "one fills a whole segment and reads '{name}' or '{name:int}'"
        )
    name, word = match[1], match[2] or "str"
    converter = CONVERTERS.get(word)
    if converter is None:
        known = ", ".join(CONVERTERS)
        raise ValueError(
            f"route {text!r}: {word!r} is not a parameter type; known are {known}.{did_you_mean(word, CONVERTERS)}"
        )
    return name, converter
