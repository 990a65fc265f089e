"""What is particular to the RocksDB engine: keys, the high-water mark, its own damage handling."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rocksdict import AccessType, Rdict, WriteBatch
from rocksdict import Options as DatabaseOptions

from stellane.abc import Gap, Probe
from stellane.errors import ConfigError, JournalCorrupt, JournalError, JournalFull
from stellane.testing.journal_records import make_record, make_records
from stellane_journal_rocksdb import Options, RocksDbJournal, database, stellane_create_journal, stellane_probe
from stellane_journal_rocksdb import engine as engine_module


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty engine directory."""
    (tmp_path / "engine").mkdir(mode=0o700)
    return tmp_path / "engine"


@pytest.fixture
def opened(path: Path) -> Iterator[Any]:
    """Open the journal; engines are closed at the end."""
    engines: list[RocksDbJournal] = []

    def open_engine(free_bytes_min: int = 0, **options: Any) -> RocksDbJournal:
        engine = RocksDbJournal(write_buffer_bytes=1_048_576, free_bytes_min=free_bytes_min)
        engines.append(engine)
        engine.open(path, **options)
        return engine

    yield open_engine
    for engine in engines:
        engine.close()


def fill(engine: RocksDbJournal, first: int, count: int) -> None:
    """Append records of 800 bytes one by one."""
    for seq, record in enumerate(make_records(first, count, 800), start=first):
        engine.append([record], seq)


def crash(opened: Any, path: Path, copy: Path) -> None:
    """Fill a journal and put its files, as a crash leaves them, in its place."""
    engine = opened()
    fill(engine, 1, 200)
    # While it is open: closing would move everything from the log into tables.
    shutil.copytree(path, copy)
    engine.close()
    shutil.rmtree(path)
    shutil.copytree(copy, path)


def log_file(path: Path) -> Path:
    """The largest write-ahead log."""
    return max((path / "db").glob("*.log"), key=lambda log: log.stat().st_size)


def flip(file: Path, offset: int) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 1
    file.write_bytes(content)


def seqs(engine: RocksDbJournal) -> list[int]:
    """The sequence numbers that scan gives."""
    return [item[0] for item in engine.scan() if isinstance(item, tuple)]


def gaps(engine: RocksDbJournal) -> list[Gap]:
    """The gaps that scan gives."""
    return [item for item in engine.scan() if isinstance(item, Gap)]


def test_records_are_values_under_big_endian_keys(opened: Any, path: Path) -> None:
    """The same record bytes as in any other engine, readable with any RocksDB tool."""
    records = make_records(1, 300)
    opened().append(records, 1)
    database = Rdict(str(path / "db"), DatabaseOptions(raw_mode=True), access_type=AccessType.read_only(False))
    assert list(database.items()) == [(seq.to_bytes(8, "big"), raw) for seq, raw in enumerate(records, start=1)]
    database.close()


def test_damage_in_the_middle_of_the_log_costs_what_it_hit(opened: Any, path: Path, tmp_path: Path) -> None:
    """The journal opens with the rest, the missing keys are named, and the log files are kept aside."""
    crash(opened, path, tmp_path / "copy")
    flip(log_file(path), 40_000)
    damaged = log_file(path).read_bytes()
    engine = opened()
    found = seqs(engine)
    assert 100 < len(found) < 200
    missing = [seq for seq in range(1, 201) if seq not in found]
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert f"keys {missing[0]} to {missing[-1]}" in [gap.where for gap in gaps(engine)]
    (kept,) = path.glob("damaged-*/*.log")
    assert kept.read_bytes() == damaged
    assert kept.parent.name in gaps(engine)[0].reason


def test_a_reader_looks_at_damage_without_touching_it(opened: Any, path: Path, tmp_path: Path) -> None:
    """Nothing is copied, moved or written."""
    crash(opened, path, tmp_path / "copy")
    flip(log_file(path), 40_000)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    engine = opened(create=False, read_only=True)
    assert 100 < len(seqs(engine)) < 200
    assert "Corruption" in gaps(engine)[0].reason
    engine.close()
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_reader_gives_a_slow_writer_time_before_it_tells_of_a_gap(opened: Any, path: Path) -> None:
    writer = opened()
    fill(writer, 1, 10)
    taken = make_records(4, 3, 800)
    writer._delete(engine_module.key_of(4), engine_module.key_of(7))
    batch = WriteBatch(raw_mode=True)
    for seq, record in enumerate(taken, start=4):
        batch.put(engine_module.key_of(seq), record)
    whole_again = threading.Timer(0.3, writer._database.write, [batch])
    whole_again.start()
    try:
        reader = opened(create=False, read_only=True)
    finally:
        whole_again.join()
    assert [item for item in reader.scan() if isinstance(item, Gap)] == []
    assert [seq for seq, _ in reader.scan()] == list(range(1, 11))


def test_an_end_that_rocksdb_drops_in_silence_is_named(opened: Any, path: Path, tmp_path: Path) -> None:
    """A cut log is no error to RocksDB; the high-water mark knows what was there."""
    crash(opened, path, tmp_path / "copy")
    log = log_file(path)
    log.write_bytes(log.read_bytes()[:-5000])
    engine = opened()
    last = seqs(engine)[-1]
    assert last < 200
    assert [(gap.first_seq, gap.acknowledged_seq) for gap in gaps(engine)] == [(last + 1, 200)]
    engine.truncate(last)
    engine.close()
    assert gaps(opened()) == []


class Dying:
    """Stands before the database and the high-water mark of an engine, and dies before write number `at`."""

    def __init__(self, engine: RocksDbJournal, at: int) -> None:
        self.left = at
        engine._database = self.before(engine._database, "delete_range")
        engine._high_water = self.before(engine._high_water, "write")

    def before(self, real: Any, wanted: str) -> Any:
        """The same object, with `wanted` counted."""
        dying = self

        class Proxy:
            def __getattr__(self, name: str) -> Any:
                if name == wanted:
                    if not dying.left:
                        raise KeyboardInterrupt
                    dying.left -= 1
                return getattr(real, name)

        return Proxy()


@pytest.mark.parametrize("at", [0, 1])
def test_a_death_within_truncate_raises_no_alarm(opened: Any, path: Path, tmp_path: Path, at: int) -> None:
    """The records to be forgotten are there or not; no journal says that acknowledged ones were lost."""
    engine = opened()
    fill(engine, 1, 10)
    Dying(engine, at)
    with pytest.raises(KeyboardInterrupt):
        engine.truncate(6)
    shutil.copytree(path, tmp_path / "copy")
    engine.close()
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "copy", path)
    engine = opened()
    assert gaps(engine) == []
    assert seqs(engine)[:6] == [1, 2, 3, 4, 5, 6]
    engine.truncate(6)
    fill(engine, 7, 1)
    engine.close()
    engine = opened()
    assert (seqs(engine), gaps(engine)) == ([1, 2, 3, 4, 5, 6, 7], [])


def test_a_damaged_high_water_mark_is_reported(opened: Any, path: Path) -> None:
    """It is not believed, and not passed over."""
    engine = opened()
    fill(engine, 1, 10)
    engine.close()
    flip(path / "high-water", 0)
    engine = opened()
    assert seqs(engine) == list(range(1, 11))
    assert [gap.where for gap in gaps(engine)] == ["high-water"]


def test_a_database_that_cannot_be_opened_is_our_error(opened: Any, path: Path) -> None:
    """JournalCorrupt with RocksDB's own words, and no copies pile up from one start to the next."""
    engine = opened()
    fill(engine, 1, 10)
    engine.close()
    (path / "db" / "CURRENT").write_bytes(b"nonsense")
    for options in ({}, {"create": False, "read_only": True}):
        with pytest.raises(JournalCorrupt, match="RocksDB"):
            opened(**options)
    assert list(path.glob("damaged-*")) == []


@pytest.mark.parametrize("reason", ["Input/output error", "Too many open files"])
def test_a_log_that_cannot_be_read_is_not_skipped(
    opened: Any, path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """It may be whole: nothing is opened without it."""
    modes: list[Any] = []

    def refuse(*_: Any, **__: Any) -> None:
        modes.append(None)
        raise Exception(f"IO error: While reading file sequentially: 000004.log: {reason}")

    monkeypatch.setattr(database, "Rdict", refuse)
    with pytest.raises(JournalError, match=reason) as refused:
        opened()
    assert not isinstance(refused.value, JournalCorrupt)
    assert len(modes) == 1
    assert list(path.glob("damaged-*")) == []


@pytest.mark.parametrize(
    ("reason", "unread"), [("IO error: x.sst: Input/output error", True), ("Corruption: x", False)]
)
def test_a_value_that_cannot_be_read_is_told_from_a_damaged_one(
    opened: Any, monkeypatch: pytest.MonkeyPatch, reason: str, unread: bool
) -> None:
    """A writer must not go on without the first."""
    engine = opened()
    fill(engine, 1, 1)
    monkeypatch.setattr(engine, "_read", lambda _database, _from_seq: iter([(1, Exception(reason))]))
    (gap,) = engine.scan()
    assert (gap.unread, reason in gap.reason) == (unread, True)


FORKING = """
import os, sys
from pathlib import Path
from stellane.errors import JournalError
from stellane.testing.journal_records import make_record
from stellane_journal_rocksdb import RocksDbJournal

engine = RocksDbJournal(1_048_576, 0)
engine.open(Path(sys.argv[1]))
engine.append([make_record(1)], 1)
child = os.fork()
if not child:
    try:
        engine.append([make_record(2)], 2)
    except JournalError as error:
        sys.exit("not open" not in str(error))
    sys.exit(2)
status = os.waitpid(child, 0)[1]
engine.append([make_record(2)], 2)
os._exit(os.waitstatus_to_exitcode(status))  # a death: nothing is closed
"""


def test_a_forked_child_has_nothing_of_the_journal(opened: Any, path: Path) -> None:
    """What it appended would spoil the log for its parent, and at its end it would wait for threads for ever."""
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKING, str(path)], timeout=60, check=True)
    engine = opened()
    assert (seqs(engine), [item for item in engine.scan() if isinstance(item, Gap)]) == ([1, 2], [])


def test_free_space_is_kept(opened: Any) -> None:
    """Below free_bytes_min new requests are refused and endings are not."""
    engine = opened(free_bytes_min=1 << 60)
    with pytest.raises(JournalFull, match="free_bytes_min"):
        engine.append([make_record(1)], 1)
    engine.append([make_record(1)], 1, reserve=True)
    assert seqs(engine) == [1]


def test_options_reach_the_engine() -> None:
    """Bad values are refused."""
    assert stellane_create_journal(Options()).name == "rocksdb"
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"write_buffer_bytes": 1}, Options)
    with pytest.raises(ConfigError, match=r"free_bytes_min = 1048576.*at least.*2097152"):
        stellane_create_journal(Options(write_buffer_bytes=1_048_576, free_bytes_min=1_048_576))


def test_the_probe_tries() -> None:
    """It opens a database, writes and reads a record."""
    assert stellane_probe(Options()) == Probe(
        usable=True, facts={"write_buffer_bytes": str(Options().write_buffer_bytes)}
    )


def test_a_temporary_directory_that_cannot_be_used_keeps_nobody_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker killed on a full disk must come back; its journal has space of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    probe = stellane_probe(Options())
    assert probe.usable
    assert probe.facts["tried"].startswith("no: ")
