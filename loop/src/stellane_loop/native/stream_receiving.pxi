# Where what is received goes: into memory of a protocol that lends it, into a bytes object, or copied into one.

cdef enum:
    # A receive that large is worth memory of its own for the next: the copy costs more than to guess its size.
    LEND_FROM_BYTES = 16 * 1024
    LEND_BYTES_FIRST = 64 * 1024
    LEND_BYTES_MAX = 256 * 1024
    COPY_BELOW_BYTES = 4 * 1024
    COPY_AFTER_SMALL = 8  # receives in a row


cdef class StreamReceiver(StreamWriter):
    """How bytes reach the protocol."""

    # Defined by StreamTransport.
    cdef void protocol_failed(self, exc, message) noexcept:
        pass

    cdef void on_end(self, ssize_t error) noexcept:
        pass

    cdef int read_on(self) except -1:
        raise NotImplementedError

    cdef inline int read_mode(self) noexcept:
        return ST_READ_INTO if self.buffered or self.lend_bytes else ST_READ_COPY

    cdef int lend_buffer(self, char **at, size_t *length) noexcept:
        # Also one that another stream was lent: a poller may ask and then find nothing to read.
        if self.loop.lent_buffer is not None:
            (<StreamReceiver>self.loop.lent_buffer).return_buffer()
        if self._conn_lost or self.protocol is None:
            return -1
        try:
            if self.buffered:
                memory = stl_call_one(self.context, self.protocol.get_buffer, -1)
                if not len(memory):
                    raise RuntimeError("get_buffer() returned an empty buffer")
                PyObject_GetBuffer(memory, &self.loop.lent_view, PyBUF_WRITABLE)
                self.lent = True
                at[0] = <char *>self.loop.lent_view.buf
                length[0] = <size_t>self.loop.lent_view.len
            else:
                fresh = PyBytes_FromStringAndSize(NULL, max(<size_t>LEND_BYTES_FIRST, self.lend_bytes))
                at[0] = PyBytes_AS_STRING(fresh)
                length[0] = <size_t>PyBytes_GET_SIZE(fresh)
                Py_INCREF(fresh)
                self.lent_bytes = <PyObject *>fresh
        except BaseException as exc:
            self.protocol_failed(exc, "Fatal error: protocol.get_buffer() call failed.")
            self.read_again()
            return -1
        self.loop.lent_buffer = self
        return 0

    cdef void read_again(self) noexcept:
        # The poller stops reading where no memory was lent. An exit that leaves run_forever leaves the connection open, and
        # the loop may be run again.
        if self._conn_lost:
            return
        try:
            self.loop.soon((<object>self)._start_reading, (), self.context)
        except BaseException as exc:
            self.loop.keep_raised(exc)

    cdef void return_buffer(self) noexcept:
        if self.lent_bytes != NULL:
            Py_XDECREF(self.lent_bytes)
            self.lent_bytes = NULL
            self.loop.lent_buffer = None
        if self.lent:
            self.lent = False
            self.loop.lent_buffer = None
            PyBuffer_Release(&self.loop.lent_view)

    cdef void on_data(self, char *data, ssize_t n) noexcept:
        cdef bint buffered = self.lent
        if self._conn_lost or n <= 0:
            self.return_buffer()
            if not self._conn_lost:
                self.on_end(n)
            return
        try:
            if buffered:
                self.return_buffer()
                self.call_protocol(self.protocol.buffer_updated, n)
            elif self.lent_bytes != NULL:
                self.hand_over(self.take_lent(n))
            else:
                if n >= LEND_FROM_BYTES:
                    self.lend_bytes = LEND_BYTES_FIRST
                    self.small_receives = 0
                    self.read_on()
                self.hand_over_copy(data, n)
        except BaseException as exc:
            self.protocol_failed(
                exc,
                "Fatal error: protocol.buffer_updated() call failed."
                if buffered
                else "Fatal error: protocol.data_received() call failed.",
            )

    cdef inline int call_protocol(self, method, arg) except -1:
        if self.loop.timed:
            return self.loop.call_timed(self.context, method, arg)
        stl_call_one(self.context, method, arg)
        return 0

    cdef inline int hand_over(self, bytes received) except -1:
        # A protocol may get its data_received only after it was connected.
        return self.call_protocol(self.on_bytes if self.on_bytes is not None else self.protocol.data_received, received)

    cdef inline int hand_over_copy(self, char *data, ssize_t n) except -1:
        if self.reader is not None and not self.loop.timed and feed_reader(self.reader, self.reader_bytes_max, data, n):
            return 0
        return self.hand_over(PyBytes_FromStringAndSize(data, n))

    cdef bytes take_lent(self, ssize_t n):
        """The first n bytes of what was lent, as an object of their own; adapts to their number."""
        cdef PyObject *received = self.lent_bytes
        self.lent_bytes = NULL
        self.loop.lent_buffer = None
        if <size_t>n >= self.lend_bytes:
            self.lend_bytes = min(2 * self.lend_bytes, <size_t>LEND_BYTES_MAX)
        elif n < COPY_BELOW_BYTES:
            self.small_receives += 1
            if self.small_receives >= COPY_AFTER_SMALL:
                self.lend_bytes = 0
                self.read_on()
        else:
            self.small_receives = 0
            if <size_t>n < self.lend_bytes // 4 and self.lend_bytes > LEND_BYTES_FIRST:
                self.lend_bytes //= 2
        _PyBytes_Resize(&received, n)
        whole = <bytes>received
        Py_XDECREF(received)
        return whole

