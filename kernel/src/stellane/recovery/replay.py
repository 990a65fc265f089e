"""After a crash: run what the journal holds without an end.

For each pending request the policy says replay, orphan or dead letter. A replay is recorded
as an attempt before its handler exists, so that a request which kills the process is counted
by its own crash. Innocent requests run side by side; suspects, whose replay has already ended
in a process death, run after the first replay of each of the others, and with none beside them.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pluggy

from stellane.abc import Decision, EntryState, PendingRequest, RecoveryPolicy, Step
from stellane.app.trace import parse_traceparent
from stellane.errors import JournalError, JournalFull, StellaneInternalError
from stellane.logging import get_logger
from stellane.recovery.context import CrashInfo, RecoveryContext
from stellane.recovery.exchange import ReplayExchange
from stellane.recovery.journal import Journal, LedgerEntry
from stellane.recovery.replay_places import ReplayPlaces
from stellane.runtime.application import Application

LATER_STATUSES = frozenset({408, 425, 429})
"""Answers below 500 that mean "not at this time" (RFC 9110, 8470 and 6585): no end of the work."""

JOURNAL_FULL_RETRY_S = 5.0
"""A step that the journal had no space to record is taken again after this long, seconds."""

_log = get_logger("stellane.recovery")


class Replayer:
    """Recovers the pending requests of one journal in one worker."""

    def __init__(
        self,
        journal: Journal,
        policy: RecoveryPolicy,
        application: Application,
        *,
        max_attempts: int,
        attempt_timeout_s: float,
        concurrency: int,
        crashes: Sequence[CrashInfo],
        run: Callable[[Coroutine[Any, Any, None]], None],
        hooks: pluggy.HookRelay,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """`run` runs an attempt as a request; `stopping` says whether such requests are being cancelled for a stop."""
        self._journal = journal
        self._policy = policy
        self._application = application
        self._max_attempts = max_attempts
        self._attempt_timeout_s = attempt_timeout_s
        self._places = ReplayPlaces(concurrency)
        self._crash = crashes[-1] if crashes else None
        self._run = run
        self._hooks = hooks
        self._stopping = stopping

    async def recover(self) -> None:
        """Bring every pending request of the journal to an end, or to a next attempt that failed too."""
        pending = {entry.entry_id: entry for entry in self._journal.pending()}
        if not pending:
            return
        plan = self._policy.plan([self._describe(entry) for entry in pending.values()])
        if {step.entry_id for step in plan.steps} != set(pending):
            raise StellaneInternalError("the recovery policy's plan does not name exactly the pending requests")
        _log.info("recovering requests", pending=len(pending), crash=str(self._crash) if self._crash else None)
        try:
            async with asyncio.TaskGroup() as group:
                # Places are had in the order in which they are asked for: the suspects come last.
                for step in sorted(plan.steps, key=lambda step: step.alone):
                    group.create_task(self._settle(pending[step.entry_id], step))
        except ExceptionGroup as stopped:
            raise stopped.exceptions[0] from None

    def _describe(self, entry: LedgerEntry) -> PendingRequest:
        request = entry.request
        path, _ = request.path_and_query
        return PendingRequest(
            entry_id=entry.entry_id,
            method=request.method,
            path=path,
            attempts=len(entry.attempts),
            has_idempotency_key=_idempotency_key(entry) is not None,
            has_recovery_hook=self._application.has_recovery_hook(request.method, path),
            body_journaled=not request.body_omitted,
            response_started=entry.response_started,
        )

    async def _settle(self, entry: LedgerEntry, step: Step) -> None:
        """Follow one entry from step to step until it has an end.

        Only an error that no other entry can escape gets out: the journal takes no more records,
        or this task itself was cancelled.
        """
        while True:
            try:
                then = await self._take(entry, step)
            except JournalFull as error:
                _log.warning("recovery waits for space", request_id=entry.request.request_id, error=str(error))
                then = dataclasses.replace(step, delay_s=JOURNAL_FULL_RETRY_S)
            except (JournalError, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                if _cancelled():
                    raise
                _log.error(
                    "a request could not be recovered; the next start tries again",
                    request_id=entry.request.request_id,
                    exc_info=error,
                )
                return
            if then is None:
                return
            step = dataclasses.replace(then, alone=step.alone or then.alone)

    async def _take(self, entry: LedgerEntry, step: Step) -> Step | None:
        """Take one step. None when it brought the request to its end, else what to do next."""
        if step.delay_s:
            await asyncio.sleep(step.delay_s)
        if step.decision is Decision.DEAD_LETTER:
            await self._dead_letter(entry, step.reason)
            return None
        if step.decision is Decision.ORPHAN:
            self._orphan(entry, step.reason)
            return None
        async with self._places.all() if step.alone else self._places.one():
            try:
                return await self._in_spine(self._attempt(entry))
            except asyncio.CancelledError as error:
                # Whoever awaits a cancelled future, or cancels its own task, raises this too. A
                # worker that stops cancels recovery first.
                if _cancelled() or entry.state is not EntryState.RECOVERING:
                    raise
                return self._failed(entry, error)

    async def _in_spine(self, work: Coroutine[Any, Any, Step | None]) -> Step | None:
        """Run an attempt as the spine runs a request, in a context and task of its own."""
        done: asyncio.Future[Step | None] = asyncio.get_running_loop().create_future()

        async def run() -> None:
            try:
                step = await work
            except BaseException as error:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # retrieved here: on cancellation nobody awaits it any more
                    if isinstance(error, Exception):
                        return
                raise
            if not done.done():
                done.set_result(step)

        self._run(run())
        return await done

    async def _attempt(self, entry: LedgerEntry) -> Step | None:
        """One replay. None when it brought the request to its end, else what to do next."""
        number = self._journal.attempt(entry, crash=str(self._crash) if self._crash else "")
        self._tell(self._hooks.stellane_request_recovering, entry=entry, attempt=number)
        exchange = ReplayExchange(entry.request)
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                await self._application.recover(exchange, self._context(entry, number))
        except asyncio.CancelledError:
            if self._cut_off():
                self._take_back(entry)
            raise
        except Exception as error:
            return self._failed(entry, error)
        return self._judge(entry, exchange)

    def _cut_off(self) -> bool:
        """Whether this task is cancelled because the worker stops. A handler may also cancel its own, at any time:
        that is a failure, or the request would be tried for ever."""
        return self._stopping() and _cancelled()

    def _take_back(self, entry: LedgerEntry) -> None:
        """The attempt that runs does not count: restarts in the middle of a long replay say nothing about it."""
        request_id = entry.request.request_id
        try:
            self._journal.attempt_cut_off(entry)
        except JournalError as error:
            _log.warning("a replay that the stop cut off counts as an attempt", request_id=request_id, error=str(error))
        else:
            _log.info("the stop cut off a replay; the next start runs it again", request_id=request_id)

    def _failed(self, entry: LedgerEntry, error: BaseException) -> Step | None:
        """The attempt that runs has failed; what to do next."""
        if self._cut_off():
            # Handlers make errors of their own, and 500s, of a cancellation.
            self._take_back(entry)
            return None
        request_id, number = entry.request.request_id, len(entry.attempts)
        try:
            self._journal.attempt_failed(entry, f"{type(error).__name__}: {error}")
        except JournalFull:
            # That it was made is on record, and counts; only how it ended is not.
            _log.warning("no space to record how an attempt failed", request_id=request_id, attempt=number)
        step = self._policy.after_attempt(self._describe(entry), error)
        _log.warning(
            "recovery attempt failed",
            request_id=request_id,
            attempt=number,
            error=repr(error),
            then=step.decision.value,
        )
        return step

    def _judge(self, entry: LedgerEntry, exchange: ReplayExchange) -> Step | None:
        if exchange.aborted or not exchange.response_ended:
            return self._failed(entry, RuntimeError("the handler ended without a complete response"))
        if exchange.status >= 500 or exchange.status in LATER_STATUSES:
            return self._failed(entry, RuntimeError(f"the handler answered {exchange.status}"))
        names = ", ".join(entry.request.redacted_names)
        if names and not 200 <= exchange.status <= 299 and not self._describe(entry).has_recovery_hook:
            # Its secrets were kept out of the journal, and applications turn away a stranger with
            # anything: a redirect to the login page, 400 or 419 for a missing token, 404.
            return Step(
                entry.entry_id,
                Decision.ORPHAN,
                f"answered {exchange.status} without what is not journaled ({names}); use an on_recover hook",
            )
        self._journal.done(entry, exchange.status, delivered=False)
        # A full disk holds the ending back until there is space; to take the step again for it
        # would run the request again.
        with contextlib.suppress(JournalFull):
            self._journal.flush()
        _log.info(
            "request recovered",
            request_id=entry.request.request_id,
            attempt=len(entry.attempts),
            status=exchange.status,
        )
        self._tell(self._hooks.stellane_request_recovered, entry=entry, status=exchange.status)
        return None

    def _tell(self, hook: Callable[..., Any], **facts: Any) -> None:
        """Tell the extensions; one that fails does not decide the fate of a request."""
        try:
            hook(**facts)
        except Exception:
            _log.exception("an extension's hook failed")

    def _context(self, entry: LedgerEntry, number: int) -> RecoveryContext:
        request = entry.request
        original = parse_traceparent(request.traceparent)
        return RecoveryContext(
            request_id=request.request_id,
            attempt=number,
            max_attempts=self._max_attempts,
            first_received_ns=request.received_ns,
            crash=self._crash,
            response_started=entry.response_started,
            idempotency_key=_idempotency_key(entry),
            fencing_token=(self._journal.epoch << 32) | number,
            traceparent=request.traceparent,
            original_span_id=original.span_id if original else None,
            redacted=request.redacted_names,
        )

    async def _dead_letter(self, entry: LedgerEntry, reason: str) -> None:
        self._journal.dead(entry, reason)
        _log.error("request dead-lettered", request_id=entry.request.request_id, reason=reason)
        self._tell(self._hooks.stellane_request_dead_lettered, entry=entry, reason=reason)
        try:
            await self._application.dead_letter(ReplayExchange(entry.request), list(entry.attempts))
        except (Exception, asyncio.CancelledError):
            if _cancelled():
                raise
            _log.exception("the on_dead_letter hook failed", request_id=entry.request.request_id)

    def _orphan(self, entry: LedgerEntry, reason: str) -> None:
        self._journal.orphan(entry, reason)
        _log.warning("request kept as an orphan", request_id=entry.request.request_id, reason=reason)


async def recover_all(replayers: Sequence[Replayer]) -> None:
    """Recover several journals side by side; a journal that fails does not stop the others."""

    async def one(replayer: Replayer) -> None:
        try:
            await replayer.recover()
        except JournalError as error:
            _log.error("recovery stopped: the journal does not take records", error=str(error))

    await asyncio.gather(*(one(replayer) for replayer in replayers))


def _cancelled() -> bool:
    """Whether somebody cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _idempotency_key(entry: LedgerEntry) -> str | None:
    """The client's key; a blank one, quoted or not, tells no request from another and is none."""
    values = (value for name, value in entry.request.headers if name == b"idempotency-key")
    key = next((value for value in values if value.strip(b' \t"')), None)
    return None if key is None else key.decode("latin-1")
