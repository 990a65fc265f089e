"""Which worker a connection goes to: one class for each word of runtime.dispatch that means one.

`choose(here, client)` is called by worker `here` with the client's address, without a port.
It returns a slot that takes connections, or `here` when no other does.
"""

from __future__ import annotations

import abc
import hashlib
from functools import lru_cache

from stellane.supervisor.handover import Handover

REMEMBERED_CLIENTS_MAX = 4096
"""Clients whose order of slots is remembered."""


class Choice(abc.ABC):
    """Decides for one worker; sees the others through the load table."""

    def __init__(self, handover: Handover) -> None:
        self._table = handover.table
        self._slots = handover.slots
        self._load_of = handover.load_of

    @abc.abstractmethod
    def choose(self, here: int, client: str) -> int:
        """See the module's docstring."""


class LeastLoaded(Choice):
    """The fewest connections, open or waiting in the inbox; of equals the accepting worker."""

    def choose(self, here: int, client: str) -> int:  # noqa: ARG002 - every client is alike
        table = self._table
        chosen, least = here, self._load_of(here) if table.is_accepting(here) else None
        for slot in range(self._slots):
            # What waits is asked of the kernel only where it can matter: this runs for every connection.
            if slot == here or not table.is_accepting(slot) or (least is not None and table.open_in(slot) >= least):
                continue
            load = self._load_of(slot)
            if least is None or load < least:
                chosen, least = slot, load
        return chosen


class RoundRobin(Choice):
    """Each in turn, over all workers that accept; how long connections last plays no part."""

    def choose(self, here: int, client: str) -> int:  # noqa: ARG002 - every client is alike
        table = self._table
        last = table.turn
        for step in range(1, self._slots + 1):
            slot = (last + step) % self._slots
            if table.is_accepting(slot):
                table.turn = slot
                return slot
        return here


class Affinity(Choice):
    """A client's connections go to one worker, to another only while that one takes none.

    Rendezvous hashing: each client has an order of the slots of its own, the same in every
    process and every run, so a worker that is away moves no client but its own.
    """

    def __init__(self, handover: Handover) -> None:
        super().__init__(handover)
        self._order = lru_cache(REMEMBERED_CLIENTS_MAX)(self._order_for)

    def choose(self, here: int, client: str) -> int:
        return next((slot for slot in self._order(client) if self._table.is_accepting(slot)), here)

    def _order_for(self, client: str) -> tuple[int, ...]:
        def weight(slot: int) -> bytes:
            return hashlib.blake2b(f"{slot} {client}".encode(), digest_size=8).digest()

        return tuple(sorted(range(self._slots), key=weight))


CHOICES: dict[str, type[Choice]] = {"least_loaded": LeastLoaded, "round_robin": RoundRobin, "affinity": Affinity}
"""By the word of runtime.dispatch."""
