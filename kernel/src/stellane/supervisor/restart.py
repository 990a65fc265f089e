"""When a dead worker is started again. Arithmetic only: no clock, no process."""

from __future__ import annotations

_DOUBLINGS_MAX = 64
"""Beyond this the delay has long reached any maximum, and a float would overflow later."""


class RestartPolicy:
    """The delay before each replacement in one slot.

    A worker that lived `reset_s` after it became ready is replaced at once, and the slot's
    record is clean again. Otherwise the death is young: the first one in a row of a worker
    that had become ready is also replaced at once, because the listener waits for nobody and
    most crashes are single; each further one waits `delay_s`, doubling up to `delay_s_max`.
    A worker that never became ready waits from its first death on. There is no last attempt:
    with every slot down the server goes on trying at `delay_s_max`, and a supervisor above it
    sees that from readiness and the log.

    All times in seconds. `delay_s` = 0 turns the delays off.
    """

    def __init__(self, delay_s: float, delay_s_max: float, reset_s: float) -> None:
        self._delay_s = delay_s
        self._delay_s_max = delay_s_max
        self._reset_s = reset_s
        self._young_deaths = 0

    def delay_after_death(self, ready_s: float | None) -> float:
        """Return the delay in seconds after a death.

        `ready_s` is how long the process lived after it became ready, None if it never did.
        """
        if ready_s is not None and ready_s >= self._reset_s:
            self._young_deaths = 0
            return 0.0
        if ready_s is None:
            self._young_deaths = max(self._young_deaths, 1)
        earlier = self._young_deaths
        self._young_deaths += 1
        if earlier == 0:
            return 0.0
        doublings = min(earlier - 1, _DOUBLINGS_MAX)
        return min(self._delay_s * 2.0**doublings, self._delay_s_max)
