"""Query strings and urlencoded forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import parse_qsl

from stellane.app.http_error import HTTPError

FORM_FIELDS_MAX = 1000
"""Fields of one query string or form; more are answered 400, for each costs far more than its bytes."""


class FormFields(Mapping[str, str]):
    """Names and values in order. `fields[name]` is the first value of a name."""

    __slots__ = ("_pairs", "_values")

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self._pairs = list(pairs)
        self._values: dict[str, list[str]] = {}
        for name, value in self._pairs:
            self._values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        return self._values[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<FormFields {', '.join(self)}>"

    def getall(self, name: str) -> list[str]:
        """Every value of `name`, in order; empty when there is none."""
        return list(self._values.get(name, ()))

    def items_all(self) -> list[tuple[str, str]]:
        """Every pair, in order, repeated names included."""
        return list(self._pairs)


def parse_form(raw: bytes, what: str) -> FormFields:
    """Decode `a=1&b=2` (application/x-www-form-urlencoded, UTF-8). `what` names it in the error.

    Raises HTTPError 400 when it is not UTF-8 or has more than FORM_FIELDS_MAX fields.
    """
    try:
        pairs = parse_qsl(raw.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=FORM_FIELDS_MAX)
    except UnicodeDecodeError:
        raise HTTPError(400, f"the {what} is not UTF-8") from None
    except ValueError:
        raise HTTPError(400, f"the {what} has more than {FORM_FIELDS_MAX} fields") from None
    return FormFields(pairs)
