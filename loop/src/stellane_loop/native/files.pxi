# File operations that the poller does without a thread pool.

cdef class FileOperation(Owned):
    """One read, write or sync under way. It keeps its memory and itself until the poller is done with both."""

    cdef object future
    cdef bytes data       # what is written, or read into
    cdef iovec part

    cdef int begin(self, LoopCore loop, bytes data, future) except -1:
        self.loop = loop
        self.data = data
        if data is not None:
            self.part.iov_base = PyBytes_AS_STRING(data)
            self.part.iov_len = PyBytes_GET_SIZE(data)
        self.future = future
        loop.own(self)
        return 0

    cdef int started(self, int error) except -1:
        if error:
            self.loop.disown(self)
            raise OSError(-error, os.strerror(-error))
        return 0

    cdef void on_done(self, int64_t result) noexcept:
        try:
            if not self.future.done():
                if result < 0:
                    self.future.set_exception(OSError(-result, os.strerror(-result)))
                else:
                    self.future.set_result(result)
        except BaseException as exc:
            self.loop.keep_raised(exc)
        self.loop.disown(self)


cdef class FileOperations(SocketOperations):
    """Futures of file operations; None where the poller leaves them to a thread."""

    def _native_file_read(self, int fd, Py_ssize_t length, int64_t offset):
        cdef FileOperation operation
        self.check_open()
        if self.poller.ops.file_read == NULL:
            return None
        operation = FileOperation.__new__(FileOperation)
        operation.begin(self, PyBytes_FromStringAndSize(NULL, length), (<object>self).create_future())
        operation.started(
            self.poller.ops.file_read(self.poller, fd, &operation.part, 1, offset, <void *>operation)
        )
        return operation.future, operation.data

    def _native_file_write(self, int fd, bytes data, int64_t offset, bint sync):
        cdef FileOperation operation
        self.check_open()
        if self.poller.ops.file_write == NULL:
            return None
        operation = FileOperation.__new__(FileOperation)
        operation.begin(self, data, LastingFuture(loop=self))
        operation.started(
            self.poller.ops.file_write(
                self.poller, fd, &operation.part, 1, offset, ST_FILE_SYNC if sync else 0, <void *>operation
            )
        )
        return operation.future

    def _native_file_sync(self, int fd, bint data_only):
        cdef FileOperation operation
        self.check_open()
        if self.poller.ops.file_sync == NULL:
            return None
        operation = FileOperation.__new__(FileOperation)
        operation.begin(self, None, LastingFuture(loop=self))
        operation.started(self.poller.ops.file_sync(self.poller, fd, data_only, <void *>operation))
        return operation.future
