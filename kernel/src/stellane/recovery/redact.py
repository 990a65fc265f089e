"""Keeping secrets out of the journal: they are taken out before a record is encoded.

A secret header field is removed and a secret query parameter's value replaced; what stays is
a tag, HMAC-SHA256 under the journal's own key cut to 16 bytes, by which two requests of one
principal can be told to be the same without knowing the credential. Bodies are kept as they
are: the journal cannot replay a request without its body.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from stellane.recovery.secret_names import HINT, is_secret_name

BUILT_IN_FIELDS = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"cookie",
        b"set-cookie",
        b"x-api-key",
        b"x-auth-token",
        b"x-csrf-token",
    }
)
TAG_BYTES = 16
REPLACEMENT = b"redacted"

_USER_INFO = re.compile(rb"\A([a-z][a-z0-9+.-]*://)?[^/?#@]*@", re.IGNORECASE)
_PAIR = re.compile(rb"[^&;]+")
_CACHE_NAMES_MAX = 1024
"""Header names remembered as secret or not; strangers choose names, so there is a bound."""


class Redactor:
    """Takes the secrets out of header fields and targets.

    `secret` is the journal's HMAC key (32 bytes), `extra_headers` are field names to take out
    besides the built-in ones and those whose names say so (`secret_names`).
    """

    def __init__(self, secret: bytes, extra_headers: Iterable[str] = ()) -> None:
        self._secret = secret
        self._fields = BUILT_IN_FIELDS | {name.lower().encode("latin-1") for name in extra_headers}
        # A look at the whole query that finds nothing saves taking it apart; it may find too much.
        names = b"|".join(re.escape(name) for name in sorted(self._fields))
        self._suspicious = re.compile(rb"%|" + names + rb"|" + HINT, re.IGNORECASE)
        self._decisions: dict[bytes, bool] = {b"referer": True}

    def headers(self, headers: list[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], list[tuple[str, bytes]]]:
        """(fields to keep, (name, tag) of each one taken out). Names are expected in lower case."""
        decisions = self._decisions
        for name, _ in headers:
            secret = decisions.get(name)
            if secret is None:
                secret = self._decide(name)
            if secret:
                return self._split(headers)
        return headers, []

    def target(self, target: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
        """(the target without secrets, (name, tag) of what was taken out, names beginning with "?")."""
        taken: list[tuple[str, bytes]] = []
        if b"@" in target and target[:1] != b"/":
            target = self._without_user_info(target, taken)
        path, mark, query = target.partition(b"?")
        if not mark or self._suspicious.search(query) is None:
            return target, taken

        def replace(match: re.Match[bytes]) -> bytes:
            name, equals, value = match[0].partition(b"=")
            plain = unquote_to_bytes(name.replace(b"+", b" "))
            if not equals or not self._is_secret(plain):
                return match[0]
            taken.append(("?" + plain.decode("latin-1"), self.tag(plain, value)))
            return name + b"=" + REPLACEMENT

        return path + mark + _PAIR.sub(replace, query), taken

    def tag(self, name: bytes, value: bytes) -> bytes:
        """The keyed tag of a value, TAG_BYTES long."""
        return hmac.digest(self._secret, name + b"\0" + value, "sha256")[:TAG_BYTES]

    def _split(self, headers: list[tuple[bytes, bytes]]) -> tuple[list[tuple[bytes, bytes]], list[tuple[str, bytes]]]:
        decisions = self._decisions
        kept: list[tuple[bytes, bytes]] = []
        taken: list[tuple[str, bytes]] = []
        for name, value in headers:
            if name == b"referer" and name not in self._fields:
                # The page a request came from may carry a token in its own query.
                clean, found = self.target(value)
                kept.append((name, clean))
                taken.extend((f"referer {where}", tag) for where, tag in found)
            elif decisions[name] if name in decisions else self._decide(name):
                taken.append((name.lower().decode("latin-1"), self.tag(name.lower(), value)))
            else:
                kept.append((name, value))
        return kept, taken

    def _decide(self, name: bytes) -> bool:
        secret = self._is_secret(name)
        if len(self._decisions) < _CACHE_NAMES_MAX:
            self._decisions[name] = secret
        return secret

    def _is_secret(self, name: bytes) -> bool:
        return name.lower() in self._fields or is_secret_name(name)

    def _without_user_info(self, target: bytes, taken: list[tuple[str, bytes]]) -> bytes:
        match = _USER_INFO.match(target)
        if match is None:
            return target
        taken.append(("user info", self.tag(b"user info", match[0])))
        return (match[1] or b"") + target[match.end() :]
