"""When a worker hangs: it is there, and neither gets ready nor says any more that its loop turns.

Time counts against a worker only while it could have spoken and the supervisor could have heard it: not while it is
stopped (SIGSTOP, a debugger), and not when the supervisor itself missed its turns (a suspended machine, a frozen
container, SIGSTOP).
"""

from __future__ import annotations

from collections.abc import Iterable

from stellane.supervisor.messages import SIGN_S_MAX, SIGNS_MIN, sign_interval_s
from stellane.supervisor.slot import Slot


class HangWatch:
    """Counts how long each worker has been silent. All times in seconds; a timeout of 0 is none.

    `hang_timeout_s` is for workers that accept connections, `start_timeout_s` for those that do not yet.
    """

    def __init__(self, hang_timeout_s: float, start_timeout_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._start_timeout_s = start_timeout_s
        # It may have begun to stand still right before its next sign: until then it was silent without being so.
        self._silence_s = hang_timeout_s + sign_interval_s(hang_timeout_s)
        timeouts = [sign_interval_s(hang_timeout_s), start_timeout_s / SIGNS_MIN]
        self._interval_s = min([SIGN_S_MAX, *(each for each in timeouts if each)])
        self._looked_at: float | None = None

    def next_look(self, now: float) -> float | None:
        """When to call `look` again; None for never."""
        if not self._hang_timeout_s and not self._start_timeout_s:
            return None
        return now if self._looked_at is None else self._looked_at + self._interval_s

    def look(self, now: float, slots: Iterable[Slot]) -> list[Slot]:
        """The slots whose worker hangs. Call it after what the workers said was heard."""
        if self._looked_at is not None and now < self._looked_at + self._interval_s:
            return []
        passed_s = 0.0 if self._looked_at is None else now - self._looked_at
        missed = passed_s > 2 * self._interval_s
        self._looked_at = now
        hanging = []
        for slot in slots:
            # Who has been told to end, or said that it will, has a deadline of its own.
            if slot.process is None or slot.kill_at is not None or not slot.watched:
                continue
            timeout_s = self._silence_s if slot.ready else self._start_timeout_s
            if missed or slot.gave_sign or slot.process.stopped:
                slot.silent_s = 0.0
            else:
                slot.silent_s += passed_s
            slot.gave_sign = False
            if timeout_s and slot.silent_s > timeout_s:
                hanging.append(slot)
        return hanging
