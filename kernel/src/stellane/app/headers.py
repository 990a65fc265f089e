"""Header fields as people read them: case-insensitive, text instead of bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

Field = tuple[bytes, bytes]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_BREAKS_LINE = re.compile(r"[\r\n\0]")


@lru_cache(maxsize=1024)
def encode_name(name: str) -> bytes:
    """A field name in lower case bytes. Raises ValueError when it is not one (RFC 9110 section 5.1)."""
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a header field name (RFC 9110 section 5.1)")
    return name.lower().encode("ascii")


def encode_field(name: str, value: str) -> Field:
    """A field as bytes. Raises ValueError, because CR or LF in a value would add a line of its
    writer's choice to the response (RFC 9110 section 5.5)."""
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"header field {name!r}: {value!r}: name and value are str")
    if _BREAKS_LINE.search(value):
        raise ValueError(f"the value of header field {name!r} has CR, LF or NUL in it: {value!r}")
    try:
        return encode_name(name), value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"the value of header field {name!r} is not Latin-1 text: {value!r}") from None


class Headers(Mapping[str, str]):
    """A case-insensitive view of header fields. `headers[name]` is the first value of a name."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[Field]) -> None:
        self._fields = tuple(fields)

    def __getitem__(self, name: str) -> str:
        wanted = name.lower().encode("latin-1", "replace")
        for field, value in self._fields:
            if field == wanted:
                return value.decode("latin-1")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(field.decode("latin-1") for field, _ in self._fields))

    def __len__(self) -> int:
        return len({field for field, _ in self._fields})

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(self)}>"  # values may be secrets

    def getall(self, name: str) -> list[str]:
        """Every value of `name`, in order; empty when there is none."""
        wanted = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for field, value in self._fields if field == wanted]

    def items_all(self) -> list[tuple[str, str]]:
        """Every field, in order, repeated names included."""
        return [(field.decode("latin-1"), value.decode("latin-1")) for field, value in self._fields]
