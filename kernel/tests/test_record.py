"""The record envelope: what is written comes back, and nothing damaged does."""

from __future__ import annotations

import struct

import msgspec
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from stellane.recovery.payload import PRINCIPAL_FIELDS, JournaledRequest, decode_payload, encode_payload
from stellane.recovery.record import (
    HEADER_BYTES,
    RecordDamageError,
    RecordType,
    RecordVersionError,
    decode,
    encode,
    journal_id_of,
    record_bytes,
    seq_of,
    walk,
)
from stellane.testing.journal_records import JOURNAL_ID, make_record, make_request


def test_layout_is_the_documented_one() -> None:
    """Every field is at its offset, little-endian; the CRC covers byte 8 to the end of the padding."""
    raw, crc = encode(RecordType.RESP, 7, 5, 0x1122334455667788, 9, 0xAABBCCDD, b"payload")
    fields = struct.unpack_from("<4sIIBBHQQQII", raw)
    assert fields == (b"STJ1", crc, 7, RecordType.RESP, 0, 1, 7, 5, 0x1122334455667788, 9, 0xAABBCCDD)
    assert len(raw) == HEADER_BYTES + 8
    assert crc == crc32c(raw[8:])
    assert raw[HEADER_BYTES:] == b"payload\0"
    assert (seq_of(raw), journal_id_of(raw)) == (7, 0x1122334455667788)


@given(st.binary(max_size=300), st.sampled_from(RecordType), st.integers(1, 2**64 - 1))
def test_decode_gives_back_what_was_encoded(payload: bytes, type_: RecordType, seq: int) -> None:
    """Any payload, any type, any seq; the size is a multiple of 8 and as announced."""
    raw, crc = encode(type_, seq, seq - 1, 1, 2, 3, payload)
    record = decode(raw)
    assert (record.type, record.seq, record.durable_seq) == (type_, seq, seq - 1)
    assert (record.journal_id, record.epoch, record.prev_crc, record.crc) == (1, 2, 3, crc)
    assert record.payload == payload
    assert len(raw) == record_bytes(len(payload))
    assert len(raw) % 8 == 0


def test_every_single_bit_is_guarded() -> None:
    """No bit of a record can be flipped without decode noticing, padding included."""
    raw = make_record(3, b"some payload")
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordDamageError):
            decode(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 47, 48, 55, 63])
def test_a_cut_record_is_damage(length: int) -> None:
    """A record without its end is damage at any length."""
    raw = make_record(1, b"0123456789abcdef")
    assert len(raw) == 64
    with pytest.raises(RecordDamageError):
        decode(raw[:length])


@pytest.mark.parametrize(("offset", "value"), [(12, 99), (13, 1), (14, 2)])
def test_an_intact_record_of_a_later_format_is_refused(offset: int, value: int) -> None:
    """An unknown type, flag or version with a good CRC is not damage but a newer writer's."""
    raw = bytearray(make_record(1, b"payload"))
    raw[offset] = value
    raw[4:8] = crc32c(bytes(raw[8:])).to_bytes(4, "little")
    with pytest.raises(RecordVersionError):
        decode(bytes(raw))


def test_walk_finds_every_record_and_stops_at_unused_space() -> None:
    """Records one after another, then zeros: no damage."""
    records = [make_record(seq, b"x" * seq) for seq in range(1, 20)]
    found = list(walk(b"".join(records) + bytes(1000)))
    assert [(item.seq, item.raw) for item in found] == list(enumerate(records, start=1))


@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(1, 40))
def test_walk_resynchronises_after_damage(seed: int, victim: int, length: int) -> None:
    """Whatever is written over a part of one record, every other record is still found, and the
    damaged bytes come back: together they are all the bytes there were."""
    records = [make_record(seq, b"payload %d" % seq) for seq in range(1, 11)]
    data = bytearray(b"".join(records))
    start = sum(map(len, records[:victim]))
    for i in range(min(length, len(records[victim]))):
        data[start + i] ^= 1 + (seed >> i) % 255
    found = list(walk(bytes(data)))
    assert [item.seq for item in found if item.seq] == [seq for seq in range(1, 11) if seq != victim + 1]
    assert b"".join(item.raw for item in found) == bytes(data)


def test_walk_reports_zeros_between_records_as_damage() -> None:
    """A zeroed record in the middle is damage, not unused space."""
    records = [make_record(seq, b"payload") for seq in (1, 2, 3)]
    found = list(walk(records[0] + bytes(len(records[1])) + records[2]))
    assert [(item.seq, len(item.raw)) for item in found] == [(1, 56), (0, 56), (3, 56)]


def test_walk_does_not_take_a_forged_record_in_a_body() -> None:
    """A record that a client put into its body, with a good CRC, is not found when the record
    around it is damaged: it cannot know the journal's id."""
    forged, _ = encode(RecordType.DONE, 2, 1, 0, 1, 0, b"")
    around = bytearray(make_record(1, bytes(16) + forged))
    around[20] ^= 1
    data = bytes(around) + make_record(2)
    assert [item.seq for item in walk(data, journal_id=JOURNAL_ID)] == [0, 2]
    assert [item.seq for item in walk(data)] == [0, 2, 2], "without the id the forgery must be findable"


def test_walk_is_not_slowed_down_by_forged_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body full of forged headers that announce a long payload costs no checksum over each of them."""
    forged = struct.pack("<4sIIBBHQQQII", b"STJ1", 0, 100_000, 1, 0, 1, 1, 0, 7, 1, 0)
    data = b"\1" * 8 + forged * 4000
    checked = []

    def counting(part: bytes) -> int:
        checked.append(len(part))
        return crc32c(part)

    monkeypatch.setattr("stellane.recovery.record.crc32c", counting)
    assert [item.seq for item in walk(data, journal_id=JOURNAL_ID)] == [0]
    assert sum(checked) == 0
    assert [item.seq for item in walk(data)] == [0]
    assert sum(checked) > 100 * len(data), "without the id each forged header costs a checksum"


def test_payloads_skip_what_they_do_not_know() -> None:
    """A later version may add fields: unknown keys are skipped, missing ones take their default."""
    encoded = msgspec.msgpack.decode(encode_payload(make_request(4)))
    later = msgspec.msgpack.encode(encoded | {"zz": [1, 2, 3]})
    assert decode_payload(RecordType.BEGIN, later) == make_request(4)


def test_payloads_are_small() -> None:
    """A request's record is its content and little more: keys are one letter, defaults are left out."""
    request = make_request(1, body=b"x" * 512)
    content = len(request.target) + sum(len(name) + len(value) for name, value in request.headers) + 512
    assert len(encode_payload(request)) < content + 200


def test_principal_tag_prefers_the_most_telling_field() -> None:
    """authorization before cookie, whatever the order; nobody has no tag."""
    request = make_request(1)
    assert request.principal_tag == b""
    request = msgspec.structs.replace(request, redacted=[("cookie", b"c"), ("x-other", b"x"), ("authorization", b"a")])
    assert isinstance(request, JournaledRequest)
    assert request.principal_tag == b"a"
    assert request.redacted_names == ("cookie", "x-other", "authorization")
    assert PRINCIPAL_FIELDS[0] == "authorization"
