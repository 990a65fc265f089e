"""What happens to one pending request decides nothing about the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from stellane.abc import Exchange, Plan
from stellane.builtin.replay_policy import ReplayPolicy
from stellane.errors import JournalFull, JournalPoisoned, Retry
from stellane.recovery import replay
from stellane.recovery.journal import Journal
from stellane.recovery.payload import JournaledRequest
from stellane.recovery.replay import Replayer, recover_all
from stellane.testing.plain_journal import PlainJournal

PATIENCE_S = 30.0
"""Far more than anything here takes; it ends a test that hangs."""

Handler = Callable[[Exchange], Coroutine[Any, Any, None]]


class Application:
    """Runs the handler of a path, and answers 200 to every other one. `runs` are the paths it saw."""

    def __init__(self, handlers: dict[bytes, Handler]) -> None:
        self.handlers = handlers
        self.runs: list[bytes] = []
        self.given_up: list[bytes] = []

    def has_recovery_hook(self, method: str, path: bytes) -> bool:
        return False

    async def recover(self, exchange: Exchange, recovery: Any) -> None:
        self.runs.append(exchange.path)
        if exchange.path in self.handlers:
            await self.handlers[exchange.path](exchange)
        if not exchange.response_ended:
            exchange.respond(200, [], b"")

    async def dead_letter(self, exchange: Exchange, attempts: Any) -> None:
        self.given_up.append(exchange.path)
        await cancelled_future(exchange)


class Hooks:
    """The extensions' hooks; the ones named in `failing` raise."""

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = failing

    def __getattr__(self, name: str) -> Callable[..., None]:
        def hook(**_: Any) -> None:
            if name in self.failing:
                raise RuntimeError(f"{name} failed on purpose")

        return hook


class Full(PlainJournal):
    """Has no space at all while `refusals` lasts, not even for the ends of requests."""

    refusals = 0

    def append(self, records: Sequence[bytes], first_seq: int, *, reserve: bool = False) -> None:
        if self.refusals:
            self.refusals -= 1
            raise JournalFull("no space", path=self.path)
        super().append(records, first_seq, reserve=reserve)


class Bench:
    """A journal whose writer died with requests in hand, and what is needed to recover it."""

    def __init__(
        self, path: Path, *targets: bytes, suspects: Sequence[bytes] = (), handlers: dict[bytes, Handler] | None = None
    ) -> None:
        self.path = path / "w0"
        self.application = Application(handlers or {})
        self.hooks = Hooks()
        self.policy = ReplayPolicy(("PUT",), 2)
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        journal = self._open(PlainJournal())
        for target in targets:
            journal.begin(JournaledRequest(target.decode(), 1, "PUT", target, []))
        journal.close(clean=False)
        journal = self._open(PlainJournal())
        for entry in journal.pending():
            if entry.request.target in suspects:
                journal.attempt(entry)
        journal.close(clean=False)
        self.engine = Full()
        self.journal = self._open(self.engine)

    def _open(self, engine: PlainJournal) -> Journal:
        return Journal.open(self.path, engine_name="plain", engine=engine)

    def reopen(self) -> None:
        """What the next worker of this slot opens."""
        self.journal.close()
        self.engine = Full()
        self.journal = self._open(self.engine)

    def recover(self) -> None:
        """Run recovery to its end."""

        async def main() -> None:
            await asyncio.wait_for(self.recovering(), PATIENCE_S)

        asyncio.run(main())

    def recovering(self) -> Coroutine[Any, Any, None]:
        """Recovery, to be run in the loop that runs."""
        replayer = Replayer(
            self.journal,
            self.policy,
            self.application,  # type: ignore[arg-type]
            max_attempts=2,
            attempt_timeout_s=PATIENCE_S,
            concurrency=4,
            crashes=[],
            run=self._run,
            hooks=self.hooks,  # type: ignore[arg-type]
            stopping=lambda: self.stopping,
        )
        return recover_all([replayer])

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def ends(self) -> dict[bytes, str]:
        """What is on record of each request."""
        self.journal.close(clean=False)
        reader = Journal.open(self.path, engine_name="plain", engine=PlainJournal(), read_only=True)
        found = {entry.request.target: str(entry.state) for entry in reader.entries()}
        reader.close()
        return found


async def cancelled_future(_: Exchange) -> None:
    """Raises CancelledError although nobody cancelled this task."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def cancels_itself(_: Exchange) -> None:
    """Raises CancelledError because this task cancelled itself."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(PATIENCE_S)


class Panic(BaseException):
    """What a binding to another language may raise."""


async def panics(_: Exchange) -> None:
    """Raises what is no Exception."""
    raise Panic


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stellane.builtin.replay_policy.RETRY_DELAY_S", 0.001)
    monkeypatch.setattr(replay, "JOURNAL_FULL_RETRY_S", 0.001)


@pytest.mark.parametrize("handler", [cancelled_future, cancels_itself])
def test_a_cancelled_error_that_nobody_ordered_is_a_failed_attempt(tmp_path: Path, handler: Handler) -> None:
    """It uses up the attempts of its own request; the others, suspects too, are recovered."""
    bench = Bench(
        tmp_path, b"/cancels", b"/other", b"/suspect", suspects=[b"/suspect"], handlers={b"/cancels": handler}
    )
    bench.recover()
    assert bench.application.runs.count(b"/cancels") == 2
    assert bench.application.given_up == [b"/cancels"]
    assert bench.ends() == {b"/cancels": "dead", b"/other": "done", b"/suspect": "done"}


def test_an_error_that_is_no_exception_stops_one_request_only(tmp_path: Path) -> None:
    """Its attempt is on record and counts at the next start."""
    bench = Bench(tmp_path, b"/panics", b"/other", b"/suspect", suspects=[b"/suspect"], handlers={b"/panics": panics})
    bench.recover()
    assert bench.application.runs.count(b"/panics") == 1
    assert bench.ends() == {b"/panics": "recovering", b"/other": "done", b"/suspect": "done"}


def test_a_stop_cancels_recovery_and_fails_no_attempt(tmp_path: Path) -> None:
    """A worker cancels recovery and then its requests: what ran stays pending, with nothing said against it."""
    running = []

    async def slow(_: Exchange) -> None:
        running.append(1)
        await asyncio.sleep(PATIENCE_S)

    async def main() -> None:
        recovery = asyncio.get_running_loop().create_task(bench.recovering())
        while not running:
            await asyncio.sleep(0)
        recovery.cancel()
        for task in bench.tasks:
            task.cancel()
        await asyncio.wait([recovery, *bench.tasks], timeout=PATIENCE_S)
        assert recovery.cancelled()

    bench = Bench(tmp_path, b"/slow", b"/suspect", suspects=[b"/suspect"], handlers={b"/slow": slow})
    asyncio.run(main())
    assert bench.application.runs == [b"/slow"]
    (entry,) = [entry for entry in bench.journal.entries() if entry.request.target == b"/slow"]
    assert [attempt.error for attempt in entry.attempts] == [""]
    assert bench.ends() == {b"/slow": "recovering", b"/suspect": "pending"}


async def lets_it_out(_: Exchange) -> None:
    """Is cancelled, and says so."""
    await asyncio.sleep(PATIENCE_S)


async def raises_for_it(_: Exchange) -> None:
    """Makes an error of its own of the cancellation."""
    try:
        await asyncio.sleep(PATIENCE_S)
    except asyncio.CancelledError:
        raise RuntimeError("the database connection is gone") from None


async def answers_500_for_it(exchange: Exchange) -> None:
    """Makes an answer of it."""
    try:
        await asyncio.sleep(PATIENCE_S)
    except asyncio.CancelledError:
        exchange.respond(500, [], b"")


def stop_during_a_replay(bench: Bench, *, refusals: int = 0) -> None:
    """Run recovery until a handler runs, then cancel it and its requests, as a worker that stops does."""

    async def main() -> None:
        runs = len(bench.application.runs)
        recovery = asyncio.get_running_loop().create_task(bench.recovering())
        while len(bench.application.runs) == runs:
            await asyncio.sleep(0)
        bench.engine.refusals = refusals
        bench.stopping = True
        recovery.cancel()
        for task in bench.tasks:
            task.cancel()
        await asyncio.wait([recovery, *bench.tasks], timeout=PATIENCE_S)
        assert [task.exception() for task in bench.tasks if not task.cancelled()] in ([], [None])
        bench.tasks.clear()
        bench.stopping = False

    asyncio.run(main())


@pytest.mark.parametrize("handler", [lets_it_out, raises_for_it, answers_500_for_it])
def test_a_replay_that_a_stop_cuts_off_does_not_count(tmp_path: Path, handler: Handler) -> None:
    """More restarts than recovery.max_recovery_attempts during one long replay make no dead letter."""
    bench = Bench(tmp_path, b"/long", handlers={b"/long": handler})
    for _ in range(3):
        stop_during_a_replay(bench)
        bench.reopen()
        assert [entry.attempts for entry in bench.journal.pending()] == [[]]
    bench.application.handlers.clear()
    bench.recover()
    assert bench.ends() == {b"/long": "done"}


def test_a_cut_off_replay_counts_when_that_cannot_be_recorded(tmp_path: Path) -> None:
    """The stop goes on all the same."""
    bench = Bench(tmp_path, b"/long", handlers={b"/long": lets_it_out})
    stop_during_a_replay(bench, refusals=1)
    bench.reopen()
    assert [len(entry.attempts) for entry in bench.journal.pending()] == [1]


@pytest.mark.parametrize("hook", ["recovering", "recovered", "dead_lettered"])
def test_an_extension_that_fails_decides_nothing(tmp_path: Path, hook: str) -> None:
    """Every request comes to the end it has without it."""

    async def raises(_: Exchange) -> None:
        raise ValueError("on purpose")

    bench = Bench(tmp_path, b"/fails", b"/other", b"/suspect", suspects=[b"/suspect"], handlers={b"/fails": raises})
    bench.hooks.failing = [f"stellane_request_{hook}"]
    bench.recover()
    assert bench.application.given_up == [b"/fails"]
    assert bench.ends() == {b"/fails": "dead", b"/other": "done", b"/suspect": "done"}


def test_a_policy_that_fails_leaves_one_request(tmp_path: Path) -> None:
    """An error of ours or of a plugin's leaves the request for the next start."""

    async def raises(_: Exchange) -> None:
        raise ValueError("on purpose")

    class Failing(ReplayPolicy):
        def after_attempt(self, *_: Any) -> Any:
            raise RuntimeError("on purpose")

    bench = Bench(tmp_path, b"/fails", b"/other", b"/suspect", suspects=[b"/suspect"], handlers={b"/fails": raises})
    bench.policy = Failing(("PUT",), 2)
    bench.recover()
    assert bench.ends() == {b"/fails": "pending", b"/other": "done", b"/suspect": "done"}


@pytest.mark.parametrize("refusals", range(1, 8))
def test_a_full_disk_delays_recovery_and_repeats_no_request(tmp_path: Path, refusals: int) -> None:
    """Wherever the space ends: each request runs as often as with space, and has its end once there is some."""

    async def fills(_: Exchange) -> None:
        bench.engine.refusals = refusals

    async def fails_full(_: Exchange) -> None:
        bench.engine.refusals = refusals
        raise ValueError("on purpose")

    handlers = {b"/fills": fills, b"/fails": fails_full}
    bench = Bench(tmp_path, b"/fills", b"/fails", b"/other", b"/suspect", suspects=[b"/suspect"], handlers=handlers)
    bench.engine.refusals = refusals
    bench.recover()
    bench.engine.refusals = 0
    bench.journal.flush()
    assert sorted(bench.application.runs) == [b"/fails", b"/fails", b"/fills", b"/other", b"/suspect"]
    assert bench.ends() == {b"/fills": "done", b"/fails": "dead", b"/other": "done", b"/suspect": "done"}


def test_a_poisoned_journal_ends_its_recovery(tmp_path: Path) -> None:
    """Without a record nothing may run; the suspects neither."""

    async def poisons(_: Exchange) -> None:
        bench.engine.poisoned = OSError("on purpose")
        raise ValueError("on purpose")

    bench = Bench(tmp_path, b"/poisons", b"/suspect", suspects=[b"/suspect"], handlers={b"/poisons": poisons})
    bench.recover()
    assert isinstance(bench.journal.poisoned, JournalPoisoned)
    assert bench.application.runs == [b"/poisons"]


@pytest.mark.parametrize("waiting", [b"/innocent", b"/suspect-1"])
def test_who_wants_to_be_tried_in_an_hour_keeps_nobody_waiting(tmp_path: Path, waiting: bytes) -> None:
    """Neither the suspects behind an innocent request nor those behind a suspect."""

    async def later(_: Exchange) -> None:
        raise Retry(3600.0)

    async def main() -> None:
        recovery = asyncio.get_running_loop().create_task(bench.recovering())
        async with asyncio.timeout(PATIENCE_S):
            while len(bench.journal.pending()) > 1 or len(bench.application.runs) < 3:
                await asyncio.sleep(0.001)
        assert not recovery.done()
        recovery.cancel()
        await asyncio.wait([recovery])

    suspects = [b"/suspect-1", b"/suspect-2"]
    bench = Bench(tmp_path, b"/innocent", *suspects, suspects=suspects, handlers={waiting: later})
    bench.policy = ReplayPolicy(("PUT",), 3)
    asyncio.run(main())
    bench.journal.flush()
    assert bench.ends() == {b"/innocent": "done", **dict.fromkeys(suspects, "done"), waiting: "pending"}


class Unsorted(ReplayPolicy):
    """Plans in the order of the journal; what is to run alone is only marked as such."""

    def plan(self, pending: Any) -> Plan:
        return Plan(tuple(sorted(super().plan(pending).steps, key=lambda step: step.entry_id)))


def test_nothing_runs_beside_a_suspect_not_even_a_second_attempt(tmp_path: Path) -> None:
    """The retries of the innocent wait for a suspect that runs, and it waits for them; no two of them block."""
    running: set[bytes] = set()
    beside: list[frozenset[bytes]] = []

    async def fails(exchange: Exchange) -> None:
        running.add(exchange.path)
        beside.append(frozenset(running))
        await asyncio.sleep(0.01)
        running.discard(exchange.path)
        raise ValueError("on purpose")

    innocent = [b"/innocent-%d" % number for number in range(6)]
    suspects = [b"/suspect-%d" % number for number in range(3)]
    targets = [*suspects, *innocent]
    bench = Bench(tmp_path, *targets, suspects=suspects, handlers=dict.fromkeys(targets, fails))
    bench.policy = Unsorted(("PUT",), 4)
    bench.recover()
    assert max(map(len, beside)) <= 4
    assert [names for names in beside if len(names) > 1 and names & set(suspects)] == []
    first = min(bench.application.runs.index(suspect) for suspect in suspects)
    assert set(innocent) <= set(bench.application.runs[:first])
    assert bench.ends() == dict.fromkeys(targets, "dead")
