# mypy: disable-error-code="override"
# The overrides take what their callers give, without the type variables of the originals.
"""Event loops that break one rule each, for `broken_backend`. Each class says which.

They reach into asyncio's selector loop on purpose: that is where a new loop goes wrong.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import select
import selectors
from collections.abc import Callable
from typing import Any


class EarlyTimers(asyncio.SelectorEventLoop):
    """Timers fire at the next turn."""

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:  # noqa: ARG002
        return super().call_at(self.time(), callback, *args, context=context)


class NewestFirst(asyncio.SelectorEventLoop):
    """Callbacks run last in, first out."""

    _ready: Any

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        handle = super().call_soon(callback, *args, context=context)
        self._ready.appendleft(self._ready.pop())
        return handle


urgency: contextvars.ContextVar[int] = contextvars.ContextVar("urgency", default=0)


class _MostUrgent:
    """In place of a loop's deque of ready handles."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Any]] = []
        self._numbers = itertools.count()

    def append(self, handle: Any) -> None:
        heapq.heappush(self._heap, (handle._context.get(urgency, 0), next(self._numbers), handle))

    def popleft(self) -> Any:
        return heapq.heappop(self._heap)[2]

    def clear(self) -> None:
        self._heap.clear()

    def __len__(self) -> int:
        return len(self._heap)


class MostUrgentOnly(asyncio.SelectorEventLoop):
    """Callbacks run in the order of `urgency` alone, however long others have waited."""

    def __init__(self) -> None:
        super().__init__()
        self._ready: Any = _MostUrgent()


class Drowsy(asyncio.SelectorEventLoop):
    """Other threads do not wake it."""

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Any:
        return self.call_soon(callback, *args, context=context)


class StopsOnErrors(asyncio.SelectorEventLoop):
    """A failed callback stops it."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        super().call_exception_handler(context)
        self.stop()


class EdgeSelector(selectors.EpollSelector):
    """Reports readiness when it begins, not while it lasts."""

    _EVENT_READ = select.EPOLLIN | select.EPOLLET
    _EVENT_WRITE = select.EPOLLOUT | select.EPOLLET

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().register(fileobj, events, data)
        # Where the class attributes above are not used, the registration is changed afterwards.
        self._make_edge_triggered(key)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = super().modify(fileobj, events, data)
        self._make_edge_triggered(key)
        return key

    def _make_edge_triggered(self, key: selectors.SelectorKey) -> None:
        mask = select.EPOLLET
        if key.events & selectors.EVENT_READ:
            mask |= select.EPOLLIN
        if key.events & selectors.EVENT_WRITE:
            mask |= select.EPOLLOUT
        self._selector.modify(key.fd, mask)  # type: ignore[attr-defined]


class EdgeTriggered(asyncio.SelectorEventLoop):
    """Readers and writers are called once each time something changes."""

    def __init__(self) -> None:
        super().__init__(EdgeSelector())


class Untold(asyncio.SelectorEventLoop):
    """Does not say whether it removed something."""

    def remove_reader(self, fd: Any) -> Any:
        super().remove_reader(fd)

    def remove_writer(self, fd: Any) -> Any:
        super().remove_writer(fd)


class Blocking(asyncio.SelectorEventLoop):
    """Runs the functions of the executor itself."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # noqa: ARG002
        future = self.create_future()
        future.set_result(func(*args))
        return future


class _Stubborn(asyncio.Task[Any]):
    def cancel(self, msg: Any = None) -> bool:  # noqa: ARG002 - the fault
        return False


class Uncancellable(asyncio.SelectorEventLoop):
    """Its tasks ignore cancellation."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(lambda loop, coro, **options: _Stubborn(coro, loop=loop, **options))


class Deaf(asyncio.SelectorEventLoop):
    """Accepts signal handlers and never calls them."""

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        """Nothing."""

    def remove_signal_handler(self, sig: int) -> bool:  # noqa: ARG002 - the fault
        return True


class AlwaysWell(asyncio.SelectorEventLoop):
    """Every process ends with exit code 0."""

    def _child_watcher_callback(self, pid: int, returncode: int, transport: Any) -> None:  # noqa: ARG002
        self.call_soon_threadsafe(transport._process_exited, 0)


class ForgetsGenerators(asyncio.SelectorEventLoop):
    """Leaves asynchronous generators as they are."""

    async def shutdown_asyncgens(self) -> None:
        """Nothing."""


class ForgetsExecutor(asyncio.SelectorEventLoop):
    """Does not wait for the default executor."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing."""


class Unclosed(asyncio.SelectorEventLoop):
    """Does not close."""

    def close(self) -> None:
        """Nothing."""


class SpoiledTransports(asyncio.SelectorEventLoop):
    """Base of the loops whose stream transports are wrong."""

    def spoil(self, transport: Any) -> None:
        """Break the transport."""
        raise NotImplementedError

    def _make_socket_transport(self, *args: Any, **kwargs: Any) -> Any:
        transport = super()._make_socket_transport(*args, **kwargs)  # type: ignore[misc]
        self.spoil(transport)
        return transport


class FullClose(SpoiledTransports):
    """write_eof closes both directions."""

    def spoil(self, transport: Any) -> None:
        transport.write_eof = transport.close


class Hoarding(SpoiledTransports):
    """Never asks a writer to pause."""

    def spoil(self, transport: Any) -> None:
        transport._maybe_pause_protocol = lambda: None


class Eager(SpoiledTransports):
    """Goes on reading when told to pause."""

    def spoil(self, transport: Any) -> None:
        transport.pause_reading = transport.resume_reading = lambda: None


class Discreet(SpoiledTransports):
    """Does not say why a connection was lost."""

    def spoil(self, transport: Any) -> None:
        lost = transport._call_connection_lost
        transport._call_connection_lost = lambda _: lost(None)


class SlowAbort(SpoiledTransports):
    """Sends what is left before it aborts."""

    def spoil(self, transport: Any) -> None:
        transport.abort = transport.close


class Anonymous(SpoiledTransports):
    """Its transports know nothing of themselves."""

    def spoil(self, transport: Any) -> None:
        transport.get_extra_info = lambda _, default=None: default


class BytesOnly(SpoiledTransports):
    """Its transports take bytes and nothing else."""

    def spoil(self, transport: Any) -> None:
        write = transport.write

        def only_bytes(data: Any) -> None:
            if not isinstance(data, bytes):
                raise TypeError("bytes only")
            write(data)

        transport.write = only_bytes


class Evasive(asyncio.SelectorEventLoop):
    """Gives another reason for a refused connection."""

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return await super().create_connection(*args, **kwargs)
        except ConnectionRefusedError as error:
            raise TimeoutError from error


class OwnSockets(asyncio.SelectorEventLoop):
    """Serves on a socket of its own instead of the given one."""

    async def create_server(self, protocol_factory: Any, *args: Any, sock: Any = None, **kwargs: Any) -> Any:
        if sock is not None:
            sock.close()
            args = ("127.0.0.1", 0)
        return await super().create_server(protocol_factory, *args, **kwargs)


class Truncating(asyncio.SelectorEventLoop):
    """Drops the last byte of what a socket or a datagram brings."""

    async def sock_recv(self, sock: Any, nbytes: int) -> bytes:
        return (await super().sock_recv(sock, nbytes))[:-1]
