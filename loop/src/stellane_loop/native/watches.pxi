# add_reader and add_writer.

cdef class Watcher(Owned):
    """Something that wants to know when a descriptor is ready."""

    cdef st_watch *watch
    cdef int fd

    cdef void on_ready(self, unsigned events) noexcept:
        pass

    cdef int open(self, LoopCore loop, int fd) except -1:
        cdef int error = 0
        self.loop = loop
        self.fd = fd
        self.watch = loop.poller.ops.watch_open(loop.poller, fd, <void *>self, &error)
        if self.watch == NULL:
            raise OSError(-error, os.strerror(-error))
        loop.own(self)
        return 0

    cdef int want(self, unsigned events) except -1:
        cdef int error = self.loop.poller.ops.watch_set(self.watch, events)
        if error:
            raise OSError(-error, os.strerror(-error))
        return 0

    cdef void end(self) noexcept:
        if self.watch != NULL:
            self.loop.poller.ops.watch_close(self.watch)
            self.watch = NULL

    cdef void closed(self) noexcept:
        self.watch = NULL


cdef class Watch(Watcher):
    """The reader and the writer of one descriptor."""

    cdef Handle reader, writer
    cdef unsigned long reader_turn, writer_turn  # in which they were set: what that turn's poll found is not theirs
    cdef object file  # as it was given last: once closed it has no number to be found by

    cdef void on_ready(self, unsigned events) noexcept:
        cdef Handle reader = self.reader if events & ST_READABLE and self.reader_turn != self.loop.turns else None
        cdef Handle writer = self.writer if events & ST_WRITABLE and self.writer_turn != self.loop.turns else None
        try:
            if reader is not None:
                self.run_or_push(reader)
            if writer is not None:
                self.run_or_push(writer)
        except BaseException as exc:
            self.loop.keep_raised(exc)

    cdef inline int run_or_push(self, Handle handle) except -1:
        if self.loop.order is None:
            self.loop.measures.callbacks += self.loop.measured
            return self.loop.run_one(handle)
        # It may wait there for several turns, and each of their polls says again that the descriptor is ready.
        if not handle.queued:
            self.loop.push_ordered(handle)
            handle.queued = True
        return 0

    cdef int update(self) except -1:
        cdef unsigned events = 0
        if self.reader is not None:
            events |= ST_READABLE
        if self.writer is not None:
            events |= ST_WRITABLE
        if events:
            return 0 if self.watch == NULL else self.want(events)
        self.loop.watches.pop(self.fd, None)
        self.end()
        return 0


cdef Handle watch_add(LoopCore loop, file, Handle handle, bint writer):
    cdef int fd = descriptor_of(file)
    cdef Watch watch
    cdef Handle replaced
    loop.check_open()
    watch = loop.watches.get(fd)
    if watch is None or watch.watch == NULL:
        end_idle_socket(loop, fd)
        watch = Watch.__new__(Watch)
        watch.open(loop, fd)
        loop.watches[fd] = watch
    if writer:
        replaced, watch.writer = watch.writer, handle
        watch.writer_turn = loop.turns
    else:
        replaced, watch.reader = watch.reader, handle
        watch.reader_turn = loop.turns
    try:
        watch.update()
    except BaseException:
        if writer:
            watch.writer = replaced
        else:
            watch.reader = replaced
        if watch.reader is None and watch.writer is None:
            watch.update()
        raise
    watch.file = file
    if replaced is not None:
        replaced.cancel_now()
    return handle


cdef Watch watch_of(LoopCore loop, file):
    if isinstance(file, int) or not is_closed(file):
        return loop.watches.get(descriptor_of(file))
    for watch in loop.watches.values():
        if (<Watch>watch).file is file:
            return watch
    descriptor_of(file)  # ValueError, as from a selector that does not know the closed file
    return None


cdef bint watch_remove(LoopCore loop, file, bint writer) except -1:
    cdef Watch watch = None if loop._closed else watch_of(loop, file)
    cdef Handle removed
    if watch is None:
        return False
    if writer:
        removed, watch.writer = watch.writer, None
    else:
        removed, watch.reader = watch.reader, None
    if removed is None:
        return False
    removed.cancel_now()
    if is_closed(watch.file):
        watch.end()  # what is left can only be removed: the number may be another file's by now
    watch.update()
    return True


cdef int watch_end(LoopCore loop, int fd) except -1:
    """Take the descriptor from sendfile, which waits to write to a transport that is closed under it."""
    cdef Watch watch = loop.watches.pop(fd, None)
    cdef Handle writer
    if watch is None:
        return 0
    watch.end()
    if watch.writer is not None and not watch.writer._cancelled:
        writer, watch.writer = watch.writer, None
        writer.run()  # it finds a socket without a descriptor, and fails
        writer.cancel_now()
    return 0


cdef int number_of(fileobj) except? -1:
    if isinstance(fileobj, int):
        return fileobj
    try:
        return int(fileobj.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"Invalid file object: {fileobj!r}") from None


cdef bint is_closed(fileobj) except -1:
    try:
        return number_of(fileobj) < 0
    except ValueError:  # as the file objects of io
        return True


cdef int descriptor_of(fileobj) except? -1:
    cdef int fd = number_of(fileobj)
    if fd < 0:
        raise ValueError(f"Invalid file descriptor: {fd}")
    return fd
