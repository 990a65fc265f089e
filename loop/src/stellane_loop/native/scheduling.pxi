# Scheduling callbacks: soon, from another thread, at a time.

cdef object NOT_GIVEN = object()


cdef class Scheduling(Clock):
    """What is to be run, until the loop takes it up."""

    cdef st_poller *poller
    cdef st_queue ready
    cdef st_timers timers
    cdef st_queue inbox           # handles from other threads; without a lock of the interpreter, and of a loop that does not run, all
    cdef pthread_mutex_t lock     # guards inbox, sleeping and the poller's wake against its end; see stl_lock
    cdef bint sleeping            # the loop waits, or is about to: whoever adds to the inbox wakes it
    cdef unsigned long running_in # the thread that runs the loop; 0: not running
    cdef object order             # a ReadyOrder, or None: first in, first out
    cdef public bint _closed
    cdef bint _debug_mode

    def __cinit__(self, *args, **kwargs):
        pthread_mutex_init(&self.lock, NULL)
        self._closed = True  # until open() has a poller

    def __dealloc__(self):
        pthread_mutex_destroy(&self.lock)

    cdef inline int check_open(self) except -1:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        return 0

    cdef inline Handle handle(self, callback, tuple args, context):
        return self.filled(Handle.__new__(Handle), callback, args, context)

    cdef inline Handle filled(self, Handle handle, callback, tuple args, context):
        handle._callback = callback
        handle.args = args
        handle._loop = self
        handle._context = PyContext_CopyCurrent() if context is None else context
        if self._debug_mode:
            handle._source_traceback = format_helpers.extract_stack(sys._getframe(0))
        return handle

    cdef inline int push(self, Handle handle) except -1:
        if stl_free_threaded and self.running_in == 0:
            return self.push_shared(handle, False)
        if self.inbox.count:
            # Whoever knows that another thread has scheduled something relies on its being run first.
            self.take_inbox()
        if self.order is not None:
            return self.push_ordered(handle)
        if st_queue_push(&self.ready, <void *>handle):
            raise MemoryError
        Py_INCREF(handle)
        return 0

    cdef int push_shared(self, Handle handle, bint while_open) except -1:
        """For what other threads may do at the same time: while the loop does not run, that is all that is scheduled."""
        cdef int error
        stl_lock(&self.lock)
        error = while_open and self._closed
        if not error:
            error = st_queue_push(&self.inbox, <void *>handle)
            if not error:
                Py_INCREF(handle)
                if self.sleeping:
                    self.sleeping = False
                    self.poller.ops.wake(self.poller)
        stl_unlock(&self.lock)
        if error:
            self.check_open()
            raise MemoryError
        return 0

    cdef int take_inbox(self) except -1:
        cdef Handle handle
        cdef int error
        stl_lock(&self.lock)
        error = st_queue_move(&self.inbox, &self.ready)
        stl_unlock(&self.lock)
        if error:
            raise MemoryError
        while self.order is not None and self.ready.count:
            handle = <Handle>st_queue_pop(&self.ready)
            Py_DECREF(handle)  # the queue's reference
            self.push_ordered(handle)
        return 0

    cdef int push_ordered(self, Handle handle) except -1:
        self.order.push(handle, handle._context.get(priority, NORMAL))
        return 0

    cdef inline Handle soon(self, callback, tuple args, context):
        cdef Handle handle = self.handle(callback, args, context)
        self.push(handle)
        return handle

    cdef inline Handle filled_with(self, Handle handle, callback, first, second, tuple rest, context):
        # Most callbacks have one argument or two, and a tuple for them costs as much as the handle.
        if first is NOT_GIVEN:
            return self.filled(handle, callback, (), context)
        if rest:
            return self.filled(handle, callback, (first, second, *rest), context)
        self.filled(handle, callback, None, context)
        handle.first = first
        if second is not NOT_GIVEN:
            handle.second = second
            handle.has_second = True
        return handle

    def call_soon(self, callback, __first=NOT_GIVEN, __second=NOT_GIVEN, *args, context=None):
        """Run callback(*args) in the next turn, after what was scheduled before it."""
        cdef Handle handle
        if self._closed:
            self.check_open()
        if self._debug_mode:
            (<object>self)._check_thread()
            (<object>self)._check_callback(callback, "call_soon")
        handle = self.filled_with(Handle.__new__(Handle), callback, __first, __second, args, context)
        self.push(handle)
        return handle

    def call_soon_threadsafe(self, callback, __first=NOT_GIVEN, __second=NOT_GIVEN, *args, context=None):
        """As call_soon, from any thread or signal handler; wakes the loop if it waits."""
        cdef Handle handle
        self.check_open()
        if self._debug_mode:
            (<object>self)._check_callback(callback, "call_soon_threadsafe")
        handle = Handle.__new__(Handle) if THREAD_SAFE_HANDLE is None else ThreadSafeHandle.__new__(ThreadSafeHandle)
        self.filled_with(handle, callback, __first, __second, args, context)
        # Before the loop runs, the order of all that is scheduled is kept.
        if self.running_in == PyThread_get_thread_ident() or (self.running_in == 0 and not stl_free_threaded):
            self.push(handle)
        else:
            self.push_shared(handle, True)
        return handle

    def _add_callback(self, handle):
        if not handle._cancelled:
            self.push(handle if type(handle) in (Handle, ThreadSafeHandle, TimerHandle) else self.handle(handle._run, (), None))

    def _add_callback_signalsafe(self, handle):
        self._add_callback(handle)

    def _write_to_self(self):
        stl_lock(&self.lock)
        if not self._closed:
            self.poller.ops.wake(self.poller)
        stl_unlock(&self.lock)

    def call_later(self, delay, callback, *args, context=None):
        """Run callback(*args) once `delay` seconds have passed."""
        if delay is None:
            raise TypeError("delay must not be None")
        return self.at(self.now_s() + <double>delay, callback, args, context, "call_later")

    def call_at(self, when, callback, *args, context=None):
        """Run callback(*args) when loop.time() has reached `when`."""
        if when is None:
            raise TypeError("when cannot be None")
        return self.at(<double>when, callback, args, context, "call_at", type(when) is int)

    cdef at(self, double when_s, callback, tuple args, context, str name, bint whole=False):
        cdef TimerHandle handle
        self.check_open()
        if self._debug_mode:
            (<object>self)._check_thread()
            (<object>self)._check_callback(callback, name)
        handle = TimerHandle.__new__(TimerHandle)
        handle._callback = callback
        handle.args = args
        handle._loop = self
        handle._context = PyContext_CopyCurrent() if context is None else context
        handle.when_s, handle.whole = when_s, whole
        handle.timer.item = <void *>handle
        if self._debug_mode:
            handle._source_traceback = format_helpers.extract_stack(sys._getframe(0))
        if st_timers_add(&self.timers, &handle.timer, when_s):
            raise MemoryError
        Py_INCREF(handle)
        return handle

    def _timer_handle_cancelled(self, handle):
        """A timer handle of the standard library's class was cancelled; ours leave the heap by themselves."""
