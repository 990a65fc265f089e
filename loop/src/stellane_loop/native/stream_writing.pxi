# The writing half of a stream transport: queue, flow control, end of file.

cdef enum:
    PARTS_PER_SEND_MAX = 64
    WRITE_HIGH_BYTES = 64 * 1024  # as asyncio's flow control


cdef class StreamWriter(Owned):
    """What a stream transport knows, and how it writes; reading and the end of it are StreamTransport's."""

    cdef st_stream *stream
    cdef readonly int _sock_fd
    cdef object sock               # made when asked for, when the connection was accepted
    cdef object protocol
    cdef object on_bytes           # protocol.data_received, or None for a BufferedProtocol
    cdef object reader             # a weak reference to the StreamReader that is fed without the protocol, or None
    cdef Py_ssize_t reader_bytes_max
    cdef object context
    cdef object server
    cdef dict extra                # made when asked for, when the connection was accepted
    cdef internet_addresses addresses
    cdef list queue                # bytes that wait for the send in flight; made for the first
    cdef size_t queue_bytes
    cdef object in_flight          # bytes, or a list of them, that the poller reads from
    cdef size_t in_flight_bytes
    cdef readonly size_t _high, _low
    cdef readonly bint _closing, _paused, _eof, _protocol_paused
    cdef bint started              # connection_made was called and reading may begin
    cdef bint has_end              # the end was read, and the protocol has not heard of it
    cdef int end_error             # why it ended; 0: the peer ended it
    cdef bint buffered             # the protocol names the memory for what is received
    cdef size_t lend_bytes         # else: how much of ours the next receive goes into; 0: it is copied
    cdef PyObject *lent_bytes      # a bytes object that is being received into
    cdef int small_receives
    cdef readonly int _conn_lost
    cdef object _empty_waiter
    cdef bint lent                 # the protocol's memory: the loop's `lent_view`
    cdef dict __dict__             # as asyncio's: what somebody puts there, a patched `write` say, is what callers find
    cdef object __weakref__

    # Defined by StreamTransport.
    cdef int fatal(self, exc, message) except -1:
        raise NotImplementedError

    def write(self, data):
        """Send the bytes, or queue them; never blocks. What can change under us is copied."""
        if not PyBytes_CheckExact(data):
            data = self.as_bytes(data)
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        if not PyBytes_GET_SIZE(data):
            return
        if self._conn_lost:
            self.warn_lost()
            return
        self.put(<bytes>data)

    cdef as_bytes(self, data):
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        return bytes(data)

    cdef warn_lost(self):
        if self._conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._conn_lost += 1

    cdef inline void await_sent(self) noexcept:
        # Whoever waits for a send to be over is to say so before it begins to matter: see st_poller.h.
        if self.stream != NULL:
            self.stream.sent_awaited = 1

    cdef int put(self, bytes data) except -1:
        cdef iovec part
        cdef ssize_t sent
        if self.in_flight is not None:
            if self.queue_bytes or not self.put_more(data):
                self.queue_up(data)
                self.await_sent()
            return self.pause_protocol()
        part.iov_base = PyBytes_AS_STRING(data)
        part.iov_len = PyBytes_GET_SIZE(data)
        sent = self.loop.poller.ops.stream_send(self.stream, &part, 1)
        if sent > 0:
            return 0
        if sent < 0:
            return self.fatal(OSError(-sent, os.strerror(-sent)), "Fatal write error on socket transport")
        self.in_flight = data
        self.in_flight_bytes = part.iov_len
        return self.pause_protocol()

    cdef int queue_up(self, bytes data) except -1:
        if self.queue is None:
            self.queue = []
        self.queue.append(data)
        self.queue_bytes += PyBytes_GET_SIZE(data)
        return 0

    cdef bint put_more(self, bytes data) except -1:
        """Add to what is in flight, while it has not begun to leave."""
        if self.loop.poller.ops.stream_send_more == NULL:
            return False
        if type(self.in_flight) is not list:
            self.in_flight = [self.in_flight]
        (<list>self.in_flight).append(data)  # first: what the poller knows of must be held
        if self.loop.poller.ops.stream_send_more(self.stream, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)):
            (<list>self.in_flight).pop()
            return False
        self.in_flight_bytes += PyBytes_GET_SIZE(data)
        return True

    def writelines(self, list_of_data):
        """Send the pieces in order, in as few system calls as they need."""
        cdef bytes data
        if self._eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        pieces = [piece if PyBytes_CheckExact(piece) else self.as_bytes(piece) for piece in list_of_data]
        if self._conn_lost:
            if pieces:
                self.warn_lost()
            return
        for data in pieces:
            if PyBytes_GET_SIZE(data):
                self.queue_up(data)
        if self.queue_bytes and self.in_flight is None:
            self.send_queue()
        if self.queue_bytes:
            self.await_sent()
        self.pause_protocol()

    cdef int send_queue(self) except -1:
        cdef iovec parts[PARTS_PER_SEND_MAX]
        cdef int count
        cdef size_t total
        cdef ssize_t sent
        cdef bytes data
        while self.queue_bytes:
            count = 0
            total = 0
            pieces = self.queue[:PARTS_PER_SEND_MAX]
            for data in pieces:
                parts[count].iov_base = PyBytes_AS_STRING(data)
                parts[count].iov_len = PyBytes_GET_SIZE(data)
                total += parts[count].iov_len
                count += 1
            sent = self.loop.poller.ops.stream_send(self.stream, parts, count)
            if sent < 0:
                exc = OSError(-sent, os.strerror(-sent))
                self.drop_queue()
                self.fatal(exc, "Fatal write error on socket transport")
                self.settle_empty_waiter(exc)
                return 0
            del self.queue[:PARTS_PER_SEND_MAX]
            self.queue_bytes -= total
            if sent == 0:
                self.in_flight = pieces
                self.in_flight_bytes = total
                if self.queue_bytes or self._closing or self._empty_waiter is not None:
                    self.await_sent()
                return 0
        return 0

    cdef void drop_queue(self) noexcept:
        self.queue = None
        self.queue_bytes = 0

    cdef int settle_empty_waiter(self, exc) except -1:
        if self._empty_waiter is not None and not self._empty_waiter.done():
            if exc is None:
                self._empty_waiter.set_result(None)
            else:
                self._empty_waiter.set_exception(exc)
        return 0

    def _make_empty_waiter(self):
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self._empty_waiter = (<object>self.loop).create_future()
        if self.in_flight is None and not self.queue_bytes:
            self._empty_waiter.set_result(None)
        self.await_sent()
        return self._empty_waiter

    def _reset_empty_waiter(self):
        self._empty_waiter = None

    def can_write_eof(self):
        """True: a socket can be closed for sending alone."""
        return True

    def write_eof(self):
        """Send what is queued, then the end of file; receiving goes on."""
        if self._closing or self._eof or self._conn_lost:
            return
        self._eof = True
        if not self.queue_bytes:
            self.shut_down()

    cdef int shut_down(self) except -1:
        cdef int error = self.loop.poller.ops.stream_shutdown(self.stream)
        if error:
            raise OSError(-error, os.strerror(-error))
        return 0

    cdef int pause_protocol(self) except -1:
        if self._protocol_paused:
            self.await_sent()
            return 0
        if self.in_flight_bytes + self.queue_bytes <= self._high:
            return 0
        self.await_sent()
        self._protocol_paused = True
        return self.tell_protocol("pause_writing")

    cdef int resume_protocol(self) except -1:
        if not self._protocol_paused or self.in_flight_bytes + self.queue_bytes > self._low:
            return 0
        self._protocol_paused = False
        return self.tell_protocol("resume_writing")

    cdef int tell_protocol(self, str name) except -1:
        cdef bint entered = True
        if self.protocol is None:
            return 0
        try:
            PyContext_Enter(self.context)
        except RuntimeError:  # who writes is a callback of this very context, and none can be entered twice
            entered = False
        try:
            try:
                if name == "pause_writing":
                    self.protocol.pause_writing()
                else:
                    self.protocol.resume_writing()
            finally:
                if entered:
                    PyContext_Exit(self.context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            (<object>self.loop).call_exception_handler(
                {
                    "message": f"protocol.{name}() failed",
                    "exception": exc,
                    "transport": self,
                    "protocol": self.protocol,
                }
            )
        return 0

    def get_write_buffer_size(self):
        """Bytes that were written and have not left."""
        return self.in_flight_bytes + self.queue_bytes

    def get_write_buffer_limits(self):
        """(low, high), in bytes."""
        return (self._low, self._high)

    def set_write_buffer_limits(self, high=None, low=None):
        """Bytes above which the protocol is paused, and down to which it is resumed."""
        if high is None:
            high = WRITE_HIGH_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high = high
        self._low = low
        self.pause_protocol()
