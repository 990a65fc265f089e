"""From a live request to its record, and from the record to its replay: order, states, limits.

A crash is a journal that is dropped without `close`: what a new Journal finds in the directory
is what a killed process left. More than 500 lines, because recording and replaying are one flow
and run on the one bench at the top.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pluggy
import pytest

from stellane import (
    Context,
    DeadLetter,
    HTTPError,
    Request,
    Response,
    Retry,
    Server,
    Skip,
    hookspecs,
    retry_original_handler,
)
from stellane.abc import EntryState, Exchange
from stellane.app.trace import parse_traceparent
from stellane.builtin.fifo_scheduler import FifoScheduler
from stellane.builtin.replay_policy import ReplayPolicy
from stellane.config import Config
from stellane.errors import JournalError, JournalFull, JournalPoisoned
from stellane.hookspecs import hookimpl
from stellane.recovery.context import CrashInfo
from stellane.recovery.journal import Journal, JournaledRequest, LedgerEntry
from stellane.recovery.recorder import MARK_AFTER_S, Recorder
from stellane.recovery.replay import Replayer, recover_all
from stellane.runtime.spine import Spine
from stellane.testing.exchange import MemoryExchange
from stellane.testing.plain_journal import PlainJournal

KEY = [(b"idempotency-key", b"k-1")]
CRASH = CrashInfo(slot=0, pid=1, cause="signal", signal=9)


class Killed(BaseException):
    """Stands for the death of the process at this point of a handler."""


class Events:
    """Hears the request hooks."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    @hookimpl
    def stellane_request_recovering(self, attempt: int) -> None:
        self.heard.append(("recovering", attempt))

    @hookimpl
    def stellane_request_recovered(self, status: int) -> None:
        self.heard.append(("recovered", status))

    @hookimpl
    def stellane_request_dead_lettered(self, reason: str) -> None:
        self.heard.append(("dead", reason))


class Bench:
    """One worker's recovery parts over one journal directory."""

    def __init__(self, path: Path, server: Server, *, max_attempts: int = 3, body_bytes_max: int = 1000) -> None:
        self.path = path
        self.server = server
        self.max_attempts = max_attempts
        self.body_bytes_max = body_bytes_max
        self.events = Events()
        self.manager = pluggy.PluginManager("stellane")
        self.manager.add_hookspecs(hookspecs)
        self.manager.register(self.events)
        self.policy = ReplayPolicy(("POST", "PUT", "PATCH", "DELETE"), max_attempts)
        self.engine = PlainJournal()
        self.journal: Journal

    async def start(self) -> Bench:
        """What a worker does: configure, start up, open the journal."""
        self.server.configure(Config())
        await self.server.startup()
        self.engine = PlainJournal()
        self.journal = Journal.open(
            self.path / "w0", engine_name="plain", engine=self.engine, body_bytes_max=self.body_bytes_max
        )
        loop = asyncio.get_running_loop()
        self.recorder = Recorder(self.journal, self.policy, self.server, loop=loop, body_bytes_max=self.body_bytes_max)
        self.spine = Spine(self.server, FifoScheduler(10), loop=loop, tasks_max=10, recorder=self.recorder)
        return self

    async def crash(self) -> Bench:
        """Drop everything as a kill would, and start again on the same directory."""
        self.engine.close()  # the kernel closes a dead process's files; no CLEAN is written
        return await self.start()

    async def request(self, method: str, target: bytes, body: bytes = b"", headers: Any = ()) -> MemoryExchange:
        exchange = MemoryExchange(method, target, headers=list(headers), body=body)
        self.spine.begin(exchange)
        await self.spine.wait_idle()
        await asyncio.sleep(0)  # the end of the turn, when endings are written
        return exchange

    async def recover(self, crash: CrashInfo | None = CRASH) -> None:
        await recover_all([self.replayer(crash)])

    def replayer(self, crash: CrashInfo | None = CRASH) -> Replayer:
        return Replayer(
            self.journal,
            self.policy,
            self.server,
            max_attempts=self.max_attempts,
            attempt_timeout_s=5.0,
            concurrency=4,
            crashes=[crash] if crash else [],
            run=self._run,
            hooks=self.manager.hook,
        )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self.spine.start(work)

    def entries(self) -> list[Any]:
        """Every entry, finished ones too, as a reader beside the writer sees them."""
        reader = Journal.open(
            self.path / "w0", engine_name="plain", engine=PlainJournal(), read_only=True, create=False
        )
        entries = reader.entries()
        reader.close()
        return entries

    def states(self) -> list[str]:
        return [str(entry.state) for entry in self.entries()]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def dying_server(*, deaths: int = 1) -> tuple[Server, list[str]]:
    """A server whose handler dies at its first `deaths` runs; and what it noted."""
    server = Server()
    notes: list[str] = []

    async def work(ctx: Context, req: Request) -> Response:
        attempt = ctx.recovery.attempt if ctx.recovery else 0
        notes.append(f"{attempt} {req.method} {(await req.body()).decode()} {ctx.trace.trace_id} {ctx.request_id}")
        if len(notes) <= deaths:
            raise Killed
        return Response.text("done", status=201)

    server.route("/work", methods=("POST", "PUT", "DELETE"))(work)
    return server, notes


async def die(bench: Bench, exchange: Exchange) -> None:
    """Run one request into its death: the task ends and nothing more is recorded."""

    async def until_death() -> None:
        try:
            recorded = await bench.recorder.record(exchange)
            await bench.server.handle(recorded)
        except Killed:
            return

    await asyncio.create_task(until_death())


# --- Recording ------------------------------------------------------------------------------------


def test_begin_is_on_record_before_the_handler_exists(tmp_path: Path) -> None:
    """A reader that opens the journal inside the handler finds the request running."""
    server = Server()
    seen: list[list[str]] = []

    @server.post("/")
    async def handler(ctx: Context, req: Request) -> str:
        seen.append(bench.states())
        return "ok"

    async def main() -> None:
        await bench.start()
        exchange = await bench.request("POST", b"/", b"abc")
        assert exchange.status == 200

    bench = Bench(tmp_path, server)
    run(main())
    # A reader judges by what is on disk: an entry without an end is pending.
    assert len(seen) == 1
    assert seen[0] in (["pending"], ["running"])


def test_resp_is_on_record_before_the_first_byte_and_done_after_the_last(tmp_path: Path) -> None:
    """The order of what the client sees and what the journal says."""
    server = Server()
    order: list[str] = []

    @server.post("/")
    async def handler(ctx: Context, req: Request) -> str:
        return "ok"

    class Watched(MemoryExchange):
        def respond(self, status: int, headers: Any, body: bytes) -> None:
            entry = bench.entries()[0]
            order.append(f"respond: started={entry.response_started} {entry.state}")
            super().respond(status, headers, body)

    async def main() -> None:
        await bench.start()
        exchange = Watched("POST", b"/", headers=[], body=b"")
        bench.spine.begin(exchange)
        await bench.spine.wait_idle()
        await asyncio.sleep(0)
        order.append(f"after: {bench.states()[0]}")

    bench = Bench(tmp_path, server)
    run(main())
    assert order[0].startswith("respond: started=True")
    assert order[1] == "after: done"


def test_what_is_journaled(tmp_path: Path) -> None:
    """The methods of the policy, and what a route says instead."""
    server = Server()

    async def handler(ctx: Context, req: Request) -> str:
        return "ok"

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        server.route("/", methods=(method,))(handler)
    server.post("/never", journal=False)(handler)
    server.route("/always", methods=("GET",), journal=True)(handler)

    async def main() -> None:
        await bench.start()
        for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"):
            await bench.request(method, b"/")
        await bench.request("POST", b"/never")
        await bench.request("GET", b"/always")

    bench = Bench(tmp_path, server)
    run(main())
    recorded = [(entry.request.method, entry.request.target) for entry in bench.entries()]
    assert recorded == [(m, b"/") for m in ("POST", "PUT", "PATCH", "DELETE")] + [("GET", b"/always")]


def test_endings(tmp_path: Path) -> None:
    """An answer is DONE, a 4xx too; a 5xx and an answer that was cut are FAILED."""
    server = Server()

    @server.post("/{what}")
    async def handler(ctx: Context, req: Request) -> Response:
        if req.params["what"] == "raises":
            raise RuntimeError("on purpose")
        if req.params["what"] == "refuses":
            raise HTTPError(409)

        async def parts() -> Any:
            yield b"one"
            if req.params["what"] == "cut":
                raise RuntimeError("on purpose")

        return Response.stream(parts())

    async def main() -> None:
        await bench.start()
        for what in (b"fine", b"raises", b"refuses", b"cut"):
            await bench.request("POST", b"/" + what)

    bench = Bench(tmp_path, server)
    run(main())
    assert [(str(entry.state), entry.status) for entry in bench.entries()] == [
        ("done", 200),
        ("failed", 500),
        ("done", 409),
        ("failed", 200),
    ]


def test_a_cancellation_that_the_handler_lets_out_is_an_end(tmp_path: Path) -> None:
    """Nobody cancelled the request: left without an end, it would be replayed at every start, to the same effect."""
    server = Server()

    @server.put("/")
    async def handler(ctx: Context, req: Request) -> str:
        gone = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone
        return "never"

    async def main() -> None:
        await bench.start()
        assert (await bench.request("PUT", b"/")).aborted

    bench = Bench(tmp_path, server)
    run(main())
    assert bench.states() == ["failed"]


def test_a_head_too_large_for_a_record_is_refused(tmp_path: Path) -> None:
    """What is redacted grows; the limit is on what is recorded."""
    server = Server()
    runs: list[str] = []

    @server.put("/{rest:path}")
    async def handler(ctx: Context, req: Request) -> str:
        runs.append(req.method)
        return "ok"

    async def main() -> None:
        await bench.start()
        secrets = b"/?" + b"token=&" * 1100
        fields = [(b"referer", b"http://a" + secrets)] * 5
        assert (await bench.request("PUT", secrets, headers=fields)).status == 431
        assert (await bench.request("PUT", b"/small")).status == 200

    bench = Bench(tmp_path, server)
    run(main())
    assert runs == ["PUT"]
    assert bench.states() == ["done"]


def test_ids_are_fixed_before_the_handler_runs(tmp_path: Path) -> None:
    """The trace and request id the handler sees are the ones on record, brought or made."""
    server = Server()
    seen: list[tuple[str, str]] = []

    @server.post("/")
    async def handler(ctx: Context, req: Request) -> str:
        seen.append((ctx.trace.trace_id, ctx.request_id))
        return "ok"

    trace_id = "0af7651916cd43dd8448eb211c80319c"
    brought = [(b"traceparent", f"00-{trace_id}-b7ad6b7169203331-01".encode()), (b"x-request-id", b"mine")]

    async def main() -> None:
        await bench.start()
        await bench.request("POST", b"/", headers=brought)
        answer = await bench.request("POST", b"/")
        assert dict(answer.response_headers)[b"x-request-id"].decode() == seen[1][1]

    bench = Bench(tmp_path, server)
    run(main())
    assert seen[0] == (trace_id, "mine")
    for (trace, request_id), entry in zip(seen, bench.entries(), strict=True):
        parsed = parse_traceparent(entry.request.traceparent)
        assert parsed is not None
        assert parsed.trace_id == trace
        assert entry.request.request_id == request_id


def test_a_journal_that_fails_refuses_the_request_and_does_not_run_it(tmp_path: Path) -> None:
    """503 with Retry-After; other methods are served on."""
    server = Server()
    runs: list[str] = []

    @server.route("/", methods=("GET", "POST"))
    async def handler(ctx: Context, req: Request) -> str:
        runs.append(req.method)
        return "ok"

    async def main() -> None:
        await bench.start()

        error: JournalError = JournalFull("the disk is full")

        def refuse(*_: Any) -> Any:
            raise error

        bench.journal.begin = refuse  # type: ignore[method-assign]
        assert (
            await bench.request("POST", b"/")
        ).response_body == b"the request could not be journaled and was not run\n"
        error = JournalPoisoned("the disk is gone")
        refused = await bench.request("POST", b"/")
        assert refused.status == 503
        assert b"it may be after a restart" in refused.response_body, "its record may have reached the disk"
        assert dict(refused.response_headers)[b"retry-after"] == b"1"
        assert (await bench.request("GET", b"/")).status == 200

    bench = Bench(tmp_path, server)
    run(main())
    assert runs == ["GET"]


def test_idle_marks_acknowledge_what_was_written(tmp_path: Path) -> None:
    """A MARK after MARK_AFTER_S without requests: damage to the last records is then told from a torn write."""
    server, _ = dying_server(deaths=0)

    async def main() -> None:
        await bench.start()
        before = bench.journal.statistics().records_total
        await bench.request("PUT", b"/work")
        after = bench.journal.statistics().records_total
        await asyncio.sleep(MARK_AFTER_S * 4)
        assert bench.journal.statistics().records_total == after + 1
        assert after == before + 3  # BEGIN, RESP, DONE

    bench = Bench(tmp_path, server)
    run(main())


# --- Replaying ------------------------------------------------------------------------------------


def test_an_idempotent_request_is_replayed_with_its_body_and_ids(tmp_path: Path) -> None:
    """PUT runs again after a crash, with the same trace and request id; then it is done."""
    server, notes = dying_server()

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/work", headers=[], body=b"abc"))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    first, second = (note.split(" ", 1) for note in notes)
    assert (first[0], second[0]) == ("0", "1")
    assert first[1] == second[1], "method, body, trace id and request id must be the same"
    assert bench.states() == ["done"]
    assert bench.entries()[0].attempts[0].crash == "killed by signal 9"
    assert bench.events.heard == [("recovering", 1), ("recovered", 201)]


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ((), "orphan"),
        (KEY, "done"),
        *(([(b"idempotency-key", blank)], "orphan") for blank in (b"", b" \t", b'""', b'" "')),
        ([(b"idempotency-key", b""), *KEY], "done"),
    ],
)
def test_post_is_replayed_only_with_a_key(tmp_path: Path, headers: Any, state: str) -> None:
    """RFC 9110 section 9.2.2; what may not run again stays visible."""
    server, notes = dying_server()

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("POST", b"/work", headers=list(headers), body=b""))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    assert bench.states() == [state]
    assert len(notes) == (2 if state == "done" else 1)


def test_a_hook_takes_the_request_and_may_run_the_original(tmp_path: Path) -> None:
    """on_recover is called instead of the handler, with ctx.recovery filled."""
    server, notes = dying_server()
    contexts: list[Any] = []

    @server.on_recover
    async def hook(ctx: Context, req: Request) -> Response:
        contexts.append(ctx.recovery)
        response: Response = await retry_original_handler(req)
        return response

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("POST", b"/work", headers=[], body=b"abc"))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    assert bench.states() == ["done"]
    assert len(notes) == 2
    recovery = contexts[0]
    assert (recovery.attempt, recovery.max_attempts, recovery.crash) == (1, 3, CRASH)
    assert recovery.fencing_token == (2 << 32) | 1
    assert not recovery.response_started


@pytest.mark.parametrize(("method", "hooked"), [("PUT", False), ("POST", True)])
def test_a_replay_has_the_path_and_query_the_live_request_had(tmp_path: Path, method: str, hooked: bool) -> None:
    """A target in absolute form (RFC 9112 section 3.2.2): the same route, hook, path and query."""
    server = Server()
    seen: list[tuple[bool, str, str, str]] = []

    @server.route("/orders/{id}", methods=("PUT", "POST"))
    async def handler(ctx: Context, req: Request) -> Response:
        seen.append((ctx.recovery is not None, req.path, req.params["id"], req.query["a"]))
        if ctx.recovery is None:
            raise Killed
        return Response(status=204)

    if hooked:

        @server.on_recover(route="/orders/{id}")
        async def hook(ctx: Context, req: Request) -> Response:
            seen.append((True, req.path, "hook", req.query["a"]))
            response: Response = await retry_original_handler(req)
            return response

    async def main() -> None:
        await bench.start()
        exchange = MemoryExchange(method, b"http://shop/orders/7?a=1", headers=[(b"host", b"shop")], body=b"")
        exchange.path, exchange.query = b"/orders/7", b"a=1"  # as the protocol sets them
        await die(bench, exchange)
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    by_hook = [(True, "/orders/7", "hook", "1")] if hooked else []
    assert seen == [(False, "/orders/7", "7", "1"), *by_hook, (True, "/orders/7", "7", "1")]
    assert [(str(entry.state), entry.status) for entry in bench.entries()] == [("done", 204)]


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/a?b", b"/a", b"b"),
        (b"/a?b=http://c/d?e", b"/a", b"b=http://c/d?e"),
        (b"//c/d", b"//c/d", b""),
        (b"http://h/a?b?c", b"/a", b"b?c"),
        (b"HTTPS://h:1", b"/", b""),
        (b"http://h?b=/c", b"/", b"b=/c"),
        (b"*", b"*", b""),
    ],
)
def test_targets_in_all_their_forms(target: bytes, path: bytes, query: bytes) -> None:
    """RFC 9112 section 3.2; a request to a server has no authority form."""
    assert JournaledRequest("r", 1, "PUT", target, []).path_and_query == (path, query)


def test_the_attempt_is_on_record_before_it_runs(tmp_path: Path) -> None:
    """A replay that kills the process is counted by the next process; at the limit it is a dead letter."""
    server, notes = dying_server(deaths=100)

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/work", headers=[], body=b""))
        for _ in range(5):
            await bench.crash()
            await asyncio.gather(asyncio.create_task(bench.recover()), return_exceptions=True)

    bench = Bench(tmp_path, server, max_attempts=2)
    run(main())
    entry = bench.entries()[0]
    assert str(entry.state) == "dead"
    assert len(entry.attempts) == 2
    assert len(notes) == 3, "the original run and two replays"
    assert bench.events.heard[-1][0] == "dead"


@pytest.mark.parametrize(
    ("outcome", "state", "attempts"),
    [
        (DeadLetter("no use"), "dead", 1),
        (Skip("by hand"), "orphan", 1),
        (Retry(0.01), "dead", 3),
        (RuntimeError("broken"), "dead", 3),
        (RuntimeError("a lone surrogate \ud800, as JSON may hold one"), "dead", 3),
        (DeadLetter(ValueError("an error in place of a text")), "dead", 1),
        (Skip(404), "orphan", 1),
    ],
)
def test_what_a_hook_may_raise(tmp_path: Path, outcome: Exception, state: str, attempts: int) -> None:
    """DeadLetter and Skip decide at once; Retry and errors use up the attempts."""
    server, _ = dying_server()
    told: list[int] = []

    @server.on_recover
    async def hook(ctx: Context, req: Request) -> None:
        raise outcome

    @server.on_dead_letter
    async def dead(ctx: Context, req: Request, made: list[Any]) -> None:
        told.append(len(made))

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/work", headers=[], body=b""))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    entry = bench.entries()[0]
    assert (str(entry.state), len(entry.attempts)) == (state, attempts)
    assert told == ([attempts] if state == "dead" else [])


def test_a_body_that_was_too_large_makes_an_orphan(tmp_path: Path) -> None:
    """recovery.body_bytes_max: the handler still got the whole body; the journal says it has none."""
    server = Server()
    seen: list[bytes] = []

    @server.put("/")
    async def handler(ctx: Context, req: Request) -> str:
        seen.append(await req.body())
        raise Killed

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/", headers=[], body=b"x" * 1001))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server, body_bytes_max=1000)
    run(main())
    assert seen == [b"x" * 1001]
    entry = bench.entries()[0]
    assert str(entry.state) == "orphan"
    assert "body_bytes_max" in entry.reason
    assert entry.request.body == b""
    assert entry.request.body_bytes == 1001, "nobody announced its length; this much came"


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 419])
def test_a_replay_without_its_credentials_is_not_taken_for_an_answer(tmp_path: Path, status: int) -> None:
    """Whatever says no to a request whose cookie was kept out of the journal: an orphan that says why."""
    server = Server()
    runs: list[bool] = []

    @server.put("/")
    async def handler(ctx: Context, req: Request) -> Response:
        runs.append("cookie" in req.headers)
        if not runs[-1]:
            return Response.text("who are you", status=status)
        raise Killed

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/", headers=[(b"cookie", b"session=x")], body=b""))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    assert runs == [True, False]
    entry = bench.entries()[0]
    assert str(entry.state) == "orphan"
    assert "cookie" in entry.reason


def answered_with(tmp_path: Path, status: int, headers: Any, **options: Any) -> LedgerEntry:
    """The entry of a PUT whose worker died in it, and whose replay answered `status`."""
    server = Server()

    @server.put("/")
    async def handler(ctx: Context, req: Request) -> Response:
        if ctx.recovery is None:
            raise Killed
        return Response(status=status)

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/", headers=list(headers), body=b""))
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server, **options)
    run(main())
    (entry,) = bench.entries()
    return entry


@pytest.mark.parametrize(("status", "headers"), [(404, ()), (302, ()), (204, [(b"cookie", b"session=x")])])
def test_an_answer_to_the_whole_request_or_a_success_is_its_end(tmp_path: Path, status: int, headers: Any) -> None:
    """Nothing was kept out of the journal, or the handler did not miss it."""
    entry = answered_with(tmp_path, status, headers)
    assert (str(entry.state), entry.status) == ("done", status)


@pytest.mark.parametrize("headers", [(), [(b"cookie", b"session=x")]])
@pytest.mark.parametrize("status", [408, 425, 429, 503])
def test_an_answer_that_means_later_is_a_failed_attempt(tmp_path: Path, status: int, headers: Any) -> None:
    """The request is tried again, and is a dead letter when its attempts are used up."""
    entry = answered_with(tmp_path, status, headers, max_attempts=1)
    assert str(entry.state) == "dead"
    assert [str(status) in attempt.error for attempt in entry.attempts] == [True]


def test_suspects_run_last_and_alone(tmp_path: Path) -> None:
    """A request whose replay already met a crash does not run beside the innocent."""
    server = Server()
    running: set[str] = set()
    together: list[frozenset[str]] = []

    @server.put("/{name}")
    async def handler(ctx: Context, req: Request) -> str:
        if ctx.recovery is None:
            raise Killed
        running.add(req.params["name"])
        together.append(frozenset(running))
        await asyncio.sleep(0.01)
        running.discard(req.params["name"])
        return "ok"

    async def main() -> None:
        await bench.start()
        for name in (b"suspect-1", b"suspect-2", b"innocent-1", b"innocent-2"):
            await die(bench, MemoryExchange("PUT", b"/" + name, headers=[], body=b""))
        await bench.crash()
        for entry in bench.journal.pending()[:2]:
            bench.journal.attempt(entry)
        await bench.crash()
        await bench.recover()

    bench = Bench(tmp_path, server)
    run(main())
    assert bench.states() == ["done"] * 4
    assert together[-2:] == [frozenset({"suspect-1"}), frozenset({"suspect-2"})]
    assert frozenset({"innocent-1", "innocent-2"}) in together


@pytest.mark.parametrize("made_of_it", [None, RuntimeError("the database connection is gone"), HTTPError(503)])
def test_cancelled_requests_stay_pending_and_are_replayed(tmp_path: Path, made_of_it: Any) -> None:
    """A stop that runs out of patience loses nothing: no end is recorded, whatever the handler makes of it."""
    server = Server()
    runs: list[int] = []

    @server.put("/")
    async def handler(ctx: Context, req: Request) -> str:
        runs.append(len(runs))
        if len(runs) == 1:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as cancelled:
                raise made_of_it or cancelled from None
        return "ok"

    async def main() -> None:
        await bench.start()
        bench.spine.begin(MemoryExchange("PUT", b"/", headers=[], body=b""))
        while not runs:
            await asyncio.sleep(0)
        bench.spine.cancel()
        await bench.spine.wait_idle()
        await bench.recorder.close()
        bench.journal.close()
        await bench.start()
        assert len(bench.journal.pending()) == 1
        await bench.recover(crash=None)

    bench = Bench(tmp_path, server)
    run(main())
    assert runs == [0, 1]
    assert bench.states() == ["done"]


def test_a_reader_sees_pending_as_such(tmp_path: Path) -> None:
    """EntryState of a request whose worker is gone and not yet replaced."""
    server, _ = dying_server()

    async def main() -> None:
        await bench.start()
        await die(bench, MemoryExchange("PUT", b"/work", headers=[], body=b""))
        await bench.crash()
        assert [entry.state for entry in bench.journal.pending()] == [EntryState.PENDING]

    bench = Bench(tmp_path, server)
    run(main())
