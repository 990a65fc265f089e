"""Recovery policy `replay`: run again what may be run again, keep the rest where it can be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stellane.abc import Decision, PendingRequest, Plan, RecoveryPolicy, Step
from stellane.config.schema import Config
from stellane.errors import BodyNotJournaled, DeadLetter, Retry, Skip
from stellane.hookspecs import hookimpl

stellane_api_level = 1

RETRY_DELAY_S = 0.5
"""Delay before the attempt that follows the first failed one; doubles with each further failure."""

RETRY_DELAY_S_MAX = 60.0

IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""RFC 9110 section 9.2.2: running one of these twice is meant to do no more than running it once."""


@hookimpl
def stellane_create_recovery(options: Any, config: Config) -> RecoveryPolicy:  # noqa: ARG001 - it has no options
    """The policy of one worker."""
    return ReplayPolicy(config.recovery.methods, config.recovery.max_recovery_attempts)


class ReplayPolicy(RecoveryPolicy):
    """Replays each request at most `max_attempts` times; journals the methods in `methods`."""

    def __init__(self, methods: Sequence[str], max_attempts: int) -> None:
        self._methods = frozenset(methods)
        self._max_attempts = max_attempts

    def should_journal(self, method: str, path: bytes) -> bool:  # noqa: ARG002 - any path alike
        return method in self._methods

    def plan(self, pending: Sequence[PendingRequest]) -> Plan:
        steps = [self._step(request) for request in sorted(pending, key=lambda request: request.entry_id)]
        # A request that was running again when its worker died may be what kills it: after
        # all others, so that it cannot take them with it, and by itself, so that we know.
        steps.sort(key=lambda step: step.alone)
        return Plan(steps=tuple(steps))

    def after_attempt(self, request: PendingRequest, error: BaseException) -> Step:
        entry_id = request.entry_id
        if isinstance(error, DeadLetter):
            return Step(entry_id, Decision.DEAD_LETTER, error.reason)
        if isinstance(error, Skip):
            return Step(entry_id, Decision.ORPHAN, error.reason)
        if isinstance(error, BodyNotJournaled):
            # no later attempt can find what was never kept
            return Step(entry_id, Decision.ORPHAN, "its body was not journaled and the recovery hook asked for it")
        reason = f"{type(error).__name__}: {error}"
        if request.attempts >= self._max_attempts:
            return Step(entry_id, Decision.DEAD_LETTER, f"{self._used_up()}; the last one ended with {reason}")
        delay_s = max(0.0, error.after_s) if isinstance(error, Retry) else _delay_s(request.attempts)
        return Step(entry_id, Decision.REPLAY, reason, delay_s=delay_s)

    def _step(self, request: PendingRequest) -> Step:
        entry_id = request.entry_id
        if request.attempts >= self._max_attempts:
            return Step(entry_id, Decision.DEAD_LETTER, self._used_up())
        if not request.body_journaled and not request.has_recovery_hook:
            return Step(
                entry_id,
                Decision.ORPHAN,
                "its body is larger than recovery.body_bytes_max and was not journaled, and there is no recovery hook",
            )
        if reason := _may_run_again(request):
            return Step(entry_id, Decision.REPLAY, reason, alone=request.attempts >= 1)
        return Step(
            entry_id,
            Decision.ORPHAN,
            f"{request.method} is not idempotent, and the request has neither a recovery hook nor an Idempotency-Key",
        )

    def _used_up(self) -> str:
        if self._max_attempts == 0:
            return "recovery.max_recovery_attempts = 0: nothing is replayed"
        return f"all of recovery.max_recovery_attempts = {self._max_attempts} replays are used up"


def _may_run_again(request: PendingRequest) -> str:
    """Why a request may run a second time; "" when it may not."""
    if request.has_recovery_hook:
        return "a recovery hook takes it"
    if request.method in IDEMPOTENT_METHODS:
        return f"{request.method} is idempotent"
    if request.has_idempotency_key:
        return "it carries an Idempotency-Key"
    return ""


def _delay_s(attempts: int) -> float:
    # the exponent is bounded before it is used: 2.0 ** 1100 is an OverflowError
    return float(min(RETRY_DELAY_S_MAX, RETRY_DELAY_S * 2 ** min(max(attempts - 1, 0), 16)))
