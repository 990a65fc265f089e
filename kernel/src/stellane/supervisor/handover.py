"""What the workers need to share connections among them: a mode, a load table, an inbox each.

The supervisor makes it before the first worker and keeps it until the last one has ended.
"""

from __future__ import annotations

import os
from types import TracebackType

import msgspec

from stellane.config import RuntimeConfig
from stellane.errors import ConfigError
from stellane.supervisor.inboxes import InboxDescriptors, Inboxes
from stellane.supervisor.load_table import LoadTable, table_bytes

MODES = ("least_loaded", "round_robin", "affinity")
"""The words of runtime.dispatch with which a connection may be handed to another worker."""


class HandoverSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Handover as a worker process inherits it."""

    mode: str
    table_fd: int
    inboxes: list[InboxDescriptors]

    def descriptors(self) -> list[int]:
        """Every descriptor's number."""
        return [self.table_fd, *(number for inbox in self.inboxes for number in inbox)]


class Handover:
    """One process's hold of it. A context manager that lets go."""

    def __init__(self, mode: str, slots: int, table: LoadTable, inboxes: Inboxes, table_fd: int = -1) -> None:
        self.mode = mode
        self.slots = slots
        self.table = table
        self.inboxes = inboxes
        self._table_fd = table_fd

    @classmethod
    def attach(cls, spec: HandoverSpec) -> Handover:
        """In a worker: take what was inherited. The table's descriptor is closed, its memory stays."""
        table = LoadTable(spec.table_fd, len(spec.inboxes))
        os.close(spec.table_fd)
        return cls(spec.mode, len(spec.inboxes), table, Inboxes.attach(spec.inboxes))

    def spec(self) -> HandoverSpec:
        """For `attach` in a process that inherits the descriptors. For the one that created it only."""
        return HandoverSpec(mode=self.mode, table_fd=self._table_fd, inboxes=self.inboxes.descriptors())

    def pass_on(self, slot: int) -> None:
        """Give what waits for a slot without a worker to those that accept, the least loaded first.

        With none, or with inboxes that take no more, it goes on waiting. So it does when this
        process has no descriptor left to take it with.
        """
        accepting = [number for number in range(self.slots) if self.table.is_accepting(number)]
        for _ in range(self.inboxes.waiting(slot) if accepting else 0):
            try:
                connection = self.inboxes.take(slot)
            except OSError:
                return
            if connection is None:
                return
            with connection:
                least = min(accepting, key=self.load_of)
                # Back at the end of its own inbox there is room: it has just come out of it.
                if not self.inboxes.put(least, connection):
                    self.inboxes.put(slot, connection)

    def load_of(self, slot: int) -> int:
        """The slot's connections, open or waiting in its inbox."""
        # In this order: a connection that is taken from the inbox in between is missed rather than counted twice.
        # One too few sends at most one connection too many there; one too many would keep one where it is that
        # makes a difference of two.
        return self.table.open_in(slot) + self.inboxes.waiting(slot)

    def close(self) -> None:
        """Close the table and this process's ends of the inboxes."""
        self.table.close()
        self.inboxes.close()
        if self._table_fd != -1:
            os.close(self._table_fd)

    def __enter__(self) -> Handover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_handover(runtime: RuntimeConfig) -> Handover | None:
    """Make what runtime.dispatch needs, or None: for the other modes, and for a single worker.

    Raises ConfigError when the system has too little of something for that many workers.
    """
    mode, slots = runtime.dispatch, runtime.worker_threads
    if mode not in MODES or slots == 1:
        return None
    table_fd = -1
    try:
        table_fd = os.memfd_create("stellane-load-table")
        os.ftruncate(table_fd, table_bytes(slots))
        inboxes = Inboxes.create(slots)
        return Handover(mode, slots, LoadTable(table_fd, slots), inboxes, table_fd)
    except OSError as error:
        if table_fd != -1:
            os.close(table_fd)
        raise ConfigError(
            f'runtime.dispatch = "{mode}" needs {2 * slots} descriptors for {slots} workers: {error.strerror}. '
            'Raise the limit (ulimit -n), take fewer workers, or dispatch = "shared"'
        ) from error
