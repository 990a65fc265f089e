/* The clock that waits are measured by. */
#ifndef ST_CLOCK_H
#define ST_CLOCK_H

#include <stdint.h>
#include <time.h>

#define ST_NS_PER_S 1000000000LL

static inline int64_t st_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * ST_NS_PER_S + now.tv_nsec;
}

/* When a look of spin_ns begun at begin_ns has to end, with at most timeout_ns (< 0: no limit) to wait in all. */
static inline int64_t st_spin_end_ns(int64_t begin_ns, int64_t spin_ns, int64_t timeout_ns) {
    return begin_ns + (timeout_ns > 0 && timeout_ns < spin_ns ? timeout_ns : spin_ns);
}

/* What is left of timeout_ns (< 0: no limit) after passed_ns of it. */
static inline int64_t st_timeout_left_ns(int64_t timeout_ns, int64_t passed_ns) {
    return timeout_ns < 0 ? timeout_ns : timeout_ns > passed_ns ? timeout_ns - passed_ns : 0;
}

#endif
