"""What a recovered request knows of its own past."""

from __future__ import annotations

import msgspec


class CrashInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker process ended, as the supervisor saw it."""

    slot: int
    """The worker's slot number, from 0."""
    pid: int
    cause: str
    """"signal", "exit", "oom", "hang", or "unknown" when the supervisor died with it."""
    signal: int = 0
    exit_code: int = 0
    at_ns: int = 0
    """Wall-clock time, nanoseconds since the epoch."""

    def __str__(self) -> str:
        if self.cause == "signal":
            return f"killed by signal {self.signal}"
        if self.cause == "oom":
            return "killed by the kernel: out of memory"
        if self.cause == "hang":
            return "killed because it hung"
        if self.cause == "exit":
            return f"exited with code {self.exit_code}"
        return "ended unseen"


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded replay of a request. `error` is "" while it runs or when its process died."""

    number: int
    started_ns: int
    error: str = ""
    crash: str = ""


class RecoveryContext(msgspec.Struct, frozen=True, kw_only=True):
    """What `ctx.recovery` holds in a replayed request; None in an ordinary one."""

    request_id: str
    attempt: int
    """1 for the first replay; already on record when the handler sees it."""
    max_attempts: int
    first_received_ns: int
    crash: CrashInfo | None
    response_started: bool
    """The client may have seen the beginning of an answer."""
    idempotency_key: str | None
    fencing_token: int
    """Grows with every attempt of any request: epoch << 32 | attempt. Let a store refuse older ones."""
    traceparent: str | None
    """The trace context of the original request; the replay has a new span linked to it."""
    original_span_id: str | None
    redacted: tuple[str, ...] = ()
    """Names of header fields and query parameters that were kept out of the journal."""
