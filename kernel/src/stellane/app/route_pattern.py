"""The patterns of routes: `/users/{id:int}/files/{path:path}`."""

from __future__ import annotations

import math
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stellane.nearest import did_you_mean


@dataclass(frozen=True, slots=True)
class Converter:
    """How a parameter's text is checked and converted. `rank`: lower is tried first."""

    name: str
    rank: int
    text: re.Pattern[str]
    convert: Callable[[str], Any]


WILDCARD = "path"


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


CONVERTERS = {
    converter.name: converter
    for converter in (
        Converter("int", 0, re.compile(r"-?[0-9]+", re.ASCII), int),
        Converter("float", 1, re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII), _finite),
        Converter("uuid", 2, re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII), uuid.UUID),
        Converter("str", 3, re.compile(r".+", re.DOTALL), str),
        Converter(WILDCARD, 4, re.compile(r".*", re.DOTALL), str),
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
        if converter.name == WILDCARD and index != len(parts) - 1:
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
