"""What is known of one key: its type, its range and how to say both to a person."""

from __future__ import annotations

import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Meta


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a table, as its msgspec.Struct field declares it."""

    path: str
    """Dotted, from the root of the file: "runtime.backend"."""
    type: Any
    required: bool
    allowed: str
    """What may stand there, to follow "must be"."""
    words: tuple[str, ...] = ()
    later: tuple[str, ...] = ()
    """Words whose feature does not exist yet."""
    not_built: bool = False
    off: Any = None

    def check(self, value: Any) -> Any:
        """Return `value` as this key's type. Raises ValueError with what is wrong with it."""
        try:
            converted = msgspec.convert(_plain(value), self.type)
        except (msgspec.ValidationError, OverflowError) as error:
            raise ValueError(f"must be {self.allowed}") from error
        if isinstance(converted, float) and not math.isfinite(converted):
            raise ValueError(f"must be {self.allowed}")
        if self.not_built and converted != self.off:
            raise ValueError(f"not built yet; the only value accepted is {show(self.off)}")
        if self.later and converted in self.later:
            raise ValueError(f"not built yet; must be {self.allowed}")
        if self.words and converted not in self.words:
            raise ValueError(f"must be {self.allowed}")
        return converted


def keys_of(table: type[msgspec.Struct], path: str) -> dict[str, Key]:
    """The keys of the table at `path` whose structure is `table`, by their name in the file."""
    hints = typing.get_type_hints(table, include_extras=True)
    return {
        field.encode_name: _key(hints[field.name], f"{path}.{field.encode_name}", required=field.required)
        for field in msgspec.structs.fields(table)
    }


def show(value: Any) -> str:
    """`value` as it would be written in TOML; what TOML cannot write, as Python shows it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} = {show(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if isinstance(value, str | bool | int | float):
        return json.dumps(value, ensure_ascii=False)
    # dates and times of TOML
    return str(value)


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _key(hint: Any, path: str, *, required: bool) -> Key:
    extra: dict[str, Any] = {}
    for meta in _metas(hint):
        extra.update(meta.extra or {})
    words = tuple(extra.get("choices", ()))
    allowed = f"one of: {', '.join(show(word) for word in words)}" if words else describe(hint)
    return Key(
        path=path,
        type=hint,
        required=required,
        allowed=allowed,
        words=words,
        later=tuple(extra.get("later", ())),
        not_built=bool(extra.get("not_built")),
        off=extra.get("off"),
    )


def _metas(hint: Any) -> list[Meta]:
    return [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, Meta)]


def bare_type(hint: Any) -> Any:
    """`hint` without its Annotated wrapping."""
    return hint.__origin__ if hasattr(hint, "__metadata__") else hint


def describe(hint: Any) -> str:
    """What values the type `hint` takes, for a person."""
    metas = _metas(hint)
    said = [meta.description for meta in metas if meta.description]
    if said:
        return said[0]
    bare = bare_type(hint)
    if bare in _PLAIN:
        return _PLAIN[bare] + _range(metas)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if origin is typing.Literal:
        return f"one of: {', '.join(show(word) for word in arguments)}"
    if origin in (tuple, list, set, frozenset) and arguments:
        element = describe(arguments[0])
        return "a list of strings" if element == "a string" else f"a list, each item of which is {element}"
    return f"a value of type {bare.__name__ if isinstance(bare, type) else bare}"


_PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _range(metas: list[Meta]) -> str:
    bounds: dict[str, Any] = {}
    for meta in metas:
        bounds |= {name: found for name in ("ge", "gt", "le", "lt") if (found := getattr(meta, name)) is not None}
    if "ge" in bounds and "le" in bounds:
        return f" from {bounds['ge']} to {bounds['le']}"
    words = {"ge": "of at least", "gt": "greater than", "le": "of at most", "lt": "less than"}
    said = [f"{words[name]} {bound}" for name, bound in bounds.items()]
    return f" {' and '.join(said)}" if said else ""
