"""The checker: torn in the last write, or corrupt; nothing is dropped without being named."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellane.abc import Gap
from stellane.recovery.checker import Checker, ScanReport
from stellane.recovery.payload import Mark, Responding, SnapshotEnd, encode_payload
from stellane.recovery.record import RecordType, RecordVersionError, encode

JOURNAL_ID = 77
Item = tuple[int, bytes] | Gap


def write(
    *batches: int,
    epoch: int = 1,
    payloads: dict[int, tuple[RecordType, bytes]] | None = None,
    journal_id: int = JOURNAL_ID,
) -> dict[int, bytes]:
    """Records in batches of the given sizes, as a journal writes them."""
    records: dict[int, bytes] = {}
    seq, crc = 1, 0
    for size in batches:
        first = seq
        for _ in range(size):
            type_, payload = (payloads or {}).get(seq, (RecordType.RESP, encode_payload(Responding(seq))))
            records[seq], crc = encode(type_, seq, first - 1, journal_id, epoch, crc, payload)
            seq += 1
    return records


def check(items: Iterable[Item]) -> tuple[ScanReport, list[int]]:
    """The report, and the seqs that were accepted."""
    accepted: list[int] = []
    checker = Checker(JOURNAL_ID, lambda record, _: accepted.append(record.seq))
    for item in items:
        checker.feed(item)
    report = checker.finish()
    assert report.records == len(accepted)
    return report, accepted


def without(records: dict[int, bytes], *lost: int) -> list[Item]:
    """The records with those in `lost` replaced by a gap."""
    return [
        Gap(f"byte {seq}", "damaged", b"raw %d" % seq) if seq in lost else (seq, raw) for seq, raw in records.items()
    ]


def test_a_healthy_journal() -> None:
    """All records accepted, nothing reported; H is what the last batch acknowledges."""
    report, accepted = check(write(1, 2, 3, 1).items())
    assert accepted == [1, 2, 3, 4, 5, 6, 7]
    assert (report.torn, report.corruption) == (None, [])
    assert (report.first_seq, report.last_seq, report.acknowledged_seq, report.clean) == (1, 7, 6, False)


def test_an_empty_journal() -> None:
    """Nothing is a healthy journal too."""
    report, accepted = check([])
    assert (accepted, report.torn, report.corruption, report.last_seq) == ([], None, [], 0)


def test_damage_to_the_last_write_is_a_torn_tail() -> None:
    """The last batch is cut: its first loss and everything behind it is dropped and named, raw bytes kept."""
    report, accepted = check(without(write(2, 3), 4))
    assert accepted == [1, 2, 3]
    assert report.corruption == []
    assert report.torn is not None
    assert (report.torn.first_seq, report.torn.dropped) == (4, [5])
    assert report.torn.raw[0] == b"raw 4"
    assert len(report.torn.raw) == 2
    assert [report.is_lost(seq) for seq in range(1, 7)] == [False, False, False, True, True, True]


def test_damage_to_an_earlier_write_is_corruption() -> None:
    """What a later record acknowledges cannot be torn; the later records are kept."""
    report, accepted = check(without(write(2, 3, 1), 4))
    assert accepted == [1, 2, 3, 5, 6]
    assert report.torn is None
    assert report.lost == [(4, 4)]
    assert report.corruption[0].raw == [b"raw 4"]
    assert "record 4 is lost" in str(report.corruption[0])


def test_corruption_and_a_torn_tail_together() -> None:
    """Each is told for what it is."""
    report, accepted = check(without(write(2, 2, 2), 2, 6))
    assert accepted == [1, 3, 4, 5]
    assert report.lost == [(2, 2)]
    assert report.torn is not None
    assert report.torn.first_seq == 6


def test_records_that_are_missing_without_a_trace_are_lost() -> None:
    """A jump in seq is a loss even if the engine reports no gap."""
    records = write(1, 1, 1, 1, 1)
    report, _ = check((seq, raw) for seq, raw in records.items() if seq not in (2, 3))
    assert report.lost == [(2, 3)]


def test_a_record_under_another_number_is_damage() -> None:
    """An engine that gives a record under a wrong seq does not get it accepted."""
    records = write(1, 1, 1)
    report, accepted = check([(1, records[1]), (2, records[3]), (3, records[3])])
    assert accepted == [1, 3]
    assert report.lost == [(2, 2)]


def test_records_of_another_journal_are_damage() -> None:
    """A segment moved over from another journal is not believed."""
    ours, theirs = write(1, 1, 1), write(1, 1, 1, journal_id=78)
    report, accepted = check([(1, ours[1]), (2, theirs[2]), (3, ours[3])])
    assert accepted == [1, 3]
    assert report.foreign == 1
    assert "another" in report.corruption[0].reason or "belongs" in report.corruption[0].reason


def test_a_replaced_record_breaks_the_chain() -> None:
    """A record from an older copy of the same journal has a good CRC but the wrong successor."""
    now = write(1, 1, 1)
    old = write(1, 1, 1, payloads={2: (RecordType.RESP, encode_payload(Responding(99)))})
    report, accepted = check([(1, now[1]), (2, old[2]), (3, now[3])])
    assert accepted == [1, 2, 3]
    assert [damage.where for damage in report.corruption] == ["record 3"]


def test_a_replaced_writer_is_not_believed() -> None:
    """A record of an older epoch behind a newer one comes from a writer that should be dead."""
    newer, older = write(1, epoch=3), write(1, 1, 1, epoch=2)
    _, accepted = check([(1, newer[1]), (2, older[2])])
    assert accepted == [1]


def test_an_order_that_goes_back_is_damage() -> None:
    """A record seen twice is accepted once."""
    records = write(1, 1, 1)
    report, accepted = check([(1, records[1]), (2, records[2]), (2, records[2]), (3, records[3])])
    assert accepted == [1, 2, 3]
    assert len(report.corruption) == 1
    assert report.lost == []


def test_a_payload_that_cannot_be_read_is_damage() -> None:
    """A good CRC over nonsense is still a lost record."""
    records = write(1, 1, 1, payloads={2: (RecordType.RESP, b"\xc1nonsense")})
    report, accepted = check(records.items())
    assert accepted == [1, 3]
    assert report.lost == [(2, 2)]


def test_a_journal_may_begin_behind_a_snapshot() -> None:
    """Records that SNAP_END stands for may be gone; any other beginning is corruption."""
    end = (RecordType.SNAP_END, encode_payload(SnapshotEnd(first_seq=4, count=1)))
    records = write(1, 1, 1, 2, 1, payloads={5: end})
    report, _ = check((seq, raw) for seq, raw in records.items() if seq >= 4)
    assert report.corruption == []
    report, _ = check((seq, raw) for seq, raw in records.items() if seq >= 6)
    assert report.lost == [(1, 5)]


def test_a_mark_also_tells_what_was_released() -> None:
    """When SNAP_END is damaged the MARK after it still says where the journal may begin."""
    payloads = {
        5: (RecordType.SNAP_END, encode_payload(SnapshotEnd(first_seq=4, count=1))),
        6: (RecordType.MARK, encode_payload(Mark(released=3))),
    }
    records = write(1, 1, 1, 2, 1, payloads=payloads)
    report, _ = check(item for item in without(records, 5) if isinstance(item, Gap) or item[0] >= 4)
    assert report.lost == [(5, 5)]


def test_damage_before_the_first_record_is_named_if_the_engine_knows() -> None:
    """Gap.first_seq says which records were at the beginning."""
    records = write(1, 1, 1)
    report, _ = check([Gap("start", "damaged", b"raw", first_seq=1), (2, records[2]), (3, records[3])])
    assert report.lost == [(1, 1)]


def test_an_end_that_the_engine_had_acknowledged_is_corruption() -> None:
    """Gap.acknowledged_seq turns what would look torn into a loss."""
    records = write(1, 1)
    report, accepted = check([*records.items(), Gap("end", "dropped", acknowledged_seq=5)])
    assert accepted == [1, 2]
    assert report.torn is None
    assert report.lost == [(3, 5)]


def test_damage_that_cost_no_record_is_still_reported() -> None:
    """Stray bytes between two records in sequence are corruption, and the last record stands."""
    records = write(1, 1)
    report, accepted = check([(1, records[1]), Gap("between", "stray", b"raw"), (2, records[2])])
    assert accepted == [1, 2]
    assert report.torn is None
    assert report.corruption[0].records_lost == 0


def test_a_newer_format_is_not_damage() -> None:
    """It is passed on for the journal to refuse, and never repaired away."""
    raw, _ = encode(99, 1, 0, JOURNAL_ID, 1, 0, b"")
    with pytest.raises(RecordVersionError):
        check([(1, raw)])


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=12),
    st.sets(st.integers(1, 48), max_size=10),
    st.booleans(),
)
def test_every_record_is_accepted_or_named(batches: list[int], lost: set[int], visible: bool) -> None:
    """For any batches and any losses, seen as gaps or not at all: each record that is not accepted
    is named, no accepted one is, and what a surviving record acknowledges is never called torn."""
    records = write(*batches)
    lost &= records.keys()
    items = without(records, *lost) if visible else [(seq, raw) for seq, raw in records.items() if seq not in lost]
    report, accepted = check(items)
    end = max(records)
    if not visible:
        # An invisible loss at the very end leaves nothing to notice it by.
        end = max((seq for seq in records if seq not in lost), default=0)
    for seq in range(1, end + 1):
        assert report.is_lost(seq) != (seq in accepted)
    if report.torn is not None:
        assert report.torn.first_seq > report.acknowledged_seq
    for first, _ in report.lost:
        assert first <= report.acknowledged_seq or first == 1
