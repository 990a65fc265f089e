"""The known word nearest to one that is not known: every "did you mean" of Stellane."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The member of `known` most like `word`, upper and lower case being alike, or None."""
    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], quote: str = "'") -> str:
    """A sentence with a leading space, or "" when nothing known is near."""
    found = nearest(word, known)
    return f" Did you mean {quote}{found}{quote}?" if found else ""
