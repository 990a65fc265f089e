"""The phases of a connection; `connection` says what they mean."""

from __future__ import annotations

# Plain integers: an enum member costs more to look up than the comparison it is for.
HEAD, BUSY, SKIP, LINGER, RESUME, STALLED = range(6)

NEVER = float("inf")
"""The deadline of a connection that has none."""
