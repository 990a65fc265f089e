"""The loop: the native core first, the standard library's Unix loop for everything that is not hot."""

import contextlib
import os
import selectors
import sys
import threading
import weakref
from asyncio import base_events, constants, events, tasks, unix_events
from asyncio.log import logger

from stellane_loop import _native, datagrams, files, tls
from stellane_loop.lasting import LastingFuture
from stellane_loop.signals import SignalHandling

_POLLERS = ("epoll", "io_uring")
_TASK_IS_THE_THREADS = sys.version_info >= (3, 14)  # before that each loop has a current task of its own
_live_loops: "weakref.WeakSet[Loop]" = weakref.WeakSet()


class Loop(_native.NativeLoop, SignalHandling):
    """An asyncio event loop of native code over `poller`: "epoll" or "io_uring".

    It may be built in one thread and run in another. Raises OSError when the poller can not be
    set up, and ValueError for another name.
    """

    def __init__(self, poller: str = "epoll", *, entries: int = 0, buffers: int = 0, buffer_bytes: int = 0) -> None:
        if poller not in _POLLERS:
            raise ValueError(f"poller is {poller!r}; it can be {' or '.join(_POLLERS)}")
        self._open(poller, entries, buffers, buffer_bytes)
        base_events.BaseEventLoop.__init__(self)
        self._prepare_signals()
        self._unix_server_sockets = {}
        if sys.version_info >= (3, 14):  # before that the event loop policy has the child watcher
            self._watcher = (
                unix_events._PidfdChildWatcher() if unix_events.can_use_pidfd() else unix_events._ThreadedChildWatcher()
            )
        self._transports = weakref.WeakValueDictionary()
        self._make_self_pipe()
        self._background = 1
        self._task_outside = None  # the current task when a run began inside it
        _live_loops.add(self)
        if self._debug:
            logger.debug("Using poller: %s", poller)

    # The queues are native; the base class sets these and code that looks inside the loop reads them.
    @property
    def _ready(self):
        return self._ready_handles()

    @_ready.setter
    def _ready(self, _):
        pass

    @property
    def _scheduled(self):
        return self._timer_handles()

    @_scheduled.setter
    def _scheduled(self, _):
        pass

    @property
    def _selector(self):
        return None if self._closed else _SelectorView(self)

    def close(self) -> None:
        """Close the loop; descriptors of transports that are still open are closed with it."""
        if self.is_running() or self._stepping:
            raise RuntimeError("Cannot close a running event loop")
        if self._closed:
            return
        if self._debug:
            logger.debug("Close %r", self)
        self._executor_shutdown_called = True
        executor, self._default_executor = self._default_executor, None
        try:
            if not sys.is_finalizing():
                for number in list(self._signal_handlers):
                    self.remove_signal_handler(number)
            self._signal_handlers.clear()
            self._release_wakeup_fd()
            self._forget_wakeup_fd()  # in another thread than the main one nothing could be put back
            self._close_self_pipe()
        finally:  # at the end of the interpreter anything above may fail
            self._release()
        _live_loops.discard(self)
        if executor is not None:
            executor.shutdown(wait=False)

    # --- running ---

    def _enter_run(self) -> None:
        self._thread_id = threading.get_ident()  # first: _leave_run takes back what follows, however far it came
        self._set_coroutine_origin_tracking(self._debug)
        self._old_agen_hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook)
        events._set_running_loop(self)
        if _TASK_IS_THE_THREADS:  # no task of ours could run inside it
            with contextlib.suppress(RuntimeError):  # who puts asyncio's Python functions in place has no task there
                self._task_outside = tasks._swap_current_task(self, None)
        # A signal that arrives between the last check and the wait would otherwise lie until something else happens.
        self._hold_wakeup_fd()

    def _leave_run(self) -> None:
        if self._thread_id is None:
            return
        self._stopping = False
        self._thread_id = None
        if self._task_outside is not None:
            task, self._task_outside = self._task_outside, None
            tasks._swap_current_task(self, task)
        events._set_running_loop(None)
        self._set_coroutine_origin_tracking(False)
        if self._old_agen_hooks is not None:
            sys.set_asyncgen_hooks(*self._old_agen_hooks)
            self._old_agen_hooks = None
        self._release_wakeup_fd()

    def _after_fork(self) -> None:
        super()._after_fork()
        self._drop_wakeup_fd_after_fork()

    # --- transports ---

    def _ensure_fd_no_transport(self, fd):
        number = fd if isinstance(fd, int) else None
        if number is None:
            try:
                number = int(fd.fileno())
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"Invalid file object: {fd!r}") from None
        transport = self._stream_of(number) or self._transports.get(number)
        if transport is not None and not transport.is_closing():
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")

    def _stop_serving(self, sock) -> None:
        self._end_listener(sock)
        super()._stop_serving(sock)

    def _make_ssl_transport(
        self,
        rawsock,
        protocol,
        sslcontext,
        waiter=None,
        *,
        server_side=False,
        server_hostname=None,
        extra=None,
        server=None,
        ssl_handshake_timeout=constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout=constants.SSL_SHUTDOWN_TIMEOUT,
    ):
        self._ensure_fd_no_transport(rawsock)
        ssl_protocol = tls.SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        self._make_socket_transport(rawsock, ssl_protocol, extra=extra, server=server)
        return ssl_protocol._app_transport

    async def start_tls(
        self,
        transport,
        protocol,
        sslcontext,
        *,
        server_side=False,
        server_hostname=None,
        ssl_handshake_timeout=None,
        ssl_shutdown_timeout=None,
    ):
        options = {
            "server_side": server_side,
            "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        if tls.suits(transport, sslcontext):
            return await tls.start_tls(self, transport, protocol, sslcontext, **options)
        return await super().start_tls(transport, protocol, sslcontext, **options)

    def _make_datagram_transport(self, sock, *args, **kwargs):
        if datagrams.suits(sock):
            return datagrams.DatagramTransport(self, sock, *args, **kwargs)
        transport = super()._make_datagram_transport(sock, *args, **kwargs)
        if transport._extra["peername"] == "":
            transport._extra["peername"] = _Unnamed()
        return transport

    async def _sendfile_native(self, transp, file, offset, count):
        if not isinstance(transp, _native.StreamTransport):  # over a socket that sends in its own way
            return await super()._sendfile_native(transp, file, offset, count)
        reading = transp.is_reading()
        transp.pause_reading()
        await transp._make_empty_waiter()
        self._lend_stream(transp, True)
        try:
            return await self.sock_sendfile(transp._sock, file, offset, count, fallback=False)
        finally:
            self._lend_stream(transp, False)
            transp._reset_empty_waiter()
            if reading:
                transp.resume_reading()

    # --- files ---

    async def file_read(self, fd: int, length: int, offset: int) -> bytes:
        """At most `length` bytes of the file from `offset`; fewer at its end. OSError as read(2)."""
        native = self._native_file_read(fd, length, offset)
        if native is None:
            return await self.run_in_executor(None, files.read, fd, length, offset)
        future, data = native
        return data[: await future]

    async def file_write(self, fd: int, data: bytes, offset: int, *, sync: bool = False) -> int:
        """Write all of `data` at `offset`, and to the disk when `sync`; the number of bytes.

        It returns only when the write was whole and the sync succeeded. After an OSError nothing may be
        taken for written, and after a failed sync the file is not to be trusted again. `fd` has to stay
        open until then: a caller that is cancelled is so only when the write, which goes on, is over.
        """
        data = bytes(data)
        native = self._native_file_write(fd, data, offset, sync)
        if native is None:
            native = self._to_the_end(files.write, fd, data, offset, sync)
        return await native

    async def file_sync(self, fd: int, *, data_only: bool = True) -> None:
        """fdatasync, or fsync when not `data_only`. OSError: what was written may be lost.

        `fd` has to stay open until it returns; a cancelled caller waits, as in file_write.
        """
        native = self._native_file_sync(fd, data_only)
        if native is None:
            native = self._to_the_end(files.sync, fd, data_only)
        await native

    def _to_the_end(self, function, *args) -> LastingFuture:
        """The result of function(*args) in a thread; see LastingFuture."""
        lasting = LastingFuture(loop=self)
        self.run_in_executor(None, function, *args).add_done_callback(lasting.follow)
        return lasting

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} poller={self.poller_name} running={self.is_running()} "
            f"closed={self.is_closed()} debug={self.get_debug()}>"
        )


class _Unnamed(str):
    """The name of a peer that has none, as in a pair of sockets: asyncio's transport takes a false one for no peer."""

    def __bool__(self) -> bool:
        return True


class _SelectorView:
    """What code that looks inside a selector loop finds: who is registered, and for what."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def get_map(self):
        return {fd: self._key(fd, *handles) for fd, handles in self._loop._watched().items()}

    def get_key(self, fileobj):
        number = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return self.get_map()[number]

    @staticmethod
    def _key(fd, reader, writer):
        mask = (reader is not None and selectors.EVENT_READ) | (writer is not None and selectors.EVENT_WRITE)
        return selectors.SelectorKey(fd, fd, mask, (reader, writer))


def _after_fork_in_child() -> None:
    for loop in list(_live_loops):
        loop._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
