# sock_recv and its like: the operation is tried at once, and a socket is registered once for all that wait for it.

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void *, size_t, int)
    ssize_t send(int, const void *, size_t, int)
    int getsockopt(int, int, int, void *, socklen_t *)
    int SOL_SOCKET, SO_ERROR, SO_DOMAIN, SO_TYPE, SOCK_STREAM, MSG_NOSIGNAL, MSG_DONTWAIT

from libc.errno cimport EAGAIN, EINTR, ENOTCONN, errno

import weakref

try:
    from ssl import SSLSocket as ssl_socket_type
except ImportError:  # an interpreter without OpenSSL has none to refuse
    ssl_socket_type = ()

cdef enum operation_kind:
    RECEIVE, RECEIVE_INTO, SEND, ACCEPT, CONNECT


cdef class SocketOperation:
    """One operation that waits for its socket."""

    cdef operation_kind kind
    cdef object sock, future, address
    cdef Py_ssize_t length, done_bytes
    cdef Py_buffer view
    cdef bint has_view

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    cdef object attempt(self, SocketState state):
        """Its result, or TRY_LATER."""
        if self.kind == RECEIVE:
            return state.receive(self.length)
        if self.kind == RECEIVE_INTO:
            return state.receive_into(<char *>self.view.buf, self.view.len)
        if self.kind == SEND:
            return self.send_on(state)
        if self.kind == ACCEPT:
            return accept_connection(self.sock)
        return connect_outcome(state.fd, self.address)

    cdef object send_on(self, SocketState state):
        cdef ssize_t n
        cdef int flags = MSG_NOSIGNAL | MSG_DONTWAIT  # a blocking socket would hold up every thread
        while self.done_bytes < self.view.len:
            n = send(state.fd, <char *>self.view.buf + self.done_bytes, self.view.len - self.done_bytes, flags)
            if n < 0:
                if errno == EINTR:
                    continue
                if errno == EAGAIN:
                    return TRY_LATER
                raise OSError(errno, os.strerror(errno))
            self.done_bytes += n
        return None


cdef object TRY_LATER = object()


cdef object accept_connection(sock):
    try:
        conn, address = sock.accept()
    except (BlockingIOError, InterruptedError):
        return TRY_LATER
    conn.setblocking(False)
    return conn, address


cdef object connect_outcome(int fd, address):
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    cdef sockaddr_storage peer
    if getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length):
        error = errno
    if error:
        raise OSError(error, f"Connect call failed {address}")
    length = sizeof(peer)
    if getpeername(fd, <sockaddr *>&peer, &length) and errno == ENOTCONN:
        return TRY_LATER  # the event was older than the connect
    return None


cdef class SocketState(Watcher):
    """A socket that has had to wait, for as long as it is open under this number."""

    cdef object alive      # weak reference to the socket object
    cdef list reading, writing  # SocketOperation, in the order they came
    cdef bint short_is_drained  # a receive that got less than it could took all: not so where messages are kept apart
    cdef bint drained      # the last receive took all there was, so the next one waits at once

    cdef object receive(self, Py_ssize_t length):
        cdef ssize_t n
        cdef bytes data
        cdef char *buffer
        if length < 0:
            raise ValueError("negative buffersize in recv")
        if length > RECEIVE_SHARED_BYTES_MAX:
            data = PyBytes_FromStringAndSize(NULL, length)
            n = self.receive_raw(PyBytes_AS_STRING(data), length)
            return TRY_LATER if n < 0 else data[:n]
        buffer = self.loop.shared_buffer()
        n = self.receive_raw(buffer, length)
        return TRY_LATER if n < 0 else PyBytes_FromStringAndSize(buffer, n)

    cdef object receive_into(self, char *at, Py_ssize_t length):
        cdef ssize_t n = self.receive_raw(at, length)
        return TRY_LATER if n < 0 else n

    cdef ssize_t receive_raw(self, char *at, Py_ssize_t length) except -2:
        cdef ssize_t n
        while True:
            n = recv(self.fd, at, length, MSG_DONTWAIT)
            if n >= 0:
                self.drained = self.short_is_drained and 0 < n < length
                return n
            if errno == EAGAIN:
                return -1
            if errno != EINTR:
                raise OSError(errno, os.strerror(errno))

    cdef int wait(self, SocketOperation operation, bint writing) except -1:
        (self.writing if writing else self.reading).append(operation)
        try:
            self.arm()
        except BaseException:
            (self.writing if writing else self.reading).remove(operation)
            raise
        return 0

    cdef int arm(self) except -1:
        cdef unsigned events = 0
        if self.reading:
            events |= ST_READABLE
        if self.writing:
            events |= ST_WRITABLE
        if events:
            self.want(events | ST_ONCE)
        return 0

    cdef int forget(self, SocketOperation operation, bint writing) except -1:
        waiting = self.writing if writing else self.reading
        if operation in waiting:
            waiting.remove(operation)
            if self.watch == NULL:
                return 0
            if self.reading or self.writing:
                self.arm()
            else:
                self.want(0)  # now: a poll in flight would keep the socket open after its close()
        return 0

    cdef void on_ready(self, unsigned events) noexcept:
        try:
            if events & ST_READABLE and self.reading:
                self.drained = False
                self.advance(self.reading)
            if events & ST_WRITABLE and self.writing:
                self.advance(self.writing)
            if self.watch != NULL:
                self.arm()
        except BaseException as exc:
            self.loop.keep_raised(exc)

    cdef int advance(self, list waiting) except -1:
        cdef SocketOperation operation
        while waiting:
            operation = waiting[0]
            if not operation.future.done():
                try:
                    result = operation.attempt(self)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as exc:
                    operation.future.set_exception(exc)
                else:
                    if result is TRY_LATER:
                        return 0
                    operation.future.set_result(result)
            del waiting[0]
        return 0

    cdef void closed(self) noexcept:
        Watcher.closed(self)
        if self.loop.sockets.get(self.fd) is self:
            del self.loop.sockets[self.fd]

    def _socket_gone(self, _):
        if self.loop.sockets.get(self.fd) is self:
            del self.loop.sockets[self.fd]
        self.end()


cdef bint is_stream(int fd) noexcept:
    cdef int domain = 0, kind = 0
    cdef socklen_t length = sizeof(int)
    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length)
    getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &length)
    return kind == SOCK_STREAM and (domain == AF_INET or domain == AF_INET6)


cdef int end_idle_socket(LoopCore loop, int fd) except -1:
    """Before another takes the descriptor: two registrations of one cost a second descriptor, and all events twice."""
    cdef SocketState state = loop.sockets.get(fd)
    if state is not None and not state.reading and not state.writing:
        del loop.sockets[fd]
        state.end()
    return 0


cdef SocketState socket_state(LoopCore loop, sock):
    """The state of this very socket object: another one may have had its number before."""
    cdef int fd = sock.fileno()
    cdef SocketState state
    loop.check_open()
    state = loop.sockets.get(fd)
    if state is not None:
        if state.watch != NULL and state.alive() is sock:
            return state
        state.end()
    if fd < 0:
        raise OSError(9, os.strerror(9))
    if fd in loop.streams:
        (<object>loop)._ensure_fd_no_transport(fd)
    state = SocketState.__new__(SocketState)
    state.reading = []
    state.writing = []
    state.open(loop, fd)
    state.short_is_drained = is_stream(fd)
    state.alive = weakref.ref(sock, state._socket_gone)
    loop.sockets[fd] = state
    return state


cdef int check_socket(LoopCore loop, sock) except -1:
    if isinstance(sock, ssl_socket_type):
        raise TypeError("Socket cannot be of type SSLSocket")
    if loop._debug_mode and sock.gettimeout() != 0:
        raise ValueError("the socket must be non-blocking")
    return 0


cdef class SocketOperations(LoopCore):
    """The sock_* half of the core."""

    # binding: a plain built-in method is no coroutine function to inspect, asyncio and mock, and has no signature.

    @cython.binding(True)
    async def sock_recv(self, sock, n):
        """At most n bytes, as soon as there are any; b"" at the end of file."""
        cdef SocketState state
        cdef SocketOperation operation
        check_socket(self, sock)
        state = socket_state(self, sock)
        if n == 0:
            return b""  # as socket.recv: the kernel would wait for bytes that nobody takes
        if not state.drained and not state.reading:
            data = state.receive(n)
            if data is not TRY_LATER:
                return data
        operation = SocketOperation.__new__(SocketOperation)
        operation.kind = RECEIVE
        operation.length = n
        operation.future = (<object>self).create_future()
        state.wait(operation, False)
        try:
            return await operation.future
        finally:
            if operation.future.cancelled():
                state.forget(operation, False)

    @cython.binding(True)
    async def sock_recv_into(self, sock, buf):
        """Receive into buf; the number of bytes, 0 at the end of file."""
        cdef SocketState state
        cdef SocketOperation operation
        check_socket(self, sock)
        state = socket_state(self, sock)
        operation = SocketOperation.__new__(SocketOperation)
        operation.kind = RECEIVE_INTO
        PyObject_GetBuffer(buf, &operation.view, PyBUF_WRITABLE)
        operation.has_view = True
        if operation.view.len == 0:
            return 0
        if not state.drained and not state.reading:
            n = operation.attempt(state)
            if n is not TRY_LATER:
                return n
        operation.future = (<object>self).create_future()
        state.wait(operation, False)
        try:
            return await operation.future
        finally:
            if operation.future.cancelled():
                state.forget(operation, False)

    @cython.binding(True)
    async def sock_sendall(self, sock, data):
        """Send all of data."""
        cdef SocketState state
        cdef SocketOperation operation
        check_socket(self, sock)
        state = socket_state(self, sock)
        operation = SocketOperation.__new__(SocketOperation)
        operation.kind = SEND
        PyObject_GetBuffer(data, &operation.view, PyBUF_SIMPLE)
        operation.has_view = True
        if not state.writing and operation.attempt(state) is None:
            return
        operation.future = (<object>self).create_future()
        state.wait(operation, True)
        try:
            await operation.future
        finally:
            if operation.future.cancelled():
                state.forget(operation, True)

    @cython.binding(True)
    async def sock_accept(self, sock):
        """(conn, address) of the next connection; conn is non-blocking."""
        cdef SocketState state
        cdef SocketOperation operation
        check_socket(self, sock)
        connection = accept_connection(sock)
        if connection is not TRY_LATER:
            return connection
        state = socket_state(self, sock)
        operation = SocketOperation.__new__(SocketOperation)
        operation.kind = ACCEPT
        operation.sock = sock
        operation.future = (<object>self).create_future()
        state.wait(operation, False)
        try:
            return await operation.future
        finally:
            if operation.future.cancelled():
                state.forget(operation, False)

    @cython.binding(True)
    async def sock_connect(self, sock, address):
        """Connect; a host name is looked up first."""
        cdef SocketState state
        cdef SocketOperation operation
        check_socket(self, sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await (<object>self)._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        try:
            sock.connect(address)
            return
        except BlockingIOError:
            if sock.family == socket.AF_UNIX:
                raise  # its backlog is full: there is nothing under way to wait for
        except InterruptedError:
            pass
        state = socket_state(self, sock)
        operation = SocketOperation.__new__(SocketOperation)
        operation.kind = CONNECT
        operation.address = address
        operation.future = (<object>self).create_future()
        state.wait(operation, True)
        try:
            await operation.future
        finally:
            if operation.future.cancelled():
                state.forget(operation, True)
