# What the poller calls. These hold the lock all along (block_begin and block_end are called in pairs),
# so they are plain C functions; none of them lets an exception out.

cdef int sink_stream_buffer(void *owner, char **at, size_t *length) noexcept:
    return (<StreamTransport>owner).lend_buffer(at, length)


cdef void sink_stream_data(void *owner, char *data, ssize_t n) noexcept:
    (<StreamTransport>owner).on_data(data, n)


cdef void sink_stream_sent(void *owner, ssize_t n, size_t rest) noexcept:
    (<StreamTransport>owner).on_sent(n, rest)


cdef void sink_accepted(void *owner, int fd) noexcept:
    (<Listener>owner).on_accepted(fd)


cdef void sink_ready(void *owner, unsigned events) noexcept:
    (<Watcher>owner).on_ready(events)


cdef void sink_file_done(void *owner, int64_t result) noexcept:
    (<FileOperation>owner).on_done(result)


cdef void sink_waited(void *context) noexcept:
    (<LoopCore>(<stl_block *>context).loop).run_earlier()


cdef void sink_closed(void *owner) noexcept:
    cdef Owned object_ = <Owned>owner
    object_.closed()
    object_.loop.disown(object_)


cdef st_sink loop_sink
loop_sink.context = NULL
loop_sink.block_begin = stl_block_begin
loop_sink.block_end = stl_block_end
loop_sink.waited = sink_waited
loop_sink.stream_buffer = sink_stream_buffer
loop_sink.stream_data = sink_stream_data
loop_sink.stream_sent = sink_stream_sent
loop_sink.accepted = sink_accepted
loop_sink.ready = sink_ready
loop_sink.file_done = sink_file_done
loop_sink.closed = sink_closed
