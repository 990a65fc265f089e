# The C core and the bridge, as Cython sees them: core/st_poller.h explains.
from libc.stdint cimport int64_t, uint64_t
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.string cimport memcpy
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len


cdef extern from "core/st_poller.h":
    ctypedef struct st_poller
    ctypedef struct st_stream:
        unsigned char sent_awaited
    ctypedef struct st_listener
    ctypedef struct st_watch
    enum:
        ST_READABLE
        ST_WRITABLE
        ST_ONCE
        ST_READ_COPY
        ST_READ_INTO
        ST_SOCKET
        ST_FILE_SYNC

    ctypedef struct st_sink:
        void *context
        void (*block_begin)(void *) noexcept
        void (*block_end)(void *) noexcept
        void (*waited)(void *) noexcept
        int (*stream_buffer)(void *, char **, size_t *) noexcept
        void (*stream_data)(void *, char *, ssize_t) noexcept
        void (*stream_sent)(void *, ssize_t, size_t) noexcept
        void (*accepted)(void *, int) noexcept
        void (*ready)(void *, unsigned) noexcept
        void (*file_done)(void *, int64_t) noexcept
        void (*closed)(void *) noexcept

    ctypedef struct st_poller_statistics:
        uint64_t turns, waits, system_calls, events, accepts, receives, sends
        uint64_t rearms, starved, overflows, in_flight

    ctypedef struct st_poller_ops:
        const char *name
        void (*free)(st_poller *) noexcept
        int (*turn)(st_poller *, int64_t, unsigned, int64_t) noexcept
        int (*wake)(st_poller *) noexcept
        void (*after_fork)(st_poller *) noexcept
        st_stream *(*stream_open)(st_poller *, int, int, void *, int *) noexcept
        int (*stream_read_start)(st_stream *, int) noexcept
        void (*stream_read_stop)(st_stream *) noexcept
        ssize_t (*stream_send)(st_stream *, const iovec *, int) noexcept
        int (*stream_send_more)(st_stream *, const void *, size_t) noexcept
        int (*stream_shutdown)(st_stream *) noexcept
        void (*stream_close)(st_stream *, int) noexcept
        st_listener *(*listener_open)(st_poller *, int, void *, int *) noexcept
        int (*listener_start)(st_listener *, unsigned) noexcept
        void (*listener_stop)(st_listener *) noexcept
        int (*listener_take)(st_listener *) noexcept
        void (*listener_close)(st_listener *) noexcept
        st_watch *(*watch_open)(st_poller *, int, void *, int *) noexcept
        int (*watch_set)(st_watch *, unsigned) noexcept
        void (*watch_close)(st_watch *) noexcept
        int (*file_read)(st_poller *, int, const iovec *, int, int64_t, void *) noexcept
        int (*file_write)(st_poller *, int, const iovec *, int, int64_t, int, void *) noexcept
        int (*file_sync)(st_poller *, int, int, void *) noexcept
        void (*statistics)(st_poller *, st_poller_statistics *) noexcept
        void (*begin)(st_poller *) noexcept
        void (*settle)(st_poller *) noexcept

    ctypedef struct st_poller:
        const st_poller_ops *ops
        st_sink sink
        int64_t spin_ns
        int64_t waited_ns
        unsigned char times_waits

    st_poller *st_epoll_new(const st_sink *, int *) noexcept


cdef extern from "core/st_heap.h":
    void st_keep_heap() noexcept


cdef extern from *:
    """
    #ifdef STELLANE_HAVE_URING
    #define stl_uring_new st_uring_new
    enum { stl_have_uring = 1 };
    #else
    #define stl_uring_new(sink, entries, buffers, buffer_bytes, error) (*(error) = -ENOSYS, (st_poller *)NULL)
    enum { stl_have_uring = 0 };
    #endif
    """
    int stl_have_uring
    st_poller *stl_uring_new(const st_sink *, unsigned, unsigned, unsigned, int *) noexcept


cdef extern from "core/st_queue.h":
    ctypedef struct st_queue:
        size_t count
    int st_queue_push(st_queue *, void *) noexcept
    void *st_queue_pop(st_queue *) noexcept
    void *st_queue_at(const st_queue *, size_t) noexcept
    int st_queue_move(st_queue *, st_queue *) noexcept
    void st_queue_free(st_queue *) noexcept


cdef extern from "core/st_timers.h":
    ctypedef struct st_timer:
        void *item
        size_t place
    ctypedef struct st_timer_slot:
        double when_s
        st_timer *timer
    ctypedef struct st_timers:
        st_timer_slot *slots
        size_t count
    int st_timers_add(st_timers *, st_timer *, double) noexcept
    void st_timers_remove(st_timers *, st_timer *) noexcept
    void st_timers_free(st_timers *) noexcept


cdef extern from "<pthread.h>":
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *) noexcept


cdef extern from "bridge.h":
    bint stl_free_threaded
    ctypedef struct stl_block:
        void *loop
    ctypedef struct stl_held:
        st_queue *ready
        st_queue *inbox
        st_timers *timers
    ctypedef stl_held (*stl_held_by)(PyObject *) noexcept
    void stl_block_begin(void *) noexcept
    void stl_block_end(void *) noexcept
    double stl_now_s() noexcept nogil
    void stl_drop_empty_dict(object) noexcept
    void stl_warn_unclosed(object) noexcept
    object stl_call(object context, object callback, tuple args)
    object stl_call_one(object context, object callback, object arg)
    object stl_call_two(object context, object callback, object first, object second)
    void stl_lock(pthread_mutex_t *) noexcept
    void stl_unlock(pthread_mutex_t *) noexcept
    void stl_traverse_held(void *type, stl_held_by) noexcept


cdef extern from "Python.h":
    object PyContext_CopyCurrent()
    object PyContext_Copy(object)
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1
    int PyObject_GenericSetAttr(object, object, PyObject *) except -1
    int PyBytes_CheckExact(object)
    int _PyBytes_Resize(PyObject **, Py_ssize_t) except -1
