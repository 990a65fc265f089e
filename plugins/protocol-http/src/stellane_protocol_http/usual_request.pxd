# The types with which Cython compiles usual_request.py. Public: the subclasses, plain Python, use it too.

cimport cython


cdef object _time
cdef Py_ssize_t _joined_body_bytes_max, _gather_bytes_max
cdef int _head, _busy, _linger
cdef double _never


cdef class Clock:
    cdef public double now, idle_deadline


cdef class FinishedHeads:
    cdef public double stamp_from, stamp_until
    cdef public dict heads
    cdef public object last_headers
    cdef object last_status, last_head
    cdef Py_ssize_t last_bytes

    cdef object kept_alive(self, object status, object headers, Py_ssize_t body_bytes)


cdef class UsualExchange:
    cdef public UsualConnection connection
    cdef public object method, path, head
    cdef public bint response_started, response_ended, body_complete, simple, watched, in_codec, brings_ids
    cdef public bint keep_alive, plain

    cdef answer(self, object status, object headers, object body, tuple ids)
    cdef prepare(self, UsualConnection connection, object method, object path, object head)


cdef class UsualConnection:
    cdef object exchange_type
    cdef public object begin
    cdef public Clock clock
    cdef public FinishedHeads head_writer
    cdef dict known_heads
    cdef public object codec, gathered, transport_write
    cdef public UsualExchange exchange
    cdef public int phase
    cdef public double deadline
    cdef public bint codec_empty, lost, keeps_alive, reading_paused

    @cython.locals(exchange=UsualExchange)
    cdef UsualExchange usual_exchange(self, object method, object path, object head)
    cdef flush(self)
    cdef answered(self, UsualExchange exchange, object response)
