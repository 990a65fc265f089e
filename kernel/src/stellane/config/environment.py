"""STELLANE_<SECTION>_<KEY>: settings from the environment."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from stellane.config.keys import Key, bare_type

PREFIX = "STELLANE_"

RESERVED = frozenset({"STELLANE_TRACE_HOOKS", "STELLANE_CLI_EXTENSIONS"})
"""Variables with a meaning of their own, outside the configuration."""

RESERVED_PREFIXES = ("STELLANE_TEST_", "STELLANE_REQUIRE_")
"""What the repository's own tests are steered by."""

# Kubernetes tells every container of a namespace about its services. Beside a service named
# "stellane" or "stellane-server" we meet STELLANE_SERVICE_HOST, STELLANE_PORT=tcp://10.0.0.1:80
# and even STELLANE_SERVER_PORT=tcp://…, none of which anybody meant as a setting of ours.
_SERVICE_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?$")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://[^/]+:\d+")


def variable(path: str) -> str:
    """The environment variable that sets the key at `path`."""
    return PREFIX + path.replace(".", "_").upper()


def variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Every variable of `environ` that is meant as a setting, by name."""
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in RESERVED or name.startswith(RESERVED_PREFIXES):
            continue
        if name.endswith("_PORT") and _SERVICE_LINK_VALUE.fullmatch(text):
            continue
        if _SERVICE_LINK_NAME.search(name):
            continue
        yield name, text


def parse(key: Key, text: str) -> Any:
    """`text` as the plain value of `key`; what cannot be parsed stays text, for `Key.check` to refuse."""
    bare = bare_type(key.type)
    if typing.get_origin(bare) is tuple:
        return [part.strip() for part in text.split(",") if part.strip()]
    if bare is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.strip().lower(), text)
    if bare in (int, float):
        try:
            return bare(text)
        except ValueError:
            return text
    return text
