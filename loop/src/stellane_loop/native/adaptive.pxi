# Turns that look before they sleep and wait for batches: the controller of core/st_adapt.h at work.

cdef extern from "core/st_adapt.h" nogil:
    ctypedef struct st_adapt:
        double spare_cpus
        int64_t wake_ns
        int caught, missed
    ctypedef struct st_adapt_wait:
        int64_t spin_ns
        unsigned min_events
        int64_t min_wait_ns
    void st_adapt_init(st_adapt *, int64_t spin_ns_max, int64_t batch_wait_ns_max, int64_t wake_ns)
    void st_adapt_turn_over(st_adapt *, int64_t now_ns, int64_t waited_ns, unsigned events)
    st_adapt_wait st_adapt_next(const st_adapt *)

cdef extern from "core/st_machine.h" nogil:
    ctypedef struct st_cpu_times:
        int64_t now_ns
    int64_t st_measure_wake_ns()
    int st_cpu_times_read(st_cpu_times *)
    double st_cpus_spare(const st_cpu_times *before, const st_cpu_times *after)

cdef extern from "core/st_clock.h" nogil:
    int64_t st_now_ns()

cdef enum:
    ADAPTIVE_US_MAX = 10000  # the longest look, and the longest wait for a batch
    SPARE_SAMPLE_NS = 500000000  # CPU time is compared with what it was so long ago; it is counted in hundredths of a second


cdef class AdaptiveTurns(ObservedTurns):
    """Turns that spin and batch as far as the traffic makes it worth while."""

    cdef st_adapt controller
    cdef st_cpu_times sampled
    cdef bint may_spin

    def set_adaptive_polling(self, spin_us_max=50, batch_wait_us_max=0):
        """Look for events up to spin_us_max before sleeping, and under load wait up to
        batch_wait_us_max for several at once (io_uring only; epoll can not). Microseconds; both 0: off.

        Looking starts while most waits are over within two wake-ups and CPUs idle that it could use: the loop's own,
        and another for whoever sends. What a wake-up costs is measured here, unless spin_us_max is 0: that takes 20 ms,
        at most some 40. Raises ValueError beyond 10,000 µs and OSError when nothing can be measured.
        """
        cdef int64_t wake_ns = 0
        cdef int64_t spin_ns = spin_or_wait_ns("spin_us_max", spin_us_max)
        cdef int64_t batch_ns = spin_or_wait_ns("batch_wait_us_max", batch_wait_us_max)
        self.check_open()
        self.adaptive = False
        self.poller.spin_ns = 0
        self.poller.times_waits = 0
        if not (spin_ns or batch_ns):
            return
        if spin_ns:
            with nogil:
                wake_ns = st_measure_wake_ns()
            if wake_ns < 0:
                raise OSError(<int>-wake_ns, f"a wake-up can not be timed: {os.strerror(<int>-wake_ns)}")
        st_adapt_init(&self.controller, spin_ns, batch_ns, wake_ns)
        st_cpu_times_read(&self.sampled)
        self.may_spin = spin_ns > 0
        self.poller.times_waits = self.may_spin
        self.adaptive = True

    cdef int poll_adaptively(self, int64_t timeout_ns) noexcept:
        cdef st_adapt_wait wait = st_adapt_next(&self.controller)
        cdef int64_t now_ns
        cdef int outcome
        self.poller.spin_ns = wait.spin_ns
        outcome = self.poller.ops.turn(self.poller, timeout_ns, wait.min_events, wait.min_wait_ns)
        now_ns = st_now_ns()
        st_adapt_turn_over(&self.controller, now_ns, self.poller.waited_ns, <unsigned>outcome if outcome > 0 else 0)
        if self.may_spin and now_ns - self.sampled.now_ns > SPARE_SAMPLE_NS:
            self.sample_cpus(now_ns - self.sampled.now_ns < 2 * SPARE_SAMPLE_NS)
        return outcome

    cdef void sample_cpus(self, bint recent) noexcept:
        cdef st_cpu_times times
        # What idled in a long silence says nothing of the traffic that ended it.
        cdef bint known = st_cpu_times_read(&times) == 0 and recent
        self.controller.spare_cpus = st_cpus_spare(&self.sampled, &times) if known else 0
        self.sampled = times

    def _next_wait(self):
        """(spin_ns, min_events, min_wait_ns) of the next wait, as the controller stands."""
        cdef st_adapt_wait wait = st_adapt_next(&self.controller)
        if not self.adaptive:
            return 0, 1, 0
        return wait.spin_ns, wait.min_events, wait.min_wait_ns

    def _adaptive_state(self):
        """What the controller goes by: wake_ns; spare_cpus when last sampled; the waits of this window, caught and missed."""
        return {
            "wake_ns": self.controller.wake_ns,
            "spare_cpus": self.controller.spare_cpus,
            "caught": self.controller.caught,
            "missed": self.controller.missed,
        }


cdef int64_t spin_or_wait_ns(str name, value) except -1:
    if not 0 <= value <= ADAPTIVE_US_MAX:
        raise ValueError(f"{name} is {value!r}; it is a number of microseconds from 0 to {ADAPTIVE_US_MAX}")
    return <int64_t>(<double>value * 1000)
