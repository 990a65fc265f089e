# asyncio's streams, fed without a frame of Python: who uses StreamReader has no say in how bytes come into it.

# What asyncio's methods touch in the releases that feed_reader was written from. A release in which they do more, or
# something else, is not fed natively.
cdef dict KNOWN_NAMES = {
    "data_received": {"_stream_reader", "feed_data"},
    "feed_data": {
        "_eof", "_buffer", "extend", "_wakeup_waiter", "_transport", "_paused", "len", "_limit", "pause_reading",
        "NotImplementedError", "AssertionError",
    },
    "_wakeup_waiter": {"_waiter", "cancelled", "set_result"},
}


cdef bint does_only_what_is_known(function):
    return set(function.__code__.co_names) <= <set>KNOWN_NAMES[function.__name__]


cdef object STREAM_PROTOCOL = asyncio.StreamReaderProtocol
cdef object STREAM_READER = asyncio.StreamReader
cdef object ASYNCIO_DATA_RECEIVED = asyncio.StreamReaderProtocol.data_received
cdef object ASYNCIO_FEED_DATA = asyncio.StreamReader.feed_data
cdef object ASYNCIO_WAKEUP_WAITER = asyncio.StreamReader._wakeup_waiter
cdef bint ASYNCIO_STREAMS_ARE_KNOWN = (
    does_only_what_is_known(ASYNCIO_DATA_RECEIVED)
    and does_only_what_is_known(ASYNCIO_FEED_DATA)
    and does_only_what_is_known(ASYNCIO_WAKEUP_WAITER)
)


cdef object reader_of(protocol, Py_ssize_t *bytes_max):
    """A weak reference to the StreamReader that `protocol` only feeds; None when it, or somebody, does anything else.

    `bytes_max`: what it may hold before it pauses its transport. Whoever changes its limit later is found by asyncio,
    which is asked for what is beyond.
    """
    if type(protocol) is not STREAM_PROTOCOL or not ASYNCIO_STREAMS_ARE_KNOWN or "data_received" in vars(protocol):
        return None
    if (
        STREAM_PROTOCOL.data_received is not ASYNCIO_DATA_RECEIVED
        or STREAM_READER.feed_data is not ASYNCIO_FEED_DATA
        or STREAM_READER._wakeup_waiter is not ASYNCIO_WAKEUP_WAITER
    ):
        return None
    reference = protocol._stream_reader_wr
    reader = None if reference is None else reference()
    if type(reader) is not STREAM_READER or "feed_data" in vars(reader) or "_wakeup_waiter" in vars(reader):
        return None
    limit = reader._limit
    if type(limit) is not int:
        return None
    bytes_max[0] = min(2 * limit, sys.maxsize)
    return reference


cdef bint feed_reader(reference, Py_ssize_t bytes_max, const char *data, Py_ssize_t n) except -1:
    """StreamReader.feed_data. Whether it was done: an end, a full buffer or a lost reader are left to asyncio."""
    reader = reference()
    if reader is None or reader._eof:
        return False
    cdef bytearray buffer = reader._buffer
    cdef Py_ssize_t held = PyByteArray_GET_SIZE(buffer)
    if held + n > bytes_max:
        return False
    PyByteArray_Resize(buffer, held + n)
    memcpy(PyByteArray_AS_STRING(buffer) + held, data, n)
    waiter = reader._waiter
    if waiter is not None:
        reader._waiter = None
        if not waiter.cancelled():
            waiter.set_result(None)
    return True
