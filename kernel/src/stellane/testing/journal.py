"""The conformance suite of journal engines.

    from stellane.testing.journal import JournalEngineConformance

    class TestMyEngine(JournalEngineConformance):
        def make_engine(self):
            return MyEngine(buffer_bytes=262_144)

`make_engine` returns a new, closed engine each time; give it small segments or buffers (1 MiB
at most) so that the tests of released space see an effect. The class must be at the top of
its module and importable from its file alone: some tests make the engine in another process.

A rule an engine cannot keep is named in `expected_failures` with the reason; the test is then
expected to fail, and its passing is an error, so the list stays true.
"""

from __future__ import annotations

import inspect
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from stellane.abc.journal import Durability, Gap, JournalEngine
from stellane.errors import JournalError, JournalFull, JournalLocked
from stellane.recovery.journal import Journal
from stellane.recovery.record import RecordType
from stellane.testing.journal_child import RECORDS
from stellane.testing.journal_faults import failing_sync, flip_bit, small_file_system
from stellane.testing.journal_records import make_record, make_records, make_request

CHILD_TIMEOUT_S = 30.0
BIT_FLIPS = 24
BUSY_S = 1.5
DEADLINE_S = 5.0


class JournalEngineConformance:
    """What every journal engine must do. Subclass it and define `make_engine`."""

    expected_failures: ClassVar[dict[str, str]] = {}
    """Test name to the reason why this engine cannot pass it."""

    def make_engine(self) -> JournalEngine:
        """A new engine, closed."""
        raise NotImplementedError("define make_engine in your subclass")

    @pytest.fixture(autouse=True)
    def _prepare(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
        test = request.node.originalname
        if test in self.expected_failures:
            reason = self.expected_failures[test]
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
        self.path = tmp_path / "engine"
        self.path.mkdir(mode=0o700)
        self._opened: list[JournalEngine] = []
        yield
        for engine in self._opened:
            engine.close()

    # --- Records ----------------------------------------------------------------------------------

    def test_declares_what_it_can(self) -> None:
        """name and capabilities are set, and `process` is among the durabilities."""
        engine = self.make_engine()
        assert isinstance(engine, JournalEngine)
        assert engine.name
        assert Durability.PROCESS in engine.capabilities.durability
        assert engine.capabilities.record_bytes_max >= 2 * 1_048_576

    def test_records_come_back_unchanged_and_in_order(self) -> None:
        """scan gives every appended record, byte for byte, in order of seq, whatever the batches were."""
        engine = self._open()
        records = make_records(1, 60)
        for first, last in ((0, 1), (1, 2), (2, 30), (30, 31), (31, 60)):
            engine.append(records[first:last], first + 1)
        assert self._records(engine) == list(enumerate(records, start=1))

    def test_records_of_any_size(self) -> None:
        """Payloads of 0 bytes, 1 byte, 64 KiB and 1 MiB, each followed by a small one."""
        engine = self._open()
        records: list[bytes] = []
        for size in (0, 1, 65_536, 1_048_576):
            for payload in (os.urandom(size), b"small"):
                records.append(make_record(len(records) + 1, payload))
                engine.append([records[-1]], len(records))
        assert self._records(engine) == list(enumerate(records, start=1))
        engine.close()
        assert self._records(self._open()) == list(enumerate(records, start=1))

    def test_only_the_next_seq_is_accepted(self) -> None:
        """A first_seq that skips or repeats is a ValueError, and nothing is kept of the batch."""
        engine = self._open()
        with pytest.raises(ValueError, match="first_seq"):
            engine.append(make_records(2, 2), 2)
        engine.append(make_records(1, 5), 1)
        for first in (5, 7, 1, 0):
            with pytest.raises(ValueError, match="first_seq"):
                engine.append(make_records(6, 2), first)
        engine.append(make_records(6, 1), 6)
        assert [seq for seq, _ in self._records(engine)] == [1, 2, 3, 4, 5, 6]

    def test_scan_can_begin_anywhere(self) -> None:
        """scan(from_seq) gives the records from from_seq on and none before."""
        engine = self._open()
        engine.append(make_records(1, 20), 1)
        for first in (0, 1, 7, 20, 21):
            assert [seq for seq, _ in self._records(engine, first)] == list(range(max(first, 1), 21))

    # --- Life and death ---------------------------------------------------------------------------

    def test_reopening_keeps_everything(self) -> None:
        """After close a new engine has all records and goes on behind them, time after time."""
        for start in (1, 11, 21):
            engine = self._open()
            engine.append(make_records(start, 10), start)
            engine.close()
        assert self._records(self._open()) == list(enumerate(make_records(1, 30), start=1))

    def test_survives_sigkill(self) -> None:
        """What append returned for, without a sync, is there after the process was killed."""
        lines = self._child("append-and-die")
        acknowledged = [line["appended"] for line in lines]
        assert len(acknowledged) == RECORDS
        assert self._records(self._open()) == list(enumerate(make_records(1, RECORDS), start=1))

    def test_opening_does_not_create_unless_asked(self) -> None:
        """create=False on an empty directory is a JournalError, and a later open still works."""
        with pytest.raises(JournalError):
            self._open(create=False)
        self._open().append(make_records(1, 1), 1)

    def test_a_second_writer_is_refused(self) -> None:
        """JournalLocked, in this process and in another one, until the first has closed."""
        engine = self._open()
        engine.append(make_records(1, 1), 1)
        with pytest.raises(JournalLocked):
            self._open()
        assert self._child("try-open") == [{"open": "JournalLocked"}]
        engine.append(make_records(2, 1), 2)
        engine.close()
        assert [seq for seq, _ in self._records(self._open())] == [1, 2]

    def test_the_lock_dies_with_its_process(self) -> None:
        """A killed writer's lock does not keep the next one out."""
        with self._start_child("hold") as child:
            assert self._first_line(child) == {"open": True}
            child.kill()
        self._open().append(make_records(1, 1), 1)

    def test_a_forked_child_does_not_hold_the_lock(self) -> None:
        """While the writer lives its child's end unlocks nothing; a child that outlives a killed
        writer keeps nobody out."""
        with self._start_child("hold-and-fork") as child:
            assert self._first_line(child) == {"ended": 0, "lives": True}
            with pytest.raises(JournalLocked):
                self._open()
            child.kill()
            child.wait(CHILD_TIMEOUT_S)
            self._open().append(make_records(1, 1), 1)

    def test_close_may_be_called_again(self) -> None:
        """close is idempotent; a closed engine takes no records."""
        engine = self._open()
        engine.append(make_records(1, 1), 1)
        engine.close()
        engine.close()
        with pytest.raises(JournalError):
            engine.append(make_records(2, 1), 2)
        self.make_engine().close()

    def test_a_reader_may_look_beside_the_writer(self) -> None:
        """A read-only engine sees what was appended, writes nothing and hinders nobody."""
        writer = self._open()
        if not writer.capabilities.concurrent_reader:
            pytest.skip("not run: the engine says that it has no concurrent reader")
        writer.append(make_records(1, 10), 1)
        reader = self._open(create=False, read_only=True)
        assert [seq for seq, _ in self._records(reader)][:10] == list(range(1, 11))
        with pytest.raises(JournalError):
            reader.append(make_records(11, 1), 11)
        writer.append(make_records(11, 10), 11)
        reader.close()
        assert [seq for seq, _ in self._records(self._open(create=False, read_only=True))] == list(range(1, 21))
        writer.append(make_records(21, 1), 21)
        assert [seq for seq, _ in self._records(writer)] == list(range(1, 22))

    def test_a_reader_is_not_misled_by_a_busy_writer(self) -> None:
        """While another process appends and releases at full speed every look sees a run of records
        without a gap, except for a last one that is just being written, and never less than before."""
        if not self.make_engine().capabilities.concurrent_reader:
            pytest.skip("not run: the engine says that it has no concurrent reader")
        with self._start_child("append-forever") as child:
            try:
                self._first_line(child)
                newest = looks = 0
                deadline = time.monotonic() + BUSY_S
                while time.monotonic() < deadline:
                    reader = self._open(create=False, read_only=True)
                    items = list(reader.scan())
                    reader.close()
                    if items and isinstance(items[-1], Gap):
                        items.pop()
                    assert [item for item in items if isinstance(item, Gap)] == []
                    seqs = [item[0] for item in items if not isinstance(item, Gap)]
                    assert len(seqs) >= RECORDS
                    assert seqs == list(range(seqs[0], seqs[-1] + 1))
                    assert seqs[-1] >= newest
                    newest = seqs[-1]
                    looks += 1
                assert looks > 1
            finally:
                child.kill()

    # --- Getting rid of records -------------------------------------------------------------------

    def test_release_keeps_the_rest(self) -> None:
        """After release(n) every record above n is kept, now and after reopening."""
        engine = self._open()
        engine.append(make_records(1, 40), 1)
        engine.release(25)
        engine.append(make_records(41, 10), 41)
        expected = list(enumerate(make_records(26, 25), start=26))
        assert self._records(engine, 26) == expected
        engine.close()
        engine = self._open()
        assert self._records(engine, 26) == expected
        engine.append(make_records(51, 1), 51)

    def test_release_frees_space(self) -> None:
        """With all but the newest records released, 16 MiB of records take less than half of that."""
        engine = self._open()
        for first in range(1, 257, 16):
            for seq in range(first, first + 16):
                engine.append([make_record(seq, os.urandom(65_536))], seq)
            engine.release(first + 15 - 2)
        deadline = time.monotonic() + DEADLINE_S
        while self._disk_bytes() > 8_388_608 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self._disk_bytes() <= 8_388_608
        assert [seq for seq, _ in self._records(engine, 255)] == [255, 256]

    def test_truncate_forgets_the_end(self) -> None:
        """truncate(n) removes every record above n, for good, and n + 1 comes next; truncate(0) removes all."""
        for keep in (12, 0):
            engine = self._open()
            first = engine.statistics().appended_seq + 1
            engine.append(make_records(first, 30), first)
            engine.close()
            engine = self._open()
            list(engine.scan())
            engine.truncate(keep)
            assert [seq for seq, _ in self._records(engine)] == list(range(1, keep + 1))
            replacement = make_record(keep + 1, b"after the cut")
            engine.append([replacement], keep + 1)
            engine.close()
            engine = self._open()
            assert self._records(engine)[keep:] == [(keep + 1, replacement)]
            engine.close()

    def test_checkpoint_is_a_journal(self, tmp_path: Path) -> None:
        """A checkpoint opens as a journal of its own and does not follow the original."""
        engine = self._open()
        engine.append(make_records(1, 30), 1)
        engine.checkpoint(tmp_path / "copy")
        engine.append(make_records(31, 1), 31)
        copy = self._open(tmp_path / "copy")
        assert self._records(copy) == list(enumerate(make_records(1, 30), start=1))
        copy.append([make_record(31, b"another way")], 31)
        assert self._records(engine) == list(enumerate(make_records(1, 31), start=1))

    # --- Promises and failures --------------------------------------------------------------------

    def test_sync_returns_the_highest_seq(self) -> None:
        """sync returns the last appended seq, again and again, and for a second batch the new one."""
        engine = self._open()
        engine.append(make_records(1, 10), 1)
        assert [engine.sync(), engine.sync()] == [10, 10]
        engine.append(make_records(11, 2), 11)
        assert engine.sync() == 12

    def test_statistics_are_true(self) -> None:
        """records, appended_seq and synced_seq are what was done."""
        engine = self._open()
        engine.append(make_records(1, 10), 1)
        engine.sync()
        engine.append(make_records(11, 5), 11)
        found = engine.statistics()
        assert (found.records, found.appended_seq, found.synced_seq) == (15, 15, 10)
        assert found.bytes >= sum(map(len, make_records(1, 15)))

    def test_a_failed_write_poisons(self) -> None:
        """After one write error (here EFBIG) append and sync raise JournalPoisoned, also on a healthy disk."""
        lines = self._child("fail-write")
        assert lines == [{"failed": "JournalPoisoned", "later": "JournalPoisoned", "sync": "JournalPoisoned"}]
        records = self._records(self._open())
        assert records[:10] == list(enumerate(make_records(1, 10), start=1))

    def test_a_failed_sync_poisons_and_is_not_tried_again(self, tmp_path: Path) -> None:
        """After one failed fsync or fdatasync no further one is made, and nothing more is accepted."""
        lines = self._child("fail-sync", failing_sync(tmp_path))
        assert lines[0].pop("synced") > 0, "sync did not reach fsync or fdatasync"
        poisoned = "JournalPoisoned"
        expected = {"first": "returned", "failed": poisoned, "later": poisoned, "append": poisoned, "retried": 0}
        assert lines == [expected]

    def test_a_full_disk_loses_nothing(self, tmp_path: Path) -> None:
        """A full disk refuses whole batches (JournalFull), still takes the ends of requests from its
        reserve, and takes new requests again once there is space."""
        with small_file_system(tmp_path / "full") as disk:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(16_777_216))
            path = disk / "engine"
            path.mkdir(mode=0o700)
            engine = self._open(path)
            accepted = self._fill(engine)
            assert self._records(engine) == list(enumerate(accepted, start=1))
            for _ in range(32):
                accepted.append(make_record(len(accepted) + 1, b"done", type_=RecordType.DONE))
                engine.append([accepted[-1]], len(accepted), reserve=True)
            ballast.unlink()
            last = make_record(len(accepted) + 1, os.urandom(65_536))
            self._append_soon(engine, last, len(accepted) + 1)
            accepted.append(last)
            engine.close()
            assert self._records(self._open(path)) == list(enumerate(accepted, start=1))
            self._close_all()

    def test_bit_rot_is_noticed(self, tmp_path: Path) -> None:
        """One flipped bit anywhere: the journal opens or raises a JournalError, and every acknowledged
        request is there unchanged or named as lost."""
        dice = random.Random(20)
        original = tmp_path / "original"
        journal = self._open_journal(original)
        requests = {}
        for number in range(1, 41):
            request = make_request(number, body=dice.randbytes(200))
            requests[journal.begin(request).entry_id] = request
            journal.mark()
        journal.close(clean=False)
        refused = 0
        for flip in range(BIT_FLIPS):
            damaged = tmp_path / f"damaged-{flip}"
            shutil.copytree(original, damaged)
            where = flip_bit(damaged / "engine", dice)
            try:
                journal = self._open_journal(damaged)
            except JournalError:
                refused += 1
                continue
            found = {entry.entry_id: entry.request for entry in journal.entries()}
            report = journal.report
            journal.close(clean=False)
            for entry_id, request in requests.items():
                if found.get(entry_id) != request:
                    assert report.is_lost(entry_id), f"entry {entry_id} is silently gone after a flip of {where}"
            shutil.rmtree(damaged)
        assert refused < BIT_FLIPS, "every damaged journal was refused"

    def test_suite_is_intact(self) -> None:
        """No test of this suite is overridden or taken out, and expected failures name tests and reasons."""
        for name in SUITE_TESTS:
            assert getattr(type(self), name) is getattr(JournalEngineConformance, name), f"{name} was replaced"
        for name, reason in self.expected_failures.items():
            assert name in SUITE_TESTS, f"expected_failures names {name}, which is not a test of the suite"
            assert reason.strip(), f"expected_failures gives no reason for {name}"
        assert "test_suite_is_intact" not in self.expected_failures

    # --- Tools ------------------------------------------------------------------------------------

    def _open(self, path: Path | None = None, *, create: bool = True, read_only: bool = False) -> JournalEngine:
        engine = self.make_engine()
        self._opened.append(engine)
        engine.open(path or self.path, create=create, read_only=read_only)
        return engine

    def _close_all(self) -> None:
        for engine in self._opened:
            engine.close()

    def _open_journal(self, directory: Path) -> Journal:
        engine = self.make_engine()
        self._opened.append(engine)
        return Journal.open(directory, engine_name=engine.name, engine=engine)

    @staticmethod
    def _records(engine: JournalEngine, from_seq: int = 0) -> list[tuple[int, bytes]]:
        records = []
        for item in engine.scan(from_seq):
            assert not isinstance(item, Gap), f"{item.where}: {item.reason}"
            records.append(item)
        return records

    def _disk_bytes(self) -> int:
        total = 0
        for path in self.path.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                continue
        return total

    @staticmethod
    def _fill(engine: JournalEngine) -> list[bytes]:
        """Append batches of two large records until the engine is full; the accepted ones."""
        accepted: list[bytes] = []
        for _ in range(1000):
            first = len(accepted) + 1
            batch = [make_record(first, os.urandom(65_536)), make_record(first + 1, os.urandom(65_536))]
            try:
                engine.append(batch, first)
            except JournalFull:
                return accepted
            accepted += batch
        pytest.fail("a disk of 48 MiB took more than that")

    @staticmethod
    def _append_soon(engine: JournalEngine, record: bytes, seq: int) -> None:
        """Append, trying again while the engine has not noticed that there is space."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                engine.append([record], seq)
            except JournalFull:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def _start_child(self, action: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        cls = type(self)
        program = [sys.executable, "-m", "stellane.testing.journal_child", inspect.getfile(cls), cls.__name__]
        return subprocess.Popen(
            [*program, action, str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )

    @staticmethod
    def _first_line(child: subprocess.Popen[bytes]) -> Any:
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], CHILD_TIMEOUT_S)
        assert ready, "the other process did not open the journal in time"
        return msgspec.json.decode(child.stdout.readline())

    def _child(self, action: str, environment: dict[str, str] | None = None) -> list[dict[str, Any]]:
        """Run an action of `journal_child` to its end; the lines it printed."""
        with self._start_child(action, environment) as child:
            try:
                output, _ = child.communicate(timeout=CHILD_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                raise
        return [msgspec.json.decode(line) for line in output.splitlines()]


SUITE_TESTS = tuple(name for name in vars(JournalEngineConformance) if name.startswith("test_"))
"""The names of all tests of the suite."""
