"""The record envelope: 48 bytes of header, a payload, zero padding to 8 bytes; little-endian.

 0 u32 magic 'STJ1'       16 u64 seq           gapless in one journal, from 1
 4 u32 crc32c of [8, end) 24 u64 durable_seq   highest seq acknowledged when this was encoded
 8 u32 payload_len        32 u64 journal_id    random; refuses records of another journal
12 u8  type  13 u8 flags  40 u32 epoch         writer generation, for fencing
14 u16 version            44 u32 prev_crc      the CRC of record seq - 1; 0 for the first

The CRC (CRC-32C, RFC 3720 appendix B.4) covers the padding too. Every engine stores these
bytes unchanged, so one decoder and one checker serve all of them, and an engine may rely on
the envelope to find its way in a damaged file (`walk`).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from crc32c import crc32c

MAGIC = b"STJ1"
HEADER_BYTES = 48
ALIGNMENT_BYTES = 8
RECORD_VERSION = 1
OVERHEAD_BYTES_MAX = 262_144
"""What a record may hold besides a request body: header, head fields, padding."""

_HEADER = struct.Struct("<4sIIBBHQQQII")
_COVERED = struct.Struct("<IIQQQII")
_LEAD = struct.Struct("<II")
_MAGIC_WORD = int.from_bytes(MAGIC, "little")
_VERSION_WORD = RECORD_VERSION << 16
"""flags and version beside the type, packed as one number because that is faster."""
_PADDING = tuple(bytes(-length % ALIGNMENT_BYTES) for length in range(ALIGNMENT_BYTES))

_pack_covered = _COVERED.pack
_pack_lead = _LEAD.pack
_unpack_header = _HEADER.unpack_from


class RecordType(enum.IntEnum):
    """What a record says. The numbers are on disk: never change one.

    A version that does not know a number refuses the journal, so what would be misread without it is a new type.
    """

    BEGIN = 1
    ATTEMPT = 2
    ATTEMPT_FAILED = 3
    RESP = 4
    DONE = 5
    FAIL = 6
    DEAD = 7
    ORPHAN = 8
    MARK = 9
    SNAP = 10
    SNAP_END = 11
    CLEAN = 12
    ATTEMPT_CUT_OFF = 13


_TYPES = {int(type_): type_ for type_ in RecordType}


class RecordDamageError(ValueError):
    """These bytes are not a whole, unchanged record."""


class RecordVersionError(ValueError):
    """An unchanged record of a newer format."""


@dataclass(frozen=True, slots=True)
class Record:
    """One decoded record."""

    type: RecordType
    seq: int
    durable_seq: int
    journal_id: int
    epoch: int
    prev_crc: int
    crc: int
    payload: bytes


def record_bytes(payload_len: int) -> int:
    """The size of a record with such a payload, in bytes."""
    return HEADER_BYTES + payload_len + (-payload_len % ALIGNMENT_BYTES)


def encode(  # noqa: PLR0917 - positional: keywords cost 0.1 µs a record here
    type_: int, seq: int, durable_seq: int, journal_id: int, epoch: int, prev_crc: int, payload: bytes
) -> tuple[bytes, int]:
    """One record as bytes, and its CRC for the next record's `prev_crc`."""
    length = len(payload)
    covered = _pack_covered(length, _VERSION_WORD | type_, seq, durable_seq, journal_id, epoch, prev_crc) + payload
    if length & 7:
        covered += _PADDING[length & 7]
    crc = crc32c(covered)
    return _pack_lead(_MAGIC_WORD, crc) + covered, crc


def decode(raw: bytes) -> Record:
    """Check and take apart one record.

    Raises RecordDamageError when it is not a whole record with a matching CRC, RecordVersionError
    when the CRC holds but the version, flags or type are of a later format.
    """
    if len(raw) < HEADER_BYTES:
        raise RecordDamageError(f"{len(raw)} bytes are too few for a record header")
    fields = _unpack_header(raw)
    magic, crc, length, type_, flags, version, seq, durable_seq, journal_id, epoch, prev_crc = fields
    if magic != MAGIC:
        raise RecordDamageError("no record begins here")
    if len(raw) != record_bytes(length):
        raise RecordDamageError(f"the header says {record_bytes(length)} bytes, there are {len(raw)}")
    if crc32c(memoryview(raw)[8:]) != crc:
        raise RecordDamageError("the checksum does not match")
    known = _TYPES.get(type_)
    if version != RECORD_VERSION or flags != 0 or known is None:
        raise RecordVersionError(f"record {seq} has version {version}, flags {flags}, type {type_}")
    payload = raw[HEADER_BYTES : HEADER_BYTES + length]
    return Record(known, seq, durable_seq, journal_id, epoch, prev_crc, crc, payload)


def seq_of(raw: bytes) -> int:
    """The sequence number in a record's header, unchecked."""
    return int.from_bytes(raw[16:24], "little")


def journal_id_of(raw: bytes) -> int:
    """The journal id in a record's header, unchecked."""
    return int.from_bytes(raw[32:40], "little")


@dataclass(frozen=True, slots=True)
class Found:
    """A stretch of a file: a whole record with its `seq`, or damaged bytes when `seq` is 0."""

    offset: int
    seq: int
    raw: bytes


def _size_at(data: bytes, offset: int, journal_id: int | None) -> int:
    """The size of the valid record at `offset`, or 0 when there is none."""
    if data[offset : offset + 4] != MAGIC or offset + HEADER_BYTES > len(data):
        return 0
    fields = _unpack_header(data, offset)
    # The id is compared before the CRC: a request body full of forged headers must not make
    # the search compute a checksum over megabytes for each of them.
    if journal_id is not None and fields[8] != journal_id:
        return 0
    size = record_bytes(fields[2])
    if offset + size > len(data) or crc32c(memoryview(data)[offset + 8 : offset + size]) != fields[1]:
        return 0
    return size


def _next_valid(data: bytes, offset: int, journal_id: int | None) -> int:
    """The first 8-byte aligned offset from `offset` on that holds a valid record, or the end."""
    while True:
        offset = data.find(MAGIC, offset)
        if offset < 0:
            return len(data)
        if offset % ALIGNMENT_BYTES == 0 and _size_at(data, offset, journal_id):
            return offset
        offset += 1


def walk(data: bytes, start: int = 0, *, journal_id: int | None = None) -> Iterator[Found]:
    """Every record in `data` from `start` (a multiple of 8) on, and the damaged bytes between.

    Zeros up to the end of `data` are unused space, not damage. With `journal_id`, records of
    other journals count as damage. Nothing is skipped: whatever is neither a record nor
    trailing zeros comes back in a Found with `seq` 0.
    """
    used = len(data.rstrip(b"\0"))
    offset = start
    while offset < used:
        size = _size_at(data, offset, journal_id)
        if size:
            raw = data[offset : offset + size]
            yield Found(offset, seq_of(raw), raw)
            offset += size
        else:
            end = _next_valid(data, offset + ALIGNMENT_BYTES, journal_id)
            # Trailing zeros belong to the damage only up to the next 8-byte step.
            stop = end if end < len(data) else min(len(data), used + (-used % ALIGNMENT_BYTES))
            yield Found(offset, 0, data[offset:stop])
            offset = stop
