"""Bytes that show where they came from: a piece that is lost, doubled or moved changes the whole."""

from __future__ import annotations

from hashlib import sha256

LARGE_BYTES = 8 << 20
"""More than any socket buffer or write limit, so that flow control has work."""


def payload(size_bytes: int, seed: int = 0) -> bytes:
    """`size_bytes` bytes, the same for the same seed."""
    block = b"".join(sha256(f"{seed}:{number}".encode()).digest() for number in range(512))
    repeated = bytearray((block * (size_bytes // len(block) + 1))[:size_bytes])
    for start in range(0, size_bytes - 8, 4096):  # no two pages are alike
        repeated[start : start + 8] = start.to_bytes(8, "big")
    return bytes(repeated)
