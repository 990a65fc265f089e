"""The dispatchers of two workers, on one loop of one process, with real listeners and clients."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stellane.config import RuntimeConfig
from stellane.runtime import dispatcher as module
from stellane.runtime.dispatcher import Dispatcher
from stellane.supervisor.handover import Handover, open_handover

DEADLINE_S = 10.0


class Listener(socket.socket):
    """One whose next accepts may be told to fail."""

    errors: list[int]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            number = self.errors.pop(0)
            raise OSError(number, os.strerror(number))
        return super().accept()


class Worker:
    """Answers the first bytes of each connection with its slot's number, and counts as a protocol does."""

    def __init__(self, handover: Handover, slot: int, listener: socket.socket) -> None:
        self.connections: set[Connection] = set()
        self.slot = slot
        self.listener = Listener(fileno=listener.dup().detach())
        self.listener.errors = []
        self.dispatcher = Dispatcher(
            handover,
            slot,
            listeners=[self.listener],
            factory=lambda: Connection(self),
            loop=asyncio.get_running_loop(),
        )

    def changed(self) -> None:
        self.dispatcher.count(len(self.connections))


class Connection(asyncio.Protocol):
    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.worker.connections.add(self)
        self.worker.changed()

    def data_received(self, _data: bytes) -> None:
        self.transport.write(b"%d" % self.worker.slot)

    def connection_lost(self, _error: Exception | None) -> None:
        self.worker.connections.discard(self)
        self.worker.changed()


class Site:
    def __init__(self, handover: Handover, listener: socket.socket) -> None:
        self.handover = handover
        self.table = handover.table
        self.address = listener.getsockname()
        self.workers = [Worker(handover, slot, listener) for slot in range(2)]
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        """A client that has sent its request already; nobody has accepted it yet."""
        client = socket.create_connection(self.address, DEADLINE_S)
        client.sendall(b"?")
        client.setblocking(False)
        self.clients.append(client)
        return client

    async def slot_of(self, client: socket.socket) -> int:
        """Who has answered; ValueError when the connection was closed instead."""
        async with asyncio.timeout(DEADLINE_S):
            return int(await asyncio.get_running_loop().sock_recv(client, 9))

    async def slots_of(self, clients: list[socket.socket]) -> Counter[int]:
        return Counter([await self.slot_of(client) for client in clients])

    def loads(self) -> list[int]:
        return [self.handover.load_of(slot) for slot in range(2)]


@asynccontextmanager
async def running(mode: str = "least_loaded", *, opened: tuple[int, ...] = (0, 1)) -> AsyncIterator[Site]:
    handover = open_handover(RuntimeConfig(dispatch=mode, worker_threads=2))
    assert handover is not None
    with handover, socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        site = Site(handover, listener)
        for slot in opened:
            site.workers[slot].dispatcher.open()
        yield site
        for worker in site.workers:
            worker.dispatcher.close()
            worker.listener.close()
            for connection in list(worker.connections):
                connection.transport.abort()
        for client in site.clients:
            client.close()
        await until(lambda: not any(worker.connections for worker in site.workers), "the connections end")


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(what) from None


def on_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@on_a_loop
async def test_a_burst_is_balanced_though_nothing_of_it_is_served_yet() -> None:
    """One worker accepts all of it in one turn, before any connection is made."""
    async with running() as site:
        asyncio.get_running_loop().remove_reader(site.workers[1].listener)
        clients = [site.connect() for _ in range(8)]
        assert await site.slots_of(clients) == {0: 4, 1: 4}
        assert site.loads() == [4, 4]
        for client in clients:
            client.close()
        await until(lambda: site.loads() == [0, 0], "connections that are closed do not count")


@on_a_loop
async def test_turns_are_taken_over_all_workers() -> None:
    async with running("round_robin") as site:
        slots = [await site.slot_of(site.connect()) for _ in range(6)]
        assert slots in ([0, 1] * 3, [1, 0] * 3)


@on_a_loop
async def test_a_full_inbox_means_to_serve_it_here() -> None:
    async with running(opened=(0,)) as site:
        with socket.socket() as filler:
            while site.handover.inboxes.put(1, filler):
                pass
        full = site.handover.inboxes.waiting(1)
        site.table.set_accepting(1, True)
        # So loaded that the other one is chosen all the same.
        site.workers[0].dispatcher.count(full + 10)
        assert await site.slots_of([site.connect() for _ in range(3)]) == {0: 3}
        while (taken := site.handover.inboxes.take(1)) is not None:
            taken.close()


@on_a_loop
async def test_what_is_given_to_one_that_has_just_stopped_accepting_is_taken_back() -> None:
    """It may have looked into its inbox for the last time between the choice and the handing over."""
    async with running(opened=(0,)) as site:
        waiting = site.connect()
        accepted = site.workers[0].dispatcher
        put = site.handover.inboxes.put

        def put_too_late(slot: int, connection: socket.socket) -> bool:
            site.table.set_accepting(1, False)
            return put(slot, connection)

        site.table.set_accepting(1, True)
        accepted.count(1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(site.handover.inboxes, "put", put_too_late)
            assert await site.slot_of(waiting) == 0
        assert not site.table.is_accepting(1)
        assert site.handover.inboxes.waiting(1) == 0


@on_a_loop
async def test_what_waits_in_the_inbox_is_served_from_the_start() -> None:
    """By the successor of a worker that died with connections in it."""
    async with running(opened=(0,)) as site:
        site.table.set_accepting(1, True)
        clients = [site.connect() for _ in range(4)]
        await until(lambda: site.loads() == [2, 2], "two wait in the inbox")
        site.table.clear(1)
        assert site.loads() == [2, 2]
        site.workers[1].dispatcher.open()
        assert await site.slots_of(clients) == {0: 2, 1: 2}


@on_a_loop
async def test_a_drain_passes_on_what_is_in_the_inbox() -> None:
    async with running(opened=(0,)) as site:
        site.table.set_accepting(1, True)
        clients = [site.connect() for _ in range(4)]
        await until(lambda: site.loads() == [2, 2], "two wait in the inbox")
        await site.workers[1].dispatcher.drain(pass_on=True)
        assert not site.table.is_accepting(1)
        assert await site.slots_of(clients) == {0: 4}
        # And nothing goes there any more.
        assert await site.slots_of([site.connect() for _ in range(4)]) == {0: 4}


@on_a_loop
async def test_a_drain_with_nobody_left_serves_what_is_in_the_inbox() -> None:
    async with running(opened=(0,)) as site:
        site.table.set_accepting(1, True)
        clients = [site.connect() for _ in range(4)]
        await until(lambda: site.loads() == [2, 2], "two wait in the inbox")
        await site.workers[0].dispatcher.drain(pass_on=True)
        await site.workers[1].dispatcher.drain(pass_on=True)
        assert [len(worker.connections) for worker in site.workers] == [2, 2]
        assert await site.slots_of(clients) == {0: 2, 1: 2}


@on_a_loop
async def test_after_a_drain_the_protocol_knows_every_connection() -> None:
    """One that it hears of later is not among the idle ones that it closes then."""
    async with running(opened=(0,)) as site:
        loop, worker = asyncio.get_running_loop(), site.workers[0]
        connect = loop.connect_accepted_socket

        async def connect_later(*arguments: Any) -> None:
            await asyncio.sleep(0.02)
            await connect(*arguments)

        with socket.create_connection(site.address), pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "connect_accepted_socket", connect_later)
            await until(lambda: site.loads() == [1, 0], "it is accepted")
            assert not worker.connections
            await worker.dispatcher.drain(pass_on=True)
            assert len(worker.connections) == 1


@on_a_loop
async def test_a_pause_that_ends_in_a_drain_does_not_end_the_drain() -> None:
    async with running(opened=(0,)) as site:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PAUSE_S", 0.01)
            site.workers[0].dispatcher._pause(OSError(errno.EMFILE, "Too many open files"))
        await site.workers[0].dispatcher.drain(pass_on=True)
        await until(lambda: site.workers[0].dispatcher._resuming is None, "the pause ends")
        assert not site.table.is_accepting(0)


@on_a_loop
async def test_a_connection_counts_once_while_another_one_arrives() -> None:
    async with running(opened=(0,)) as site:
        loop = asyncio.get_running_loop()
        connect, never = loop.connect_accepted_socket, loop.create_future()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "connect_accepted_socket", lambda *_: never)
            site.connect()
            await until(lambda: site.loads()[0] == 1, "one arrives and is not made")
            patch.setattr(loop, "connect_accepted_socket", connect)
            assert await site.slot_of(site.connect()) == 0
            assert site.loads()[0] == 2
            never.set_exception(ConnectionResetError())
            await until(lambda: site.loads()[0] == 1, "the other one does not count any more")


@on_a_loop
async def test_a_turn_takes_so_many_connections_and_no_more() -> None:
    """The connections that the worker has are not kept waiting."""
    async with running(opened=(0,)) as site:
        worker = site.workers[0]
        clients = [site.connect() for _ in range(5)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "CONNECTIONS_PER_TURN_MAX", 2)
            worker.dispatcher._accept_from(worker.listener)
            assert site.loads() == [2, 0]
            for _ in range(3):
                with worker.listener.accept()[0] as connection:
                    site.handover.inboxes.put(0, connection)
            worker.dispatcher._take_handed()
            assert site.loads() == [5, 0]
            assert site.handover.inboxes.waiting(0) == 1
            assert await site.slots_of(clients) == {0: 5}


@on_a_loop
async def test_without_descriptors_accepting_pauses_and_goes_on() -> None:
    """Nothing is lost, nobody hands anything over in the meantime, and the loop does not spin."""
    async with running(opened=(0,)) as site:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = site.connect()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PAUSE_S", 0.05)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await until(lambda: not site.table.is_accepting(0), "it pauses")
                assert not asyncio.get_running_loop().remove_reader(site.workers[0].listener)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await site.slot_of(client) == 0
        assert site.table.is_accepting(0)


@on_a_loop
async def test_without_descriptors_the_inbox_waits() -> None:
    async with running(opened=(0,)) as site:
        site.table.set_accepting(1, True)
        clients = [site.connect() for _ in range(2)]
        await until(lambda: site.loads() == [1, 1], "one waits in the inbox")
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "PAUSE_S", 0.05)
            site.workers[1].dispatcher.open()
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await until(lambda: not site.table.is_accepting(1), "it pauses")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert await site.slots_of(clients) == {0: 1, 1: 1}


@on_a_loop
async def test_a_client_that_went_before_it_was_accepted_keeps_nobody() -> None:
    """ECONNABORTED is one client's, not the listener's."""
    async with running(opened=(0,)) as site:
        site.workers[0].listener.errors = [errno.ECONNABORTED]
        assert await site.slot_of(site.connect()) == 0
        assert site.table.is_accepting(0)


@on_a_loop
async def test_a_connection_that_cannot_be_made_is_closed_and_does_not_count() -> None:
    async with running(opened=(0,)) as site:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(site.workers[0].dispatcher, "_factory", lambda: 1 // 0)
            client = site.connect()
            async with asyncio.timeout(DEADLINE_S):
                with pytest.raises((ConnectionResetError, ValueError)):
                    await site.slot_of(client)
        await until(lambda: site.loads() == [0, 0], "it does not count")


@on_a_loop
async def test_a_forked_child_holds_neither_inboxes_nor_arriving_clients() -> None:
    """One that outlives its worker would keep the client from seeing that it is gone."""
    async with running() as site:
        client = site.connect()
        arriving = site.workers[0].listener.accept()[0]
        site.workers[0].dispatcher._serve(arriving)
        child = os.fork()
        if child == 0:
            inboxes = site.handover.inboxes
            held = [each.fileno() for slot in range(2) for each in (inboxes.exit_of(slot), inboxes._entrances[slot])]
            os._exit(7 if {arriving.fileno(), *held} == {-1} else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert await site.slot_of(client) == 0
