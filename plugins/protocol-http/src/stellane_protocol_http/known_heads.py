"""Request heads seen before: clients of a kept-alive connection repeat theirs byte for byte.

A chunk that is exactly one bodyless request is parsed and checked once; the next time the same
bytes arrive, on any connection of the worker, the result is used again. That is sound only
where the bytes would be parsed alone: the connection must be at the start of a head with
nothing left in its codec, or the bytes would belong to what came before them (RFC 9112
section 11.2, request smuggling).
"""

from __future__ import annotations

from typing import Any

HEAD_BYTES_MAX = 1024
"""A longer head is not remembered."""
HEADS_MAX = 1024
"""Heads remembered in a worker; at the bound all are forgotten."""

_END = b"\r\n\r\n"


KnownHead = tuple[str, bytes, Any, bool]
"""What is decided by a head's bytes: method, path, the checked head, whether it brings ids."""


class KnownHeads:
    """The heads one worker remembers, by their bytes."""

    def __init__(self) -> None:
        self.heads: dict[bytes, KnownHead] = {}

    def remember(self, chunk: bytes, known: KnownHead) -> None:
        """Remember a head that was parsed from `chunk` alone."""
        if len(self.heads) >= HEADS_MAX:
            self.heads.clear()
        self.heads[chunk] = known


def is_one_head(chunk: bytes) -> bool:
    """Whether `chunk` can be exactly one head: it ends with the only empty line in it."""
    return len(chunk) <= HEAD_BYTES_MAX and chunk.find(_END) == len(chunk) - len(_END) >= 0
