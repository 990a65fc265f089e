"""What workers share connections with: the load table, the inboxes, and the choices made from them."""

from __future__ import annotations

import os
import resource
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from stellane.config import RuntimeConfig
from stellane.errors import ConfigError
from stellane.runtime.choice import CHOICES
from stellane.supervisor.handover import MODES, Handover, open_handover

SLOTS = 4


def make(mode: str = "least_loaded", slots: int = SLOTS) -> Handover:
    handover = open_handover(RuntimeConfig(dispatch=mode, worker_threads=slots))
    assert handover is not None
    return handover


@pytest.fixture
def handover() -> Iterator[Handover]:
    """For four workers, all of which accept."""
    with make() as made:
        for slot in range(SLOTS):
            made.table.set_accepting(slot, True)
        yield made


def open_descriptors() -> list[str]:
    """Their numbers; that of the directory itself among them."""
    return sorted(entry.name for entry in Path("/proc/self/fd").iterdir())


def put(handover: Handover, slot: int, count: int = 1) -> None:
    with socket.socket() as connection:
        for _ in range(count):
            assert handover.inboxes.put(slot, connection)


def loads(handover: Handover) -> list[int]:
    return [handover.load_of(slot) for slot in range(SLOTS)]


def test_every_mode_has_its_choice() -> None:
    assert tuple(CHOICES) == MODES


@pytest.mark.parametrize(
    ("mode", "workers"), [("auto", 2), ("shared", 2), ("reuseport", 2), ("least_loaded", 1), ("affinity", 1)]
)
def test_what_needs_no_handover_has_none(mode: str, workers: int) -> None:
    """With one worker every mode is the same."""
    assert open_handover(RuntimeConfig(dispatch=mode, worker_threads=workers)) is None


def test_too_few_descriptors_are_told_and_none_is_left_open() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = open_descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 40, hard))
    try:
        with pytest.raises(ConfigError, match=r'"affinity" needs 200 descriptors for 100 workers: Too many open files'):
            open_handover(RuntimeConfig(dispatch="affinity", worker_threads=100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_descriptors() == before


def test_another_process_sees_the_same(handover: Handover) -> None:
    """Through the descriptors it inherits, as a worker does; each line is its slot's."""
    spec = handover.spec()
    child = os.fork()
    if child == 0:
        with Handover.attach(spec) as inherited:
            inherited.table.set_open(1, 5)
            inherited.table.set_accepting(2, False)
            inherited.table.turn = 3
            inherited.inboxes.put(3, socket.socket())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    table = handover.table
    assert [table.open_in(slot) for slot in range(SLOTS)] == [0, 5, 0, 0]
    assert [table.is_accepting(slot) for slot in range(SLOTS)] == [True, True, False, True]
    assert table.turn == 3
    assert loads(handover) == [0, 5, 0, 1]


def test_a_dead_workers_line_is_cleared_and_its_inbox_is_not(handover: Handover) -> None:
    handover.table.set_open(1, 5)
    put(handover, 1, 2)
    handover.table.clear(1)
    assert not handover.table.is_accepting(1)
    assert loads(handover) == [0, 2, 0, 0]


def test_an_inbox_gives_what_was_put_into_it_in_order(handover: Handover) -> None:
    """Each as a descriptor that a program started by the application does not inherit."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        clients = [socket.create_connection(listener.getsockname()) for _ in range(3)]
        for _ in clients:
            with listener.accept()[0] as served:
                assert handover.inboxes.put(2, served)
        assert handover.inboxes.waiting(2) == 3
        for client in clients:
            taken = handover.inboxes.take(2)
            assert taken is not None
            assert taken.getpeername() == client.getsockname()
            assert not taken.get_inheritable()
            taken.close()
            client.close()
    assert handover.inboxes.take(2) is None


def test_a_full_inbox_says_so_and_holds_a_burst(handover: Handover) -> None:
    with socket.socket() as connection:
        held = 0
        while handover.inboxes.put(0, connection):
            held += 1
        assert held == handover.inboxes.waiting(0)
        assert held >= 100
        assert handover.inboxes.put(1, connection)


def test_without_a_free_descriptor_a_connection_stays_in_the_inbox(handover: Handover) -> None:
    """The kernel would hand out the message without it otherwise, and the client would be cut."""
    put(handover, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            handover.inboxes.take(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    taken = handover.inboxes.take(0)
    assert taken is not None
    taken.close()


class TestPassingOn:
    """What the supervisor does when a successor does not start at once."""

    def test_it_goes_to_those_with_least(self, handover: Handover) -> None:
        for slot, connections in enumerate((3, 0, 0, 1)):
            handover.table.set_open(slot, connections)
        put(handover, 1, 5)
        handover.table.clear(1)
        handover.pass_on(1)
        assert loads(handover) == [3, 0, 3, 3]

    def test_with_nobody_else_it_waits(self, handover: Handover) -> None:
        for slot in range(SLOTS):
            handover.table.clear(slot)
        put(handover, 1, 2)
        handover.pass_on(1)
        assert loads(handover) == [0, 2, 0, 0]

    def test_with_full_inboxes_it_waits(self, handover: Handover) -> None:
        for slot in (1, 2, 3):
            handover.table.clear(slot)
        with socket.socket() as connection:
            while handover.inboxes.put(0, connection):
                pass
        put(handover, 1, 3)
        handover.pass_on(1)
        assert handover.inboxes.waiting(1) == 3

    def test_without_a_descriptor_it_waits(self, handover: Handover) -> None:
        put(handover, 1, 2)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            handover.pass_on(1)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert loads(handover) == [0, 2, 0, 0]


class TestLeastLoaded:
    """Open connections and those in the inbox count alike."""

    @pytest.mark.parametrize(
        ("opened", "waiting", "here", "chosen"),
        [
            ((0, 0, 0, 0), (0, 0, 0, 0), 2, 2),
            ((1, 1, 0, 0), (0, 0, 0, 0), 0, 2),
            ((1, 1, 0, 1), (0, 0, 1, 0), 3, 3),
            ((2, 1, 1, 9), (0, 1, 0, 0), 0, 2),
            ((0, 5, 5, 5), (3, 0, 0, 0), 0, 0),
            ((0, 2, 5, 5), (3, 0, 0, 0), 0, 1),
        ],
    )
    def test_the_fewest_and_here_of_equals(
        self, handover: Handover, opened: tuple[int, ...], waiting: tuple[int, ...], here: int, chosen: int
    ) -> None:
        for slot in range(SLOTS):
            handover.table.set_open(slot, opened[slot])
            put(handover, slot, waiting[slot])
        assert CHOICES["least_loaded"](handover).choose(here, "") == chosen

    def test_who_does_not_accept_is_passed_over(self, handover: Handover) -> None:
        choice = CHOICES["least_loaded"](handover)
        for slot, connections in enumerate((9, 3, 0, 1)):
            handover.table.set_open(slot, connections)
        handover.table.set_accepting(2, False)
        assert choice.choose(0, "") == 3
        # One that drains gives away whatever it can, however little it has.
        handover.table.set_open(0, 0)
        handover.table.set_accepting(0, False)
        assert choice.choose(0, "") == 3
        for slot in range(SLOTS):
            handover.table.set_accepting(slot, False)
        assert choice.choose(0, "") == 0


class TestRoundRobin:
    """One turn for all workers, not one for each."""

    def test_each_in_turn_whoever_accepts(self, handover: Handover) -> None:
        choices = [CHOICES["round_robin"](handover) for _ in range(SLOTS)]
        assert [choices[here].choose(here, "") for here in (0, 0, 3, 1, 1, 1)] == [1, 2, 3, 0, 1, 2]

    def test_who_does_not_accept_is_passed_over(self, handover: Handover) -> None:
        choice = CHOICES["round_robin"](handover)
        handover.table.set_accepting(1, False)
        assert [choice.choose(1, "") for _ in range(4)] == [2, 3, 0, 2]
        for slot in range(SLOTS):
            handover.table.set_accepting(slot, False)
        assert choice.choose(1, "") == 1


class TestAffinity:
    """By the client's address alone."""

    CLIENTS = tuple(f"10.0.{number // 250}.{number % 250}" for number in range(1000))

    def test_the_same_everywhere_and_evenly(self, handover: Handover) -> None:
        slots = [CHOICES["affinity"](handover).choose(0, client) for client in self.CLIENTS]
        assert [CHOICES["affinity"](handover).choose(3, client) for client in self.CLIENTS] == slots
        assert all(200 < count < 300 for count in Counter(slots).values())
        # Written down: a client must find its worker again after a restart, and after an update too.
        assert slots[:12] == [0, 1, 1, 1, 0, 3, 0, 0, 2, 0, 0, 2]

    def test_only_the_clients_of_one_that_is_away_move(self, handover: Handover) -> None:
        choice = CHOICES["affinity"](handover)
        before = {client: choice.choose(0, client) for client in self.CLIENTS}
        handover.table.set_accepting(2, False)
        during = {client: choice.choose(0, client) for client in self.CLIENTS}
        assert {client for client in self.CLIENTS if before[client] != during[client]} == {
            client for client in self.CLIENTS if before[client] == 2
        }
        assert {during[client] for client in self.CLIENTS if before[client] == 2} == {0, 1, 3}
        handover.table.set_accepting(2, True)
        assert {client: choice.choose(0, client) for client in self.CLIENTS} == before
