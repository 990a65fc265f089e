# What the standard library's code calls by name: add_reader, transports, servers.

cdef int set_nodelay(sock) except -1:
    """For TCP, also where the socket was made without naming the protocol."""
    internet = sock.family == socket.AF_INET or sock.family == socket.AF_INET6
    if internet and sock.type == socket.SOCK_STREAM and sock.proto in (0, socket.IPPROTO_TCP):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return 0


cdef tuple OWN_IO = ("recv", "recv_into", "send", "sendmsg")
cdef object PLAIN_SOCKET = socket.socket  # tests of programs put something else in its place, a function at times


cdef bint has_own_io(sock) except -1:
    """Whether its class receives or sends in a way of its own, which a transport has to use."""
    kind = type(sock)
    if kind is PLAIN_SOCKET:
        return False
    for name in OWN_IO:
        if getattr(kind, name, None) is not getattr(PLAIN_SOCKET, name):
            return True
    return False


cdef class NativeLoop(AdaptiveTurns):
    """All of the native half; `stellane_loop.Loop` is this and asyncio's own Unix loop."""

    # --- readiness of descriptors ---

    def _add_reader(self, fd, callback, *args):
        return watch_add(self, fd, self.handle(callback, args, None), False)

    def _add_writer(self, fd, callback, *args):
        return watch_add(self, fd, self.handle(callback, args, None), True)

    def _remove_reader(self, fd):
        return watch_remove(self, fd, False)

    def _remove_writer(self, fd):
        return watch_remove(self, fd, True)

    def add_reader(self, fd, callback, *args):
        """Call callback(*args) in each turn in which fd can be read; replaces the one before."""
        descriptor_of(fd)
        (<object>self)._ensure_fd_no_transport(fd)
        watch_add(self, fd, self.handle(callback, args, None), False)

    def add_writer(self, fd, callback, *args):
        """Call callback(*args) in each turn in which fd can be written; replaces the one before."""
        descriptor_of(fd)
        (<object>self)._ensure_fd_no_transport(fd)
        watch_add(self, fd, self.handle(callback, args, None), True)

    def remove_reader(self, fd):
        """Whether there was one."""
        (<object>self)._ensure_fd_no_transport(fd)
        return watch_remove(self, fd, False)

    def remove_writer(self, fd):
        """Whether there was one."""
        (<object>self)._ensure_fd_no_transport(fd)
        return watch_remove(self, fd, True)

    def _watched(self):
        """descriptor -> (reader, writer)."""
        cdef Watch watch
        return {fd: ((<Watch>watch).reader, (<Watch>watch).writer) for fd, watch in self.watches.items()}

    def _stream_of(self, int fd):
        """The stream transport that has this descriptor, or None."""
        return self.streams.get(fd)

    def _lend_stream(self, StreamTransport transport, bint lent):
        """While lent, the descriptor of a transport may be used with add_writer (sendfile does)."""
        if lent:
            self.streams.pop(transport._sock_fd, None)
        elif transport.stream != NULL:
            self.streams[transport._sock_fd] = transport

    # --- transports and servers ---

    def _make_socket_transport(self, sock, protocol, waiter=None, *, extra=None, server=None):
        cdef StreamTransport transport
        cdef dict known = dict(extra) if extra else {}
        self.check_open()
        if has_own_io(sock):
            asyncios = selector_events.BaseSelectorEventLoop._make_socket_transport
            return asyncios(self, sock, protocol, waiter, extra=extra, server=server)
        set_nodelay(sock)
        for name, address in addresses_of(sock.fileno()).items():
            known.setdefault(name, address)
        known["socket"] = trsock.TransportSocket(sock)
        end_idle_socket(self, sock.fileno())
        transport = StreamTransport.__new__(StreamTransport)
        transport.open(self, sock.fileno(), protocol, server, known)
        transport.sock = sock
        self.soon(transport._begin, (waiter,), None)
        return transport

    def _start_serving(
        self,
        protocol_factory,
        sock,
        sslcontext=None,
        server=None,
        backlog=100,
        ssl_handshake_timeout=constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout=constants.SSL_SHUTDOWN_TIMEOUT,
    ):
        cdef Listener listener = Listener.__new__(Listener)
        set_nodelay(sock)  # what it accepts inherits it
        listener.sock = sock
        listener.factory = protocol_factory
        listener.tls = sslcontext
        listener.server = server
        listener.backlog = max(1, backlog)
        listener.timeouts = (ssl_handshake_timeout, ssl_shutdown_timeout)
        listener.context = PyContext_CopyCurrent()
        listener.open(self)
        self.listeners[sock] = listener

    def _end_listener(self, sock):
        cdef Listener listener = self.listeners.pop(sock, None)
        if listener is not None:
            listener.end()
