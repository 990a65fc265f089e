# The time that timers go by.

cdef double TIMEOUT_S_MAX = 24 * 3600.0  # as asyncio; a longer wait is several of these
cdef double CLOCK_RESOLUTION_S = 1e-9
cdef int64_t TIMER_GRANULARITY_NS = 1000000  # as asyncio and libuv: timers that are close share a wake-up


cdef class Clock:
    """time.monotonic(), unless somebody patched `time` or a subclass has its own: then timers go by that, as asyncio's do."""

    cdef bint foreign

    def time(self):
        """Seconds on the loop's clock, which is time.monotonic()'s."""
        return stl_now_s()

    cdef inline double now_s(self) except? -1:
        return (<object>self).time() if self.foreign else stl_now_s()

    cdef int choose_clock(self) except -1:
        self.foreign = type(self).time is not Clock.time
        return 0

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, <PyObject *>value)
        if name == "time":
            self.foreign = True

    def __delattr__(self, name):
        PyObject_GenericSetAttr(self, name, NULL)
        if name == "time":
            self.choose_clock()
