"""The back-off table: what follows which death."""

from __future__ import annotations

import pytest

from stellane.supervisor.restart import RestartPolicy

NEVER = None  # died before it was ready
YOUNG = 1.0  # seconds it lived after it was ready; below reset_s = 10
OLD = 10.0


@pytest.mark.parametrize(
    ("deaths", "delays"),
    [
        pytest.param([YOUNG], [0.0], id="the first death of a ready worker costs nothing"),
        pytest.param([YOUNG] * 7, [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0], id="then the delay doubles up to its maximum"),
        pytest.param([NEVER] * 6, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], id="never ready: it waits from the first on"),
        pytest.param([YOUNG, NEVER, YOUNG], [0.0, 0.1, 0.2], id="both kinds count in one row"),
        pytest.param([NEVER, YOUNG], [0.1, 0.2], id="being ready briefly forgives nothing"),
        pytest.param([OLD, OLD, OLD], [0.0, 0.0, 0.0], id="an old worker is replaced at once, every time"),
        pytest.param([YOUNG, YOUNG, OLD, YOUNG, YOUNG], [0.0, 0.1, 0.0, 0.0, 0.1], id="an old death clears the record"),
        pytest.param([9.999, 9.999], [0.0, 0.1], id="just below reset_s is young"),
    ],
)
def test_back_off(deaths: list[float | None], delays: list[float]) -> None:
    policy = RestartPolicy(delay_s=0.1, delay_s_max=1.0, reset_s=10.0)
    assert [policy.delay_after_death(ready_s) for ready_s in deaths] == pytest.approx(delays)


def test_delay_zero_means_no_delay() -> None:
    policy = RestartPolicy(delay_s=0.0, delay_s_max=30.0, reset_s=10.0)
    assert {policy.delay_after_death(NEVER) for _ in range(10)} == {0.0}


def test_thousands_of_deaths_do_not_overflow() -> None:
    policy = RestartPolicy(delay_s=0.1, delay_s_max=30.0, reset_s=10.0)
    for _ in range(5000):
        delay = policy.delay_after_death(NEVER)
    assert delay == 30.0


def test_a_first_delay_above_the_maximum_is_cut() -> None:
    assert RestartPolicy(delay_s=5.0, delay_s_max=2.0, reset_s=10.0).delay_after_death(NEVER) == 2.0
