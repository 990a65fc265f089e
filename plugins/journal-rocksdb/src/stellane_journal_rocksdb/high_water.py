"""How far the journal had got, in a file beside the database.

RocksDB takes a damaged length at the end of its log for a write cut short by a crash and
drops what follows without a word. This file knows better: it holds the last sequence number
whose append had returned. It is written after the database, so it is never ahead of what was
kept when a process dies.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from crc32c import crc32c

_FORMAT = struct.Struct("<QI")


def read_high_water(path: Path) -> int | None:
    """The number in the file; 0 when there is no file, None when it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0
    if len(content) != _FORMAT.size:
        return None
    seq, check = _FORMAT.unpack(content)
    return int(seq) if crc32c(content[:8]) == check else None


class HighWater:
    """The file, open for writing."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, seq: int) -> None:
        """Store `seq`: a copy into the page cache."""
        number = seq.to_bytes(8, "little")
        os.pwrite(self._descriptor, number + crc32c(number).to_bytes(4, "little"), 0)

    def sync(self) -> None:
        """Make it survive a power cut."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
