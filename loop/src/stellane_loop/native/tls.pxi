# The usual way of a TLS record: the handshake is over, the application reads bytes and nothing is paused. Everything
# else is asyncio's: these are first bases of classes that have asyncio's for their second. The fields are asyncio's
# attributes, kept where C finds them.

cdef enum:
    RECORD_BYTES_MAX = 16 * 1024  # of what a record carries: RFC 8446, section 5.1

cdef object TLS_AGAIN = getattr(sslproto, "SSLAgainErrors", ())  # an interpreter without OpenSSL has none
cdef object TLS_WRAPPED = sslproto.SSLProtocolState.WRAPPED
cdef object AsyncioSSL = sslproto.SSLProtocol
cdef object AsyncioSSLTransport = sslproto._SSLProtocolTransport


cdef class SSLProtocolBase:
    """What of asyncio's SSLProtocol a record meets. A stream hands it bytes, where asyncio's lends memory of its own."""

    cdef public object _state
    cdef public object _transport
    cdef public object _app_protocol
    cdef public object _write_backlog
    cdef public bint _app_protocol_is_buffer
    cdef public bint _app_reading_paused, _ssl_writing_paused
    cdef public Py_ssize_t _outgoing_high_water
    cdef object put_incoming, take_outgoing  # methods of the memory that OpenSSL reads from and writes to
    cdef object incoming, outgoing
    cdef object read, write, pending         # methods of the connection as OpenSSL knows it

    def _know(self, tls, incoming, outgoing):
        """Once, when asyncio's part is made: the connection and its two BIOs.

        None for a connection that has not read, write and pending as OpenSSL has them; nothing is usual then.
        """
        self.incoming = incoming
        self.outgoing = outgoing
        self.put_incoming = incoming.write
        self.take_outgoing = outgoing.read
        if tls is not None:
            self.read = tls.read
            self.write = tls.write
            self.pending = tls.pending

    def data_received(self, data):
        """So much came from the socket."""
        self.put_incoming(data)
        if (
            self._state is not TLS_WRAPPED
            or self.read is None
            or self._app_reading_paused
            or self._app_protocol_is_buffer
        ):
            AsyncioSSL.buffer_updated(self, 0)
            return
        try:
            self.read_records()
            if self._write_backlog:
                (<object>self)._do_write()
            elif self.outgoing.pending or not self._outgoing_high_water:
                (<object>self)._process_outgoing()
        except Exception as exc:
            (<object>self)._fatal_error(exc, "Fatal error on SSL protocol")

    cdef int read_records(self) except -1:
        # All of them: what stays below is less than a record, so asyncio's limit of it is not looked at.
        cdef Py_ssize_t waiting = self.incoming.pending
        cdef bint ended
        # What a record carries is shorter than the record.
        try:
            data = self.read(min(waiting, <Py_ssize_t>RECORD_BYTES_MAX))
        except TLS_AGAIN:
            return 0
        ended = not data
        # More of a record may be in what OpenSSL has already read.
        if not ended and (self.incoming.pending or self.pending()):
            chunks = [data]
            ended = self.read_rest(chunks)
            data = b"".join(chunks)
        if data:
            self._app_protocol.data_received(data)
        if ended:
            (<object>self)._call_eof_received()
            (<object>self)._start_shutdown()
        return 0

    cdef bint read_rest(self, list chunks) except -1:
        """Whether the peer has ended."""
        try:
            while chunk := self.read(RECORD_BYTES_MAX):
                chunks.append(chunk)
        except TLS_AGAIN:
            return False
        return True

    def _write_appdata(self, list_of_data):
        self.put_all(list_of_data)

    cdef int put_all(self, parts) except -1:
        if (
            self._state is not TLS_WRAPPED
            or self.write is None
            or self._write_backlog
            or self._ssl_writing_paused
            or not self._outgoing_high_water
            or not all_bytes(parts)
        ):
            AsyncioSSL._write_appdata(self, parts)
            return 0
        try:
            rest = self.encrypt(parts)
            if rest is None:
                self._transport.write(self.take_outgoing())
            else:
                AsyncioSSL._write_appdata(self, rest)
        except Exception as exc:
            (<object>self)._fatal_error(exc, "Fatal error on SSL protocol")
        return 0

    cdef encrypt(self, parts):
        """What OpenSSL did not take, for it waits to read first; else None."""
        cdef Py_ssize_t place = 0, count
        for part in parts:
            try:
                count = self.write(part)
            except TLS_AGAIN:
                count = 0
            if count < PyBytes_GET_SIZE(part):
                return [part[count:], *parts[place + 1 :]]
            place += 1
        return None


cdef class SSLTransportBase:
    """What of asyncio's transport a record meets. Without fields: those of asyncio's have slots."""

    def write(self, data):
        """Send the bytes, or queue them; never blocks."""
        protocol = (<object>self)._ssl_protocol
        if PyBytes_CheckExact(data) and PyBytes_GET_SIZE(data) and isinstance(protocol, SSLProtocolBase):
            (<SSLProtocolBase>protocol).put_all((data,))
        else:
            AsyncioSSLTransport.write(self, data)


cdef bint all_bytes(parts) noexcept:
    if type(parts) is not tuple and type(parts) is not list:
        return False
    for part in parts:
        if not PyBytes_CheckExact(part):
            return False
    return True
