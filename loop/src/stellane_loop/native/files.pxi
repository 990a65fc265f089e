# File operations that the poller does without a thread pool.

cdef class FileOperation(Owned):
    """One read, write or sync under way."""

    cdef object future
    cdef object buffer  # bytes: what is written, or what is read into

    cdef void on_done(self, int64_t result) noexcept:
        pass
