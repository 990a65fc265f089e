"""One segment file: 1024 bytes of header (the same 512 bytes twice), then records, then zeros.

 0  8s  magic 'STLNSEG1'     32 u64 size, bytes of the whole file
 8  u16 version, u16 zero    40 u64 journal id of the records in it
12  u32 checksum algorithm   48 u64 created, wall-clock nanoseconds
16  u64 n, its number        508 u32 crc32c of [0, 508)
24  u64 base_seq, its first record

The header is a witness, not an index: it shows that a file was cut, moved or damaged. The
records can be read without it.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crc32c import crc32c

from stellane.abc.journal import Gap
from stellane.recovery.record import Found, walk

MAGIC = b"STLNSEG1"
HEADER_COPY_BYTES = 512
RECORDS_OFFSET = 2 * HEADER_COPY_BYTES
VERSION = 1
CRC32C = 1
ZERO_WRITE_BYTES = 4096

_FIELDS = struct.Struct("<8sHHIQQQQQ")
_CRC = struct.Struct("<I")
_NAME = re.compile(r"\Aseg-([0-9]{8,})\.wal\Z")


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment says of itself."""

    n: int
    base_seq: int
    size: int
    journal_id: int


@dataclass(slots=True)
class Segment:
    """A segment in the directory; `base_seq` is 0 until it is known."""

    n: int
    path: Path
    base_seq: int = 0


@dataclass(frozen=True, slots=True)
class Content:
    """A segment read whole. `damage` is what was wrong with the file itself, `error` why it could not be read."""

    data: bytes
    header: Header | None
    damage: tuple[Gap, ...]
    error: OSError | None = None

    def walk(self) -> Iterator[Found]:
        """Its records and the damage between them."""
        journal_id = self.header.journal_id if self.header is not None else None
        return walk(self.data, RECORDS_OFFSET, journal_id=journal_id)

    def damaged_before_a_record(self) -> list[Found]:
        """The damage that is followed by a record: not what a write in progress leaves."""
        found = list(self.walk())
        while found and not found[-1].seq:
            found.pop()
        return [item for item in found if not item.seq]


def segment_name(n: int) -> str:
    """The file name of segment `n`."""
    return f"seg-{n:08d}.wal"


def list_segments(directory: Path) -> list[Segment]:
    """The segments in `directory`, by number."""
    found = ((int(match[1]), path) for path in directory.iterdir() if (match := _NAME.match(path.name)))
    return [Segment(n, path) for n, path in sorted(found)]


def make_zeroed(path: Path, size: int) -> int:
    """A new file of `size` zero bytes, synced; its descriptor. Raises OSError, leaving no file.

    Zeros are written, not only reserved: the first write to a reserved block costs a metadata
    commit at every later sync. And in 4 KiB writes: one large write makes one large page-cache
    folio, and each later small sync would send all of it to the device.
    """
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        zeros = bytes(ZERO_WRITE_BYTES)
        left = size
        while left > 0:
            left -= os.write(descriptor, zeros[:left])
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return descriptor


def encode_header(header: Header) -> bytes:
    """Both copies."""
    fields = _FIELDS.pack(
        MAGIC, VERSION, 0, CRC32C, header.n, header.base_seq, header.size, header.journal_id, time.time_ns()
    )
    body = fields.ljust(HEADER_COPY_BYTES - _CRC.size, b"\0")
    return (body + _CRC.pack(crc32c(body))) * 2


def decode_header(copy: bytes) -> Header | None:
    """One copy; None when it is damaged."""
    if len(copy) != HEADER_COPY_BYTES or copy[:8] != MAGIC:
        return None
    body, crc = copy[: -_CRC.size], copy[-_CRC.size :]
    if crc != _CRC.pack(crc32c(body)):
        return None
    _, version, _, algorithm, n, base_seq, size, journal_id, _ = _FIELDS.unpack_from(body)
    if version != VERSION or algorithm != CRC32C:
        return None
    return Header(n, base_seq, size, journal_id)


def read_segment(segment: Segment, descriptor: int | None = None) -> Content:
    """Read a segment. What cannot be read is in `damage`; nothing is raised."""
    name = segment.path.name
    try:
        data = _read_whole(segment.path) if descriptor is None else _read_descriptor(descriptor)
    except OSError as error:
        return Content(b"", None, (Gap(name, f"cannot be read: {error.strerror}", unread=True),), error)
    copies = [data[i * HEADER_COPY_BYTES : (i + 1) * HEADER_COPY_BYTES] for i in range(2)]
    headers = [decode_header(copy) for copy in copies]
    damage = [
        Gap(f"{name} header, copy {i + 1}", "the header is damaged", copy)
        for i, (copy, header) in enumerate(zip(copies, headers, strict=True))
        if header is None
    ]
    header = headers[0] or headers[1]
    if header is not None and header.n != segment.n:
        damage.append(Gap(name, f"the file is segment {header.n} under another name"))
    if header is not None and header.size > len(data):
        damage.append(Gap(name, f"the file was cut: {header.size - len(data)} bytes at its end are missing"))
    return Content(data, header, tuple(damage))


def _read_whole(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return _read_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _read_descriptor(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    parts: list[bytes] = []
    offset = 0
    while offset < size and (part := os.pread(descriptor, size - offset, offset)):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)
