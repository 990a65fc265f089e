# Listening sockets.

cdef bint server_counts_transports = sys.version_info >= (3, 13)  # Server._attach takes the transport


cdef bint server_attach(server, StreamTransport transport) except -1:
    """Whether the server counts the connection: not one that has closed and told those who waited for that."""
    if server._sockets is None:
        # It closes just now. Its own _attach takes no connection any more, but this one was accepted before.
        if server._waiters is None:
            return False
        if server_counts_transports:
            server._clients.add(transport)
        else:
            server._active_count += 1
    elif server_counts_transports:
        server._attach(transport)
    else:
        server._attach()
    return True


cdef int server_detach(server, StreamTransport transport) except -1:
    if server_counts_transports:
        server._detach(transport)
    else:
        server._detach()
    return 0


cdef class Listener(Owned):
    """One listening socket of a server."""

    cdef st_listener *listener
    cdef object sock, factory, tls, server, context
    cdef unsigned backlog
    cdef tuple timeouts
    cdef bint ending

    cdef int open(self, LoopCore loop) except -1:
        cdef int error = 0
        self.loop = loop
        self.listener = loop.poller.ops.listener_open(loop.poller, self.sock.fileno(), <void *>self, &error)
        if self.listener == NULL:
            raise OSError(-error, os.strerror(-error))
        loop.own(self)
        return self.start()

    cdef int start(self) except -1:
        cdef int error = self.loop.poller.ops.listener_start(self.listener, self.backlog)
        if error:
            raise OSError(-error, os.strerror(-error))
        return 0

    def _start_again(self):
        if self.listener != NULL:
            self.start()

    cdef void on_accepted(self, int fd) noexcept:
        try:
            if fd < 0:
                self.refused(-fd)
            elif self.tls is not None:
                self.accept_tls(fd)
            else:
                self.accept(fd)
        except (SystemExit, KeyboardInterrupt) as exc:
            self.loop.keep_raised(exc)
        except BaseException as exc:
            try:
                (<object>self.loop).call_exception_handler(
                    {"message": "Error on transport creation for incoming connection", "exception": exc}
                )
            except BaseException as further:
                self.loop.keep_raised(further)

    cdef int refused(self, int error) except -1:
        (<object>self.loop).call_exception_handler(
            {
                "message": "socket.accept() out of system resource",
                "exception": OSError(error, os.strerror(error)),
                "socket": trsock.TransportSocket(self.sock),
            }
        )
        self.loop.call_later(constants.ACCEPT_RETRY_DELAY, self._start_again)
        return 0

    cdef int accept(self, int fd) except -1:
        cdef StreamTransport transport = None
        # Each connection has a context of its own: what one sets, the next does not see.
        context = PyContext_Copy(self.context)
        PyContext_Enter(context)
        try:
            try:
                protocol = self.factory()
                transport = StreamTransport.__new__(StreamTransport)
                transport.open(self.loop, fd, protocol, self.server, None)
            except BaseException:
                if transport is None or transport.stream == NULL:
                    os.close(fd)
                else:
                    transport.force_close(None)
                raise
        finally:
            PyContext_Exit(context)
        if self.ending:
            # Whoever closes a server does not expect to be called back in the middle of that.
            self.loop.soon(transport._begin, (None,), context)
            return 0
        return transport.begin(None, True)

    cdef int accept_tls(self, int fd) except -1:
        conn = socket.socket(fileno=fd)
        conn.setblocking(False)
        try:
            extra = {"peername": conn.getpeername()}
        except OSError:
            conn.close()  # it went away before it was greeted
            return 0
        loop = <object>self.loop
        stl_call(
            PyContext_Copy(self.context),
            loop.create_task,
            (loop._accept_connection2(self.factory, conn, extra, self.tls, self.server, *self.timeouts),),
        )
        return 0

    cdef void end(self) noexcept:
        cdef int fd = 0
        if self.listener == NULL or self.ending:
            return
        self.ending = True
        while fd >= 0 and self.loop.poller.ops.listener_take != NULL:
            fd = self.loop.poller.ops.listener_take(self.listener)
            if fd >= 0:
                self.on_accepted(fd)
        if self.listener != NULL:
            self.loop.poller.ops.listener_close(self.listener)
            self.listener = NULL

    cdef void closed(self) noexcept:
        self.listener = NULL
