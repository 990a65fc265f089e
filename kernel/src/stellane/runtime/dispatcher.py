"""Connections shared among the workers: accepted once, by whichever worker is first, and served by the chosen one.

Before a byte of it is read a connection is served here or put into the inbox of another worker.
An inbox that takes no more means: serve it here. What reaches the inbox of this worker is
served here without a further choice, or it might go round for ever; only a drain passes it on.

Accepting is done in a callback of add_reader and not in a task around loop.sock_accept: a task
that is cancelled at the wrong moment loses the connection it was just given, and removing a
reader loses nothing. Every backend has add_reader.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from stellane.logging import get_logger
from stellane.recovery.forked_child import call_in_forked_child
from stellane.runtime.choice import CHOICES
from stellane.supervisor.handover import Handover

CONNECTIONS_PER_TURN_MAX = 64
"""New connections taken in one turn of the loop, so that those it has are not kept waiting."""
PAUSE_S = 1.0
"""After an accept that failed, for want of descriptors usually, seconds; asyncio waits as long."""

_log = get_logger("stellane.worker")


class Dispatcher:
    """One worker's part in it. All methods run on the loop's thread.

    `factory` is the protocol's connection factory. The protocol must tell `count` of each change
    in how many connections it has (Protocol.watch_connections).
    """

    def __init__(
        self,
        handover: Handover,
        slot: int,
        *,
        listeners: Sequence[socket.socket],
        factory: Callable[[], asyncio.Protocol],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._table = handover.table
        self._inboxes = handover.inboxes
        self._choice = CHOICES[handover.mode](handover)
        self._slot = slot
        self._slots = handover.slots
        self._listeners = list(listeners)
        self._factory = factory
        self._loop = loop
        self._connections = 0
        self._uncounted = 0
        self._arriving: dict[socket.socket, asyncio.Task[None]] = {}
        self._resuming: asyncio.TimerHandle | None = None
        # A child of a handler's must hold neither the inboxes nor a client that has no connection object yet.
        call_in_forked_child(self._let_go)
        for listener in self._listeners:
            listener.setblocking(False)  # another worker may be faster; create_server does the same

    def open(self) -> None:
        """Take connections from now on, beginning with what waited in the inbox for this process to start."""
        self._resuming = None
        for listener in self._listeners:
            self._loop.add_reader(listener, self._accept_from, listener)
        self._loop.add_reader(self._inboxes.exit_of(self._slot), self._take_handed)
        # A drain leaves no listener, and takes from the inbox only what had been sent before it began.
        self._table.set_accepting(self._slot, bool(self._listeners))

    def count(self, connections: int) -> None:
        """The protocol has this many connections."""
        if connections > self._connections and self._uncounted:
            self._uncounted -= 1
        self._connections = connections
        self._publish()

    async def drain(self, *, pass_on: bool) -> None:
        """Accept no more; take what is in the inboxes; return when all of that has reached the protocol.

        It is served here, also what waits for others: when the whole run stops, one of them may hang and never look.
        With `pass_on`, for a worker that can not do its work, what is in its own inbox goes to the others while they
        take it. The backlog of the listeners is left to the other workers and to the next one.
        """
        # First of all: whoever puts something into the inbox looks afterwards whether this was said in between,
        # and takes it back. So nothing stays in there once it has been emptied below.
        self._table.set_accepting(self._slot, False)
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners = []
        for slot in [self._slot] if pass_on else range(self._slots):
            while (connection := self._take(slot)) is not None:
                if not (pass_on and self._hand_over(connection, _client_of(connection))):
                    self._serve(connection)
        # The protocol drains next. It can tell a request that has arrived from an idle connection, once it has that.
        await self._wait_arrived()

    async def finish(self) -> None:
        """Take nothing any more, and return when what was taken has reached the protocol."""
        self.close()
        await self._wait_arrived()

    async def _wait_arrived(self) -> None:
        if self._arriving:
            await asyncio.wait(self._arriving.values())

    def close(self) -> None:
        """Take nothing any more; also when start-up failed after `open`."""
        self._stop_taking()
        if self._resuming is not None:
            self._resuming.cancel()

    # --- Where they come from -------------------------------------------------------------------

    def _accept_from(self, listener: socket.socket) -> None:
        for _ in range(CONNECTIONS_PER_TURN_MAX):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return  # another worker was faster
            except ConnectionAbortedError:
                continue  # the client was, and has gone again
            except OSError as error:
                self._pause(error)
                return
            connection.setblocking(False)
            if not self._hand_over(connection, _host(address)):
                self._serve(connection)

    def _take_handed(self) -> None:
        for _ in range(CONNECTIONS_PER_TURN_MAX):
            connection = self._take(self._slot)
            if connection is None:
                return
            self._serve(connection)

    def _take(self, slot: int) -> socket.socket | None:
        try:
            return self._inboxes.take(slot)
        except OSError as error:
            self._pause(error)
            return None

    def _pause(self, error: OSError) -> None:
        """Take nothing for PAUSE_S: whatever it is would be reported again at once, and the worker do nothing else."""
        _log.error("accepting pauses", error=str(error), pause_s=PAUSE_S, slot=self._slot)
        self._stop_taking()
        if self._resuming is None:
            self._resuming = self._loop.call_later(PAUSE_S, self.open)

    def _stop_taking(self) -> None:
        self._table.set_accepting(self._slot, False)
        for source in (*self._listeners, self._inboxes.exit_of(self._slot)):
            self._loop.remove_reader(source)

    # --- Where they go ----------------------------------------------------------------------------

    def _hand_over(self, connection: socket.socket, client: str) -> bool:
        """Give it to the worker it belongs to; False when that is this one, or it cannot be given."""
        slot = self._choice.choose(self._slot, client)
        if slot == self._slot or not self._inboxes.put(slot, connection):
            return False
        connection.close()
        if not self._table.is_accepting(slot):
            # It has begun to drain, or died, since it was chosen, and may have looked into its inbox for the last time.
            while (returned := self._take(slot)) is not None:
                self._serve(returned)
        return True

    def _serve(self, connection: socket.socket) -> None:
        # It counts from here on: a whole burst is placed before the loop gets to make the first one's transport.
        self._uncounted += 1
        self._publish()
        self._arriving[connection] = self._loop.create_task(self._connect(connection))

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._factory, connection)
        except Exception as error:
            connection.close()
            if not isinstance(error, OSError):  # that is a client which has gone already
                _log.error("an accepted connection could not be served", slot=self._slot, exc_info=error)
        finally:
            del self._arriving[connection]
            if not self._arriving:
                # With none under way the protocol's number is the whole truth, also after one that failed.
                self._uncounted = 0
                self._publish()

    def _publish(self) -> None:
        self._table.set_open(self._slot, self._connections + self._uncounted)

    def _let_go(self) -> None:
        self._inboxes.close()
        for connection in self._arriving:
            connection.close()


def _client_of(connection: socket.socket) -> str:
    try:
        return _host(connection.getpeername())
    except OSError:  # it has gone
        return ""


def _host(address: Any) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""
