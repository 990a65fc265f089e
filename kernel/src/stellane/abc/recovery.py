"""The recovery policy contract: which requests are journaled, and what becomes of them after a crash."""

from __future__ import annotations

import abc
import enum
from collections.abc import Sequence
from dataclasses import dataclass, field


class EntryState(enum.StrEnum):
    """Where a journaled request stands. DONE, FAILED, DEAD and ORPHAN are terminal."""

    RUNNING = "running"
    PENDING = "pending"
    RECOVERING = "recovering"
    DONE = "done"
    FAILED = "failed"
    DEAD = "dead"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class PendingRequest:
    """What a policy may know of a request that had no end when its worker died."""

    entry_id: int
    method: str
    path: bytes
    attempts: int
    has_idempotency_key: bool
    has_recovery_hook: bool
    body_journaled: bool
    response_started: bool


class Decision(enum.StrEnum):
    """What to do with one pending request."""

    REPLAY = "replay"
    DEAD_LETTER = "dead-letter"
    ORPHAN = "orphan"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a recovery plan.

    `alone` requests run one at a time with no other replay beside them, each for the first time
    after all others had a first replay. Who has a `delay_s` (seconds) keeps nobody waiting.
    """

    entry_id: int
    decision: Decision
    reason: str = ""
    alone: bool = False
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with every pending request, in order."""

    steps: Sequence[Step] = field(default_factory=tuple)


class RecoveryPolicy(abc.ABC):
    """Decides; never runs anything and never touches the journal."""

    @abc.abstractmethod
    def should_journal(self, method: str, path: bytes) -> bool:
        """Whether a request is journaled when its route does not say. Called once per request."""

    @abc.abstractmethod
    def plan(self, pending: Sequence[PendingRequest]) -> Plan:
        """One Step for each pending request; a missing or unknown entry_id is an internal error."""

    @abc.abstractmethod
    def after_attempt(self, request: PendingRequest, error: BaseException) -> Step:
        """What becomes of a request whose replay raised `error`; `attempts` counts that replay."""
