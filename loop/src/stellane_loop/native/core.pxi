# The loop itself: what it holds, and the turn.

from libc.stdlib cimport free, malloc

cdef enum:
    RECEIVE_SHARED_BYTES_MAX = 256 * 1024
    TURNS_WITHOUT_POLL_MAX = 64  # of a loop that has nothing open but its wake-up

cdef size_t ALL = <size_t>-1

cdef enum:
    TURN_BUCKETS = 32

cdef struct turn_measures:
    uint64_t callbacks
    uint64_t took_us_log2[TURN_BUCKETS]
    double busy_s, lag_max_s, earlier_s  # the last: what run_earlier took of the turn under way


cdef stl_held held_by(PyObject *loop) noexcept:
    cdef LoopCore core = <LoopCore>loop
    cdef stl_held held
    held.ready = &core.ready
    held.inbox = &core.inbox
    held.timers = &core.timers
    return held


cdef void ignore_closed(void *owner) noexcept:
    pass


cdef void ignore_file_done(void *owner, int64_t result) noexcept:
    pass


cdef class Owned:
    """What the poller may call back. `closed` is its last call; until then the loop keeps the object alive."""

    cdef LoopCore loop

    cdef void closed(self) noexcept:
        pass


cdef class LoopCore(Scheduling):
    """The hot half of `Loop`. Its cold half is the standard library's Python code, further down the bases."""

    cdef stl_block block
    cdef unsigned long turns, unpolled
    cdef Py_ssize_t open_count    # objects the poller may have something to say about
    cdef set owned                # those objects
    cdef dict watches             # descriptor -> Watch
    cdef dict streams             # descriptor -> StreamTransport
    cdef dict sockets             # descriptor -> SocketState
    cdef dict listeners           # socket object -> Listener
    cdef object raised            # SystemExit or KeyboardInterrupt of a callback below the poller
    cdef char *receive_buffer     # see shared_buffer()
    cdef object lent_buffer       # the stream whose protocol lent a buffer that was not used yet
    cdef Py_buffer lent_view      # of that buffer
    cdef object slow_report       # called with a SlowCallback, or None
    cdef double slow_s
    cdef bint timed               # callbacks are timed: debug mode, or somebody wants slow ones reported
    cdef bint measuring           # turns are measured
    cdef bint measured            # the turn under way is
    cdef bint told_waited         # of the turn under way: the poll got as far as to tell what it found
    cdef size_t due               # how many of the first in `ready` the turn under way has still to run
    cdef bint adaptive            # waits follow the controller of adaptive.pxi
    cdef turn_measures measures
    cdef public bint _stopping
    cdef readonly bint _stepping  # one turn is being made by hand
    cdef public object _thread_id
    cdef public double slow_callback_duration
    cdef public Py_ssize_t _background  # of open_count, those that need no poll while callbacks are ready

    def __cinit__(self, *args, **kwargs):
        self.owned = set()
        self.watches = {}
        self.streams = {}
        self.sockets = {}
        self.listeners = {}

    def _open(self, str poller, unsigned entries=0, unsigned buffers=0, unsigned buffer_bytes=0):
        cdef int error = 0
        cdef st_sink sink = loop_sink
        st_keep_heap()
        sink.context = &self.block
        self.block.loop = <void *>self
        if poller == "epoll":
            self.poller = st_epoll_new(&sink, &error)
        else:
            self.poller = stl_uring_new(&sink, entries, buffers, buffer_bytes, &error)
        if self.poller == NULL:
            raise OSError(-error, f"the {poller} poller can not be set up: {os.strerror(-error)}")
        self._closed = False
        self.choose_clock()

    @property
    def poller_name(self):
        """Which poller waits for this loop: "epoll" or "io_uring"."""
        return self.poller.ops.name.decode() if self.poller != NULL else None

    def __dealloc__(self):
        if self.poller != NULL:
            # Never closed, and what the poller would call may be gone before us.
            self.poller.sink.closed = ignore_closed
            self.poller.sink.file_done = ignore_file_done
        self.release()
        free(self.receive_buffer)

    cdef void release(self) noexcept:
        cdef st_poller *poller = self.poller
        cdef void *item
        stl_lock(&self.lock)
        self._closed = True
        stl_unlock(&self.lock)
        if poller != NULL:
            poller.ops.free(poller)  # what it lets go of may still call it, down to the last object
            self.poller = NULL
        while self.timers.count:
            item = self.timers.slots[0].timer.item
            st_timers_remove(&self.timers, self.timers.slots[0].timer)
            Py_DECREF(<object>item)
        while self.ready.count:
            Py_DECREF(<object>st_queue_pop(&self.ready))
        while self.inbox.count:
            Py_DECREF(<object>st_queue_pop(&self.inbox))
        st_timers_free(&self.timers)
        st_queue_free(&self.ready)
        st_queue_free(&self.inbox)

    def _release(self):
        self.release()

    def _after_fork(self):
        """In the child: this loop belongs to the parent and is closed here, without touching what they share."""
        if self.poller != NULL:
            self.poller.ops.after_fork(self.poller)
        self._closed = True
        self._thread_id = None
        self._stepping = False
        self.running_in = 0

    def is_running(self):
        """Whether run_forever or run_until_complete is under way, in whichever thread."""
        return self._thread_id is not None

    def is_closed(self):
        """Whether close() was called."""
        return self._closed

    def get_debug(self):
        """Whether debug mode is on."""
        return self._debug_mode

    @property
    def _debug(self):
        return self._debug_mode

    @_debug.setter
    def _debug(self, bint on):
        self._debug_mode = on
        self.timed = on or self.slow_report is not None

    def stop(self):
        """End run_forever after the turn under way."""
        self._stopping = True

    # --- the turn ---

    def run_forever(self):
        """Run until stop() is called."""
        (<object>self)._check_closed()
        (<object>self)._check_running()
        self.check_no_turn()
        try:
            self._enter_run()
            self.running_in = PyThread_get_thread_ident()
            self.unpolled = TURNS_WITHOUT_POLL_MAX
            if self.poller.ops.begin != NULL:
                self.poller.ops.begin(self.poller)
            while True:
                self.turn()
                if self._stopping:
                    break
        finally:
            if self.poller != NULL and self.poller.ops.settle != NULL:
                self.poller.ops.settle(self.poller)  # nobody says when the next turn will be
            self.running_in = 0
            self._leave_run()

    def _run_once(self):
        self.check_open()
        self.check_no_turn()
        self._stepping = True
        try:
            self.turn()
        finally:
            self._stepping = False

    cdef int check_no_turn(self) except -1:
        # Callbacks run below the poller's turn, which a second one would leave with events and objects that are gone.
        if self._stepping or self.running_in:
            raise RuntimeError("A turn of this event loop is under way")
        return 0

    cdef int turn(self) except -1:
        cdef int64_t timeout_ns = self.timeout_ns()
        self.turns += 1
        self.measured = self.measuring
        self.told_waited = False
        if timeout_ns == 0 and self.open_count <= self._background and self.unpolled < TURNS_WITHOUT_POLL_MAX:
            self.unpolled += 1  # nothing could have happened but signals and calls from other threads
        else:
            self.unpolled = 0
            self.poll(timeout_ns)
        PyErr_CheckSignals()
        if not self.told_waited:
            self.due = ALL
            if self.inbox.count:
                self.take_inbox()
            if self.timers.count:
                self.take_due_timers()
        if self.measured:
            return self.run_measured(min(self.due, self.ready.count), True)
        if self.order is not None:
            return self.run_ordered()
        return self.run_ready(min(self.due, self.ready.count))

    cdef void run_earlier(self) noexcept:
        # The order is asyncio's: what was ready before the poll, what the poll found, the timers that are due; and what
        # these schedule in the next turn. Only a loop that was idle goes on at once with what the poll woke, and saves
        # the second poll of each request: there was nothing to be overtaken.
        cdef size_t earlier
        if self.order is not None:
            return
        try:
            self.told_waited = True
            if self.inbox.count:
                self.take_inbox()
            earlier = self.ready.count
            if self.timers.count:
                self.take_due_timers()
            self.due = ALL
            if earlier:
                self.due = self.ready.count - earlier
                if self.measured:
                    self.run_measured(earlier, False)
                else:
                    self.run_ready(earlier)
        except BaseException as exc:
            self.keep_raised(exc)

    cdef inline int64_t timeout_ns(self) except? -2:
        cdef double wait_s
        if self.ready.count or self._stopping or (self.order is not None and len(self.order)):
            return 0
        if self.timers.count:
            wait_s = self.timers.slots[0].when_s - self.now_s()
            if wait_s <= 0:
                return 0
            if wait_s < TIMEOUT_S_MAX:
                return (<int64_t>(wait_s * 1e9) // TIMER_GRANULARITY_NS + 1) * TIMER_GRANULARITY_NS
            return <int64_t>(TIMEOUT_S_MAX * 1e9)
        return -1

    cdef int poll(self, int64_t timeout_ns) except -1:
        cdef int outcome
        if timeout_ns != 0:
            stl_lock(&self.lock)
            if self.inbox.count:
                timeout_ns = 0
            else:
                self.sleeping = True
            stl_unlock(&self.lock)
        if self.adaptive:
            outcome = self.poll_adaptively(timeout_ns)
        else:
            outcome = self.poller.ops.turn(self.poller, timeout_ns, 1, 0)
        if timeout_ns != 0:
            stl_lock(&self.lock)
            self.sleeping = False
            stl_unlock(&self.lock)
        if self.lent_buffer is not None:
            (<StreamTransport>self.lent_buffer).return_buffer()
        if self.raised is not None:
            raised, self.raised = self.raised, None
            raise raised
        if outcome < 0 and outcome != -EINTR:
            raise OSError(-outcome, f"waiting for events failed: {os.strerror(-outcome)}")
        return 0

    cdef int take_due_timers(self) except -1:
        cdef double end_s = self.now_s() + CLOCK_RESOLUTION_S
        cdef TimerHandle handle
        while self.timers.count and self.timers.slots[0].when_s < end_s:
            handle = <TimerHandle>self.timers.slots[0].timer.item
            if self.measuring and end_s - handle.when_s > self.measures.lag_max_s:
                self.measures.lag_max_s = end_s - handle.when_s
            st_timers_remove(&self.timers, &handle.timer)
            Py_DECREF(handle)  # the heap's reference
            self.push(handle)
        return 0

    cdef int run_ready(self, size_t count) except -1:
        # Only what was there when the turn began: what callbacks schedule waits until I/O was polled.
        cdef Handle handle
        cdef void *item
        while count:
            count -= 1
            item = st_queue_pop(&self.ready)
            if item == NULL:
                break
            handle = <Handle>item
            Py_DECREF(handle)  # the queue's reference
            self.run_one(handle)
        return 0

    cdef inline int run_one(self, Handle handle) except -1:
        if handle._cancelled:
            return 0
        if self.timed:
            return self.run_timed(handle)
        return handle.run()

    # Defined in turns.pxi and adaptive.pxi, for those who asked for more than first in, first out, and sleep.
    cdef int run_ordered(self) except -1:
        raise NotImplementedError

    cdef int run_measured(self, size_t count, bint ends_turn) except -1:
        raise NotImplementedError

    cdef int run_timed(self, Handle handle) except -1:
        raise NotImplementedError

    cdef int call_timed(self, context, callback, arg) except -1:
        raise NotImplementedError

    cdef int poll_adaptively(self, int64_t timeout_ns) noexcept:
        return self.poller.ops.turn(self.poller, timeout_ns, 1, 0)

    def _ready_handles(self):
        """What is to be run in the next turn, in order."""
        cdef size_t place
        return [<object>st_queue_at(&self.ready, place) for place in range(self.ready.count)]

    def _timer_handles(self):
        """The timers that are pending, the earliest first."""
        cdef size_t place
        pending = [<object>self.timers.slots[place].timer.item for place in range(self.timers.count)]
        return sorted(pending, key=TimerHandle.when)

    cdef char *shared_buffer(self) except NULL:
        """RECEIVE_SHARED_BYTES_MAX for one receive, whose bytes are copied before anything else is called."""
        if self.receive_buffer == NULL:
            self.receive_buffer = <char *>malloc(RECEIVE_SHARED_BYTES_MAX)
            if self.receive_buffer == NULL:
                raise MemoryError
        return self.receive_buffer

    cdef int own(self, Owned object_) except -1:
        self.owned.add(object_)
        self.open_count += 1
        return 0

    cdef void disown(self, Owned object_) noexcept:
        self.owned.discard(object_)
        self.open_count -= 1

    cdef void keep_raised(self, exc) noexcept:
        if self.raised is None:
            self.raised = exc
