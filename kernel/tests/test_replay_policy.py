"""The replay policy: what is journaled, what is run again, in which order and after what delay."""

from __future__ import annotations

from typing import Any

import pytest

from stellane.abc import Decision, PendingRequest, Step
from stellane.builtin.replay_policy import RETRY_DELAY_S_MAX, ReplayPolicy
from stellane.config import RecoveryConfig
from stellane.errors import BodyNotJournaled, DeadLetter, Retry, Skip

POLICY = ReplayPolicy(RecoveryConfig().methods, max_attempts=3)


def request(entry_id: int = 1, method: str = "PUT", **known: Any) -> PendingRequest:
    facts = {
        "path": b"/",
        "attempts": 0,
        "has_idempotency_key": False,
        "has_recovery_hook": False,
        "body_journaled": True,
        "response_started": False,
    }
    return PendingRequest(entry_id=entry_id, method=method, **{**facts, **known})  # type: ignore[arg-type]


def step(pending: PendingRequest, policy: ReplayPolicy = POLICY) -> Step:
    (only,) = policy.plan([pending]).steps
    return only


@pytest.mark.parametrize(
    ("method", "journaled"),
    [("POST", True), ("PUT", True), ("PATCH", True), ("DELETE", True), ("GET", False), ("HEAD", False), ("put", False)],
)
def test_default_methods_are_journaled(method: str, journaled: bool) -> None:
    assert POLICY.should_journal(method, b"/orders") is journaled


@pytest.mark.parametrize("method", ["PUT", "DELETE", "GET", "HEAD", "OPTIONS", "TRACE"])
def test_idempotent_methods_are_replayed(method: str) -> None:
    assert step(request(method=method)) == Step(1, Decision.REPLAY, f"{method} is idempotent")


@pytest.mark.parametrize("method", ["POST", "PATCH", "LOCK"])
class TestNotIdempotent:
    def test_is_an_orphan(self, method: str) -> None:
        assert step(request(method=method)) == Step(
            1,
            Decision.ORPHAN,
            f"{method} is not idempotent, and the request has neither a recovery hook nor an Idempotency-Key",
        )

    def test_is_replayed_with_a_hook(self, method: str) -> None:
        assert step(request(method=method, has_recovery_hook=True)).decision is Decision.REPLAY

    def test_is_replayed_with_an_idempotency_key(self, method: str) -> None:
        assert step(request(method=method, has_idempotency_key=True)).decision is Decision.REPLAY


def test_lost_body_without_a_hook_is_an_orphan_even_when_idempotent() -> None:
    orphan = step(request(body_journaled=False, has_idempotency_key=True))
    assert orphan.decision is Decision.ORPHAN
    assert "recovery.body_bytes_max" in orphan.reason


def test_lost_body_with_a_hook_is_the_hooks_business() -> None:
    assert step(request(body_journaled=False, has_recovery_hook=True)).decision is Decision.REPLAY


@pytest.mark.parametrize(
    ("attempts", "decision"), [(2, Decision.REPLAY), (3, Decision.DEAD_LETTER), (4, Decision.DEAD_LETTER)]
)
def test_used_up_attempts_make_a_dead_letter(attempts: int, decision: Decision) -> None:
    assert step(request(attempts=attempts)).decision is decision


def test_dead_letter_names_the_limit() -> None:
    assert step(request(attempts=3)).reason == "all of recovery.max_recovery_attempts = 3 replays are used up"


def test_no_attempts_allowed_means_nothing_is_replayed() -> None:
    dead = step(request(), ReplayPolicy((), max_attempts=0))
    assert dead == Step(1, Decision.DEAD_LETTER, "recovery.max_recovery_attempts = 0: nothing is replayed")


def test_plan_is_in_order_of_entry_with_suspects_last_and_alone() -> None:
    plan = POLICY.plan(
        [request(4), request(1, attempts=1), request(3, method="POST"), request(2), request(5, attempts=2)]
    )
    assert [(made.entry_id, made.alone) for made in plan.steps] == [
        (2, False),
        (3, False),
        (4, False),
        (1, True),
        (5, True),
    ]


def test_every_request_has_one_step() -> None:
    assert len(POLICY.plan([request(n, attempts=n % 5) for n in range(50)]).steps) == 50
    assert POLICY.plan([]).steps == ()


class TestAfterAttempt:
    def test_error_is_tried_again_with_its_text_as_the_reason(self) -> None:
        again = POLICY.after_attempt(request(attempts=1), OSError("database is down"))
        assert again == Step(1, Decision.REPLAY, "OSError: database is down", delay_s=0.5)

    def test_delay_doubles_up_to_its_bound(self) -> None:
        policy = ReplayPolicy((), max_attempts=10_000)
        delays = [policy.after_attempt(request(attempts=n), OSError()).delay_s for n in (1, 2, 3, 7, 8, 9, 5000)]
        assert delays == [0.5, 1.0, 2.0, 32.0, RETRY_DELAY_S_MAX, RETRY_DELAY_S_MAX, RETRY_DELAY_S_MAX]
        assert RETRY_DELAY_S_MAX == 60.0

    def test_last_attempt_makes_a_dead_letter_with_both_reasons(self) -> None:
        dead = POLICY.after_attempt(request(attempts=3), OSError("database is down"))
        assert dead.decision is Decision.DEAD_LETTER
        assert dead.reason == (
            "all of recovery.max_recovery_attempts = 3 replays are used up; "
            "the last one ended with OSError: database is down"
        )

    def test_retry_names_its_own_delay(self) -> None:
        assert POLICY.after_attempt(request(attempts=1), Retry(after_s=7.5)).delay_s == 7.5
        assert POLICY.after_attempt(request(attempts=1), Retry(after_s=-1)).delay_s == 0.0

    def test_retry_does_not_pass_the_limit(self) -> None:
        assert POLICY.after_attempt(request(attempts=3), Retry()).decision is Decision.DEAD_LETTER

    def test_dead_letter_and_skip_are_final_at_any_attempt(self) -> None:
        assert POLICY.after_attempt(request(attempts=1), DeadLetter("bad order")) == Step(
            1, Decision.DEAD_LETTER, "bad order"
        )
        assert POLICY.after_attempt(request(attempts=3), Skip("by hand")) == Step(1, Decision.ORPHAN, "by hand")

    def test_missing_body_is_not_tried_again(self) -> None:
        assert POLICY.after_attempt(request(attempts=1), BodyNotJournaled()).decision is Decision.ORPHAN
