# Connected stream sockets as asyncio transports.

cdef class StreamTransport(StreamReceiver):
    """A connected stream socket (as asyncio's selector socket transport, over the poller's streams)."""

    cdef int open(self, LoopCore loop, int fd, protocol, server, dict extra) except -1:
        cdef int error = 0
        stl_drop_empty_dict(self)
        self.loop = loop
        self._sock_fd = fd
        self._high = WRITE_HIGH_BYTES
        self._low = WRITE_HIGH_BYTES // 4
        if extra is None and not ask_addresses(fd, &self.addresses):
            extra = other_addresses_of(fd)
        self.extra = extra
        self.context = PyContext_CopyCurrent()
        self.take_protocol(protocol)
        self.stream = loop.poller.ops.stream_open(loop.poller, fd, ST_SOCKET, <void *>self, &error)
        if self.stream == NULL:
            raise OSError(-error, os.strerror(-error))
        loop.own(self)
        loop.streams[fd] = self
        if server is not None and server_attach(server, self):
            self.server = server
        return 0

    cdef take_protocol(self, protocol):
        cdef object on_bytes = getattr(protocol, "data_received", None)
        self.protocol = protocol
        self.buffered = not isinstance(protocol, SSLProtocolBase) and (
            isinstance(protocol, asyncio.BufferedProtocol) or (on_bytes is None and hasattr(protocol, "get_buffer"))
        )
        self.on_bytes = None if self.buffered else on_bytes
        self.reader = reader_of(protocol, &self.reader_bytes_max)

    cdef int begin(self, waiter, bint below_poll) except -1:
        """connection_made, then the first read. Whoever is not below the poll is a callback, and timed as one."""
        if self.protocol is None:
            return 0
        try:
            if below_poll:
                self.call_protocol(self.protocol.connection_made, self)
            else:
                stl_call_one(self.context, self.protocol.connection_made, self)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            (<object>self.loop).call_exception_handler(
                {
                    "message": "Exception in protocol.connection_made()",
                    "exception": exc,
                    "transport": self,
                    "protocol": self.protocol,
                }
            )
        if waiter is None:
            self._start_reading()
            return 0
        if not waiter.cancelled():
            waiter.set_result(None)
        # Behind the task that waits: it is to have its transport before data comes.
        self.loop.soon(self._start_reading, (), self.context)
        return 0

    def _begin(self, waiter):
        self.begin(waiter, False)

    def _start_reading(self):
        self.started = True
        self.read_on()

    cdef int read_on(self) except -1:
        if self.stream == NULL or self._closing or self._paused or not self.started:
            return 0
        self.loop.poller.ops.stream_read_start(self.stream, self.read_mode())
        return 0

    cdef void read_off(self) noexcept:
        if self.stream != NULL:
            self.loop.poller.ops.stream_read_stop(self.stream)

    # --- what the poller says ---

    cdef void on_end(self, ssize_t error) noexcept:
        # In the turn that follows the poll: who was woken by the last bytes is to find the transport connected.
        self.has_end = True
        self.end_error = -error
        try:
            self.loop.soon(self._tell_end, (), self.context)
        except BaseException as exc:
            self.loop.keep_raised(exc)

    def _tell_end(self):
        if not self.has_end or self._paused or self._closing:
            return
        self.has_end = False
        if self.end_error:
            self.fatal(OSError(self.end_error, os.strerror(self.end_error)), "Fatal read error on socket transport")
            return
        if self.loop._debug_mode:
            logger.debug("%r received EOF", self)
        try:
            keep_open = self.protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fatal(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    cdef void on_sent(self, ssize_t n, size_t rest) noexcept:
        try:
            self.sent(n, rest)
        except BaseException as exc:
            self.protocol_failed(exc, "Fatal write error on socket transport")

    cdef int sent(self, ssize_t n, size_t rest) except -1:
        self.in_flight_bytes = rest
        self.stream.sent_awaited = rest > 0
        if n < 0:
            exc = OSError(-n, os.strerror(-n))
            self.in_flight = None
            self.drop_queue()
            self.fatal(exc, "Fatal write error on socket transport")
            self.settle_empty_waiter(exc)
            return 0
        if rest == 0:
            self.in_flight = None
            if self.queue_bytes and not self._conn_lost:
                self.send_queue()
            if self._eof and not self.queue_bytes and not self._conn_lost:
                self.shut_down()
        self.resume_protocol()
        if not self.in_flight_bytes and not self.queue_bytes and not self._conn_lost:
            self.settle_empty_waiter(None)
            if self._closing:
                self._conn_lost += 1
                self.lose_soon(None)
        return 0

    cdef void closed(self) noexcept:
        self.return_buffer()
        if self.stream != NULL:
            self._conn_lost += 1  # the loop was closed under it: nothing can be written any more
            self.stream = NULL
        self.in_flight = None
        if self.loop.streams.get(self._sock_fd) is self:
            del self.loop.streams[self._sock_fd]
        if self.sock is not None:
            self.sock.detach()  # only reached open when the loop was closed under the transport
            self.sock = None

    cdef void protocol_failed(self, exc, message) noexcept:
        try:
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                self.loop.keep_raised(exc)
            else:
                self.fatal(exc, message)
        except BaseException as further:
            self.loop.keep_raised(further)

    cdef int fatal(self, exc, message) except -1:
        if isinstance(exc, OSError):
            if self.loop._debug_mode:
                logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            (<object>self.loop).call_exception_handler(
                {"message": message, "exception": exc, "transport": self, "protocol": self.protocol}
            )
        return self.force_close(exc)

    # --- reading ---

    def is_reading(self):
        """Whether data is received now."""
        return not self._closing and not self._paused

    def pause_reading(self):
        """Receive nothing until resume_reading."""
        if self._closing or self._paused:
            return
        self._paused = True
        self.read_off()
        if self.loop._debug_mode:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        """Receive again."""
        if self._closing or not self._paused:
            return
        self._paused = False
        self.read_on()
        if self.has_end and self.stream != NULL:
            self.loop.soon(self._tell_end, (), self.context)
        if self.loop._debug_mode:
            logger.debug("%r resumes reading", self)

    # --- the end ---

    def is_closing(self):
        """Whether it is closed, or will be when what is queued has left."""
        return self._closing

    def close(self):
        """Send what is queued, then close. connection_lost follows."""
        if self._closing:
            return
        self._closing = True
        self.read_off()
        if self.in_flight is None and not self.queue_bytes:
            self._conn_lost += 1
            self.lose_soon(None)
        else:
            self.await_sent()

    def abort(self):
        """Close at once; what is queued is lost. connection_lost follows."""
        self.force_close(None)

    def _force_close(self, exc):
        self.force_close(exc)

    cdef int force_close(self, exc) except -1:
        if self._conn_lost:
            return 0
        self.drop_queue()
        if not self._closing:
            self._closing = True
            self.read_off()
        self._conn_lost += 1
        return self.lose_soon(exc)

    cdef int lose_soon(self, exc) except -1:
        if self.loop._closed:
            return 0  # nobody is left to run it
        self.loop.soon(self._call_connection_lost, (exc,), self.context)
        return 0

    def _call_connection_lost(self, exc):
        if self.protocol is not None:
            self.connection_lost(exc)

    cdef int connection_lost(self, exc) except -1:
        try:
            self.protocol.connection_lost(exc)
        finally:
            self.end()
            self.settle_empty_waiter(ConnectionError("Connection is closed by peer"))
        return 0

    cdef int end(self) except -1:
        self.protocol = self.on_bytes = self.reader = None
        cdef bint lent = self.loop.streams.get(self._sock_fd) is not self
        if not lent:
            del self.loop.streams[self._sock_fd]
        if self.sock is not None:
            self.sock.detach()  # one owner closes: the poller, when the kernel is done with it
            self.sock = None
        if self.stream != NULL:
            self.loop.poller.ops.stream_close(self.stream, 0)
            self.stream = NULL
        if lent:
            watch_end(self.loop, self._sock_fd)
        server, self.server = self.server, None
        if server is not None:
            server_detach(server, self)
        return 0

    def __del__(self):
        if self.protocol is not None and self.loop is not None:
            stl_warn_unclosed(self)

    # --- the rest of the interface ---

    def get_protocol(self):
        """The protocol in use; None after connection_lost."""
        return self.protocol

    def set_protocol(self, protocol):
        """What is received from now on goes to `protocol`."""
        cdef bint buffered = self.buffered
        self.take_protocol(protocol)
        if buffered != self.buffered and self.started:
            self.read_on()

    @property
    def _protocol(self):
        return self.protocol

    @property
    def _loop(self):
        return self.loop

    @property
    def _sock(self):
        if self.sock is None and self.stream != NULL:
            self.sock = socket.socket(fileno=self._sock_fd)
            self.sock.setblocking(False)  # the descriptor is; the object has to know it
        return self.sock

    cdef dict known(self):
        if self.extra is None:
            self.extra = named_addresses(&self.addresses)
        return self.extra

    @property
    def _extra(self):
        return self.known()

    def get_extra_info(self, name, default=None):
        """socket, sockname, peername, or what the transport was made with."""
        if asyncio.BaseTransport.get_extra_info is not ASYNCIO_GET_EXTRA_INFO:
            return patched_get_extra_info(self)(name) if default is None else patched_get_extra_info(self)(name, default)
        known = self.known()
        if name in known:
            return known[name]
        if self.stream != NULL and name == "socket":
            known[name] = trsock.TransportSocket(self._sock)
            return known[name]
        return default

    @property
    def _start_tls_compatible(self):
        return True

    @property
    def _sendfile_compatible(self):
        return constants._SendfileMode.TRY_NATIVE

    def __repr__(self):
        info = ["StreamTransport"]
        if self.stream == NULL:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        info.append(f"fd={self._sock_fd}")
        if self.stream != NULL:
            info.append("read=polling" if self.is_reading() and self.started else "read=idle")
            state = "polling" if self.in_flight is not None else "idle"
            info.append(f"write=<{state}, bufsize={self.get_write_buffer_size()}>")
        return f"<{' '.join(info)}>"

    @property
    def __class__(self):
        return SocketStreamTransport


cdef object ASYNCIO_GET_EXTRA_INFO = asyncio.BaseTransport.get_extra_info


cdef patched_get_extra_info(StreamTransport transport):
    """What somebody put in the place of asyncio's for all transports, bound as if it were inherited."""
    patched = vars(asyncio.BaseTransport)["get_extra_info"]
    bind = getattr(type(patched), "__get__", None)
    return patched if bind is None else bind(patched, transport, SocketStreamTransport)


class SocketStreamTransport(transports._FlowControlMixin, asyncio.Transport):
    """What `isinstance` sees of a StreamTransport: an extension type can not inherit asyncio.Transport's slots."""
