"""After a crash: run what the journal holds without an end.

For each pending request the policy says replay, orphan or dead letter. A replay is recorded
as an attempt before its handler exists, so that a request which kills the process is counted
by its own crash. Innocent requests run side by side; suspects, whose replay has already ended
in a process death, run last and one at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pluggy

from stellane.abc import Decision, PendingRequest, RecoveryPolicy, Step
from stellane.app.trace import parse_traceparent
from stellane.errors import JournalError, StellaneInternalError
from stellane.logging import get_logger
from stellane.recovery.context import CrashInfo, RecoveryContext
from stellane.recovery.exchange import ReplayExchange
from stellane.recovery.journal import Journal, LedgerEntry
from stellane.runtime.application import Application

CREDENTIAL_STATUSES = frozenset({401, 403})
"""Answers that mean "who are you", which a request without its secrets cannot tell."""

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
    ) -> None:
        self._journal = journal
        self._policy = policy
        self._application = application
        self._max_attempts = max_attempts
        self._attempt_timeout_s = attempt_timeout_s
        self._places = asyncio.Semaphore(concurrency)
        self._crash = crashes[-1] if crashes else None
        self._run = run
        self._hooks = hooks

    async def recover(self) -> None:
        """Bring every pending request of the journal to an end, or to a next attempt that failed too."""
        pending = {entry.entry_id: entry for entry in self._journal.pending()}
        if not pending:
            return
        plan = self._policy.plan([self._describe(entry) for entry in pending.values()])
        if {step.entry_id for step in plan.steps} != set(pending):
            raise StellaneInternalError("the recovery policy's plan does not name exactly the pending requests")
        _log.info("recovering requests", pending=len(pending), crash=str(self._crash) if self._crash else None)
        together = [step for step in plan.steps if not step.alone]
        await asyncio.gather(*(self._settle(pending[step.entry_id], step) for step in together))
        for step in plan.steps:
            if step.alone:
                await self._settle(pending[step.entry_id], step)

    def _describe(self, entry: LedgerEntry) -> PendingRequest:
        request = entry.request
        path = request.target.partition(b"?")[0]
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
        """Follow one entry from step to step until it has an end."""
        while step.decision is Decision.REPLAY:
            if step.delay_s:
                await asyncio.sleep(step.delay_s)
            async with self._places:
                outcome = await self._in_spine(self._attempt(entry))
            if outcome is None:
                return
            step = outcome
        if step.decision is Decision.DEAD_LETTER:
            await self._dead_letter(entry, step.reason)
        else:
            self._orphan(entry, step.reason)

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
                raise
            if not done.done():
                done.set_result(step)

        self._run(run())
        return await done

    async def _attempt(self, entry: LedgerEntry) -> Step | None:
        """One replay. None when it brought the request to its end, else what to do next."""
        number = self._journal.attempt(entry, crash=str(self._crash) if self._crash else "")
        self._hooks.stellane_request_recovering(entry=entry, attempt=number)
        exchange = ReplayExchange(entry.request)
        log = _log.bind(request_id=entry.request.request_id, attempt=number)
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                await self._application.recover(exchange, self._context(entry, number))
        except asyncio.CancelledError:
            raise  # the worker stops: still pending, and the attempt counts
        except Exception as error:
            self._journal.attempt_failed(entry, f"{type(error).__name__}: {error}")
            step = self._policy.after_attempt(self._describe(entry), error)
            log.warning("recovery attempt failed", error=repr(error), then=step.decision.value)
            return step
        return self._judge(entry, exchange, log)

    def _judge(self, entry: LedgerEntry, exchange: ReplayExchange, log: Any) -> Step | None:
        if exchange.aborted or not exchange.response_ended:
            error = RuntimeError("the handler ended without a complete response")
            self._journal.attempt_failed(entry, str(error))
            return self._policy.after_attempt(self._describe(entry), error)
        hooked = self._describe(entry).has_recovery_hook
        if exchange.status in CREDENTIAL_STATUSES and entry.request.redacted_names and not hooked:
            # Its credentials were kept out of the journal; "not allowed" is about them, not about it.
            names = ", ".join(entry.request.redacted_names)
            return Step(
                entry.entry_id, Decision.ORPHAN, f"needs what is not journaled ({names}); use an on_recover hook"
            )
        if exchange.status >= 500:
            error = RuntimeError(f"the handler answered {exchange.status}")
            self._journal.attempt_failed(entry, str(error))
            return self._policy.after_attempt(self._describe(entry), error)
        self._journal.done(entry, exchange.status, delivered=False)
        self._journal.flush()
        log.info("request recovered", status=exchange.status)
        self._hooks.stellane_request_recovered(entry=entry, status=exchange.status)
        return None

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
        self._hooks.stellane_request_dead_lettered(entry=entry, reason=reason)
        try:
            await self._application.dead_letter(ReplayExchange(entry.request), list(entry.attempts))
        except Exception:
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


def _idempotency_key(entry: LedgerEntry) -> str | None:
    value = next((value for name, value in entry.request.headers if name == b"idempotency-key"), None)
    return None if value is None else value.decode("latin-1")
