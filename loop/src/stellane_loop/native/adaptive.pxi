# Turns that look before they sleep and wait for batches: the controller of core/st_adapt.h at work.

cdef extern from "core/st_adapt.h" nogil:
    ctypedef struct st_adapt:
        int spare_cpus
    ctypedef struct st_adapt_wait:
        int64_t spin_ns
        unsigned min_events
        int64_t min_wait_ns
    void st_adapt_init(st_adapt *, int64_t spin_ns_max, int64_t batch_wait_ns_max, int64_t wake_ns)
    void st_adapt_found(st_adapt *, int64_t now_ns, unsigned events)
    st_adapt_wait st_adapt_next(const st_adapt *)
    int64_t st_measure_wake_ns()
    int st_measure_spare_cpus()

cdef extern from "core/st_clock.h" nogil:
    int64_t st_now_ns()

cdef enum:
    ADAPTIVE_US_MAX = 10000  # the longest look, and the longest wait for a batch
    SPARE_SAMPLE_NS = 1000000000  # how old the count of idle CPUs may be while events come


cdef class AdaptiveTurns(ObservedTurns):
    """Turns that spin and batch as far as the traffic makes it worth while."""

    cdef st_adapt controller
    cdef int64_t sampled_ns

    def set_adaptive_polling(self, spin_us_max=50, batch_wait_us_max=0):
        """Look for events up to spin_us_max before sleeping, and under load wait up to
        batch_wait_us_max for several at once (io_uring only; epoll can not). Microseconds; both 0: off.

        Spinning starts when events come faster than a wake-up costs, which is measured here, and while a
        CPU would idle otherwise. Raises ValueError beyond 10,000 µs and OSError when nothing can be measured.
        """
        cdef int64_t wake_ns
        cdef int64_t spin_ns = spin_or_wait_ns("spin_us_max", spin_us_max)
        cdef int64_t batch_ns = spin_or_wait_ns("batch_wait_us_max", batch_wait_us_max)
        self.check_open()
        self.adaptive = False
        self.poller.spin_ns = 0
        if not (spin_ns or batch_ns):
            return
        with nogil:
            wake_ns = st_measure_wake_ns()
        if wake_ns < 0:
            raise OSError(<int>-wake_ns, f"a wake-up can not be timed: {os.strerror(<int>-wake_ns)}")
        st_adapt_init(&self.controller, spin_ns, batch_ns, wake_ns)
        self.controller.spare_cpus = st_measure_spare_cpus()
        self.sampled_ns = st_now_ns()
        self.adaptive = True

    cdef int poll_adaptively(self, int64_t timeout_ns) noexcept:
        cdef st_adapt_wait wait = st_adapt_next(&self.controller)
        cdef int64_t now_ns
        cdef int outcome
        self.poller.spin_ns = wait.spin_ns
        outcome = self.poller.ops.turn(self.poller, timeout_ns, wait.min_events, wait.min_wait_ns)
        if outcome > 0:
            now_ns = st_now_ns()
            st_adapt_found(&self.controller, now_ns, <unsigned>outcome)
            if now_ns - self.sampled_ns > SPARE_SAMPLE_NS:
                self.sampled_ns = now_ns
                self.controller.spare_cpus = st_measure_spare_cpus()
        return outcome

    def _next_wait(self):
        """(spin_ns, min_events, min_wait_ns) of the next wait, as the controller stands."""
        cdef st_adapt_wait wait = st_adapt_next(&self.controller)
        if not self.adaptive:
            return 0, 1, 0
        return wait.spin_ns, wait.min_events, wait.min_wait_ns


cdef int64_t spin_or_wait_ns(str name, value) except -1:
    if not 0 <= value <= ADAPTIVE_US_MAX:
        raise ValueError(f"{name} is {value!r}; it is a number of microseconds from 0 to {ADAPTIVE_US_MAX}")
    return <int64_t>(<double>value * 1000)
