# What a turn does when somebody asked for an order of callbacks, for slow ones, or for measures.

from libc.string cimport memset

cdef class ObservedTurns(FileOperations):
    """Turns that are ordered, timed or measured."""

    def set_ready_order(self, order):
        """Run callbacks in the order of a `ReadyOrder`; None: first in, first out, at no cost."""
        cdef Handle handle
        while self.order is not None and len(self.order):
            handle = self.order.pop()
            handle.queued = False
            if st_queue_push(&self.ready, <void *>handle):
                raise MemoryError
            Py_INCREF(handle)
        self.order = order

    cdef int run_ordered(self) except -1:
        cdef Handle handle
        cdef double end_s = stl_now_s() + <double>self.order.budget_s
        cdef Py_ssize_t count = len(self.order)
        self.run_ready(self.ready.count)  # what was there before the order was set
        while count and self.order is not None and len(self.order):
            count -= 1
            handle = self.order.pop()
            handle.queued = False
            self.run_one(handle)
            if stl_now_s() >= end_s:
                break
        return 0

    def report_slow_callbacks(self, threshold_s, report):
        """Call report(SlowCallback) after each callback that took threshold_s or longer; report None: stop.

        An exception of report goes to the exception handler.
        """
        self.slow_s = threshold_s
        self.slow_report = report
        self.timed = self._debug_mode or report is not None

    cdef int run_timed(self, Handle handle) except -1:
        cdef double start_s = stl_now_s(), took_s
        loop = <object>self
        if self._debug_mode:
            loop._current_handle = handle
        try:
            handle.run()
            took_s = stl_now_s() - start_s
            self.tell_slow(handle, took_s)
        finally:
            loop._current_handle = None
        return 0

    cdef int tell_slow(self, Handle handle, double took_s) except -1:
        if self._debug_mode and took_s >= self.slow_callback_duration:
            logger.warning("Executing %s took %.3f seconds", _format_handle(handle), took_s)
        if self.slow_report is not None and took_s >= self.slow_s:
            self.report_slow(handle, took_s)
        return 0

    cdef int call_timed(self, context, callback, arg) except -1:
        """As run_timed, for what the poll calls; a handle is made only to name what was slow."""
        cdef double start_s = stl_now_s(), took_s
        cdef Handle handle
        stl_call_one(context, callback, arg)
        took_s = stl_now_s() - start_s
        if (self._debug_mode and took_s >= self.slow_callback_duration) or (
            self.slow_report is not None and took_s >= self.slow_s
        ):
            handle = self.handle(callback, None, context)
            handle.first = arg
            self.tell_slow(handle, took_s)
        return 0

    cdef int report_slow(self, Handle handle, double took_s) except -1:
        try:
            self.slow_report(slow_callback(handle, took_s))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:  # who only looks on must not end the loop
            message = "Exception in the report of a slow callback"
            (<object>self).call_exception_handler({"message": message, "exception": exc, "handle": handle})
        return 0

    def measure_turns(self, bint on):
        """Measure turns and the lag of timers from now on, for statistics(); what was measured before is forgotten."""
        if on:
            memset(&self.measures, 0, sizeof(turn_measures))
        self.measuring = on

    cdef int run_measured(self, size_t count, bint ends_turn) except -1:
        cdef double start_s = stl_now_s(), took_s
        cdef double took_us
        cdef int bucket = 0
        self.measures.callbacks += count
        if self.order is not None:
            self.measures.callbacks += len(self.order)
            self.run_ordered()
        else:
            self.run_ready(count)
        took_s = stl_now_s() - start_s
        if not ends_turn:
            self.measures.earlier_s = took_s
            return 0
        took_s += self.measures.earlier_s
        self.measures.earlier_s = 0
        took_us = took_s * 1e6
        while took_us >= 1 and bucket < TURN_BUCKETS - 1:
            took_us /= 2
            bucket += 1
        self.measures.took_us_log2[bucket] += 1
        self.measures.busy_s += took_s
        return 0

    def statistics(self):
        """What was counted, as `LoopStatistics`. RuntimeError once the loop is closed."""
        cdef st_poller_statistics counted
        cdef int bucket
        self.check_open()
        self.poller.ops.statistics(self.poller, &counted)
        return LoopStatistics(
            poller=self.poller_name,
            turns=self.turns,
            polls=counted.turns,
            waits=counted.waits,
            system_calls=counted.system_calls,
            events=counted.events,
            accepts=counted.accepts,
            receives=counted.receives,
            sends=counted.sends,
            rearms=counted.rearms,
            starved=counted.starved,
            overflows=counted.overflows,
            in_flight=counted.in_flight,
            ready=self.ready.count + self.inbox.count + (0 if self.order is None else len(self.order)),
            timers=self.timers.count,
            open=self.open_count,
            callbacks=self.measures.callbacks,
            busy_s=self.measures.busy_s,
            lag_max_s=self.measures.lag_max_s,
            turn_us_log2=tuple([self.measures.took_us_log2[bucket] for bucket in range(TURN_BUCKETS)]),
        )


cdef object slow_callback(Handle handle, double took_s):
    task = getattr(handle._callback, "__self__", None)
    if not isinstance(task, asyncio.Task):
        return SlowCallback(handle, took_s, None, [])
    return SlowCallback(handle, took_s, task, task.get_stack())
