"""The fifo scheduler keeps the scheduler contract."""

from __future__ import annotations

import threading

import pytest

from stellane.abc import Entry, Priority
from stellane.builtin.fifo_scheduler import FifoScheduler
from stellane.errors import QueueFull


def filled(*works: int, capacity: int = 100) -> FifoScheduler:
    scheduler = FifoScheduler(capacity)
    for work in works:
        scheduler.submit(Entry(work))
    return scheduler


def drained(scheduler: FifoScheduler) -> list[int]:
    taken = []
    while (entry := scheduler.next()) is not None:
        taken.append(entry.work)
    return taken


def test_first_in_first_out_whatever_the_priority() -> None:
    scheduler = FifoScheduler(3)
    for work, priority in enumerate((Priority.LOW, Priority.URGENT, Priority.NORMAL)):
        scheduler.submit(Entry(work, priority))
    assert drained(scheduler) == [0, 1, 2]


def test_empty_gives_none_and_no_loot() -> None:
    scheduler = FifoScheduler(1)
    assert scheduler.next() is None
    assert scheduler.steal(5) == []
    assert len(scheduler) == 0


def test_full_refuses_and_keeps_what_it_has() -> None:
    scheduler = filled(1, 2, capacity=2)
    with pytest.raises(QueueFull, match="holds 2 entries, as many as it may"):
        scheduler.submit(Entry(3))
    assert drained(scheduler) == [1, 2]
    scheduler.submit(Entry(4))
    assert drained(scheduler) == [4]


def test_steal_takes_what_would_have_run_last_in_running_order() -> None:
    scheduler = filled(1, 2, 3, 4, 5)
    assert [entry.work for entry in scheduler.steal(2)] == [4, 5]
    assert drained(scheduler) == [1, 2, 3]


def test_steal_of_more_than_there_is_takes_all() -> None:
    scheduler = filled(1, 2)
    assert [entry.work for entry in scheduler.steal(10)] == [1, 2]
    assert len(scheduler) == 0


def test_steal_of_none_takes_none() -> None:
    scheduler = filled(1)
    assert scheduler.steal(0) == []
    with pytest.raises(ValueError, match="must not be negative"):
        scheduler.steal(-1)
    assert len(scheduler) == 1


def test_statistics_count_submitted_and_refused() -> None:
    scheduler = filled(1, 2, capacity=2)
    with pytest.raises(QueueFull):
        scheduler.submit(Entry(3))
    scheduler.next()
    statistics = scheduler.statistics()
    assert (statistics.waiting, statistics.capacity) == (1, 2)
    assert (statistics.submitted_total, statistics.refused_total) == (2, 1)


@pytest.mark.parametrize("capacity", [0, -1])
def test_capacity_is_at_least_one(capacity: int) -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        FifoScheduler(capacity)


def test_stealing_from_another_thread_loses_and_doubles_nothing() -> None:
    count = 20_000
    scheduler = FifoScheduler(count)
    stolen: list[int] = []
    done = threading.Event()

    def steal() -> None:
        while not done.is_set() or len(scheduler):
            stolen.extend(entry.work for entry in scheduler.steal(7))

    thief = threading.Thread(target=steal)
    thief.start()
    kept: list[int] = []
    for work in range(count):
        scheduler.submit(Entry(work))
        if work % 3 == 0 and (entry := scheduler.next()) is not None:
            kept.append(entry.work)
    kept += drained(scheduler)
    done.set()
    thief.join(timeout=30)
    assert not thief.is_alive()
    assert sorted(kept + stolen) == list(range(count))
