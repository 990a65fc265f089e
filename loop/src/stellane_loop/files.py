"""File operations by threads, for pollers that have none: the same promises as the native ones."""

import errno
import os


def read(fd: int, length: int, offset: int) -> bytes:
    """At most `length` bytes from `offset`; fewer only at the end of the file."""
    pieces = []
    while length and (piece := os.pread(fd, length, offset)):
        pieces.append(piece)
        length -= len(piece)
        offset += len(piece)
    return b"".join(pieces)


def write(fd: int, data: bytes, offset: int, sync: bool) -> int:
    """All of `data` at `offset`, on the disk when `sync`. OSError: nothing may be taken for written."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        if written == 0:
            raise OSError(errno.EIO, "the file took no more bytes")
        rest = rest[written:]
        offset += written
    if sync:
        os.fdatasync(fd)
    return len(data)


def sync(fd: int, data_only: bool) -> None:
    """fdatasync or fsync; OSError: what was written since the last one may be lost."""
    if data_only:
        os.fdatasync(fd)
    else:
        os.fsync(fd)
