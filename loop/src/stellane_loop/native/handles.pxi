# Handles: what call_soon, call_later and add_reader give back.

@cython.freelist(1024)
cdef class Handle:
    """A callback to be run once, or whenever its descriptor is ready (as `asyncio.Handle`)."""

    cdef readonly object _callback
    cdef tuple args   # None: there is `first`, and perhaps `second`
    cdef object first, second
    cdef readonly object _context
    cdef readonly Scheduling _loop
    cdef readonly bint _cancelled
    cdef bint has_second
    cdef bint queued  # in a ReadyOrder, because its descriptor was ready
    cdef readonly object _source_traceback
    cdef object kept_repr
    cdef object __weakref__

    def cancel(self):
        """Do not run it. Harmless when it has run or was cancelled before."""
        with cython.critical_section(self):
            self.cancel_now()

    cdef int cancel_now(self) except -1:
        if self._cancelled:
            return 0
        self._cancelled = True
        if self._loop is not None and self._loop._debug_mode:
            self.kept_repr = repr(self)  # "Executing <Handle …> took …" still has to name it
        self._callback = None
        self.args = None
        self.first = self.second = None
        return 0

    @property
    def _args(self):
        if self._cancelled:
            return None
        if self.args is not None:
            return self.args
        return (self.first, self.second) if self.has_second else (self.first,)

    def cancelled(self):
        """Whether it was cancelled."""
        return self._cancelled

    def get_context(self):
        """The context it runs in."""
        return self._context

    def _run(self):
        if not self._cancelled:
            self.run()

    cdef int run(self) except -1:
        if stl_free_threaded:
            return self.run_taken()
        try:
            if self.args is not None:
                stl_call(self._context, self._callback, self.args)
            elif self.has_second:
                stl_call_two(self._context, self._callback, self.first, self.second)
            else:
                stl_call_one(self._context, self._callback, self.first)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.report(exc)
        return 0

    cdef int run_taken(self) except -1:
        """As run, where another thread may cancel it meanwhile: what is called is held first."""
        cdef tuple args
        with cython.critical_section(self):
            if self._cancelled:
                return 0
            callback, args = self._callback, self.args
            if args is None:
                args = (self.first, self.second) if self.has_second else (self.first,)
        try:
            stl_call(self._context, callback, args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.report(exc)
        return 0

    cdef report(self, exc):
        source = format_helpers._format_callback_source(self._callback, self._args)
        context = {"message": f"Exception in callback {source}", "exception": exc, "handle": self}
        if self._source_traceback:
            context["source_traceback"] = self._source_traceback
        (<object>self._loop).call_exception_handler(context)

    def _repr_info(self):
        info = [type(self).__name__]
        if self._cancelled:
            info.append("cancelled")
        if self._callback is not None:
            info.append(format_helpers._format_callback_source(self._callback, self._args))
        if self._source_traceback:
            frame = self._source_traceback[len(self._source_traceback) - 1]
            info.append(f"created at {frame[0]}:{frame[1]}")
        return info

    def __repr__(self):
        if self.kept_repr is not None:
            return self.kept_repr
        return f"<{' '.join(self._repr_info())}>"

    @property
    def __class__(self):
        return events.Handle


cdef object THREAD_SAFE_HANDLE = getattr(asyncio.events, "_ThreadSafeHandle", None)  # from Python 3.14 on


cdef class ThreadSafeHandle(Handle):
    """What call_soon_threadsafe gives back from Python 3.14 on (as `asyncio.events._ThreadSafeHandle`).

    While another thread runs it, cancel() and cancelled() wait.
    """

    cdef object lock

    def __cinit__(self):
        self.lock = threading.RLock()

    def cancel(self):
        """Do not run it. Harmless when it has run or was cancelled before."""
        with self.lock:
            self.cancel_now()

    def cancelled(self):
        """Whether it was cancelled."""
        with self.lock:
            return self._cancelled

    cdef int run(self) except -1:
        with self.lock:
            if not self._cancelled:
                Handle.run(self)
        return 0

    @property
    def __class__(self):
        return THREAD_SAFE_HANDLE


cdef class TimerHandle(Handle):
    """A callback to be run at a time of the loop's clock (as `asyncio.TimerHandle`)."""

    cdef st_timer timer
    cdef double when_s
    cdef bint whole  # it was given as an int, and is shown as one: aiohttp rounds its timeouts up to whole seconds

    @property
    def _scheduled(self):
        return self.timer.place != 0

    @property
    def _when(self):
        return int(self.when_s) if self.whole else self.when_s

    def when(self):
        """The time, in seconds of loop.time()."""
        return self._when

    cdef int cancel_now(self) except -1:
        if stl_free_threaded and self._loop.running_in not in (0, PyThread_get_thread_ident()):
            return Handle.cancel_now(self)  # the heap is the loop's thread's: it finds there what must not run
        if self.timer.place:
            st_timers_remove(&self._loop.timers, &self.timer)
            Handle.cancel_now(self)
            Py_DECREF(self)  # the heap's reference
            return 0
        return Handle.cancel_now(self)

    def _repr_info(self):
        info = Handle._repr_info(self)
        info.insert(2 if self._cancelled else 1, f"when={self._when}")
        return info

    def __hash__(self):
        return hash(self._when)

    def __lt__(self, other):
        return self._when < other._when if isinstance(other, TimerHandle) else NotImplemented

    def __le__(self, other):
        return self._when < other._when or self == other if isinstance(other, TimerHandle) else NotImplemented

    def __gt__(self, other):
        return self._when > other._when if isinstance(other, TimerHandle) else NotImplemented

    def __ge__(self, other):
        return self._when > other._when or self == other if isinstance(other, TimerHandle) else NotImplemented

    def __eq__(self, other):
        if not isinstance(other, TimerHandle):
            return NotImplemented
        return (
            self._when == other._when
            and self._callback == other._callback
            and self._args == other._args
            and self._cancelled == other._cancelled
        )

    @property
    def __class__(self):
        return events.TimerHandle
