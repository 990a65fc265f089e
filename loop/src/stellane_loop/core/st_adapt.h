/* How long a loop looks for events before it sleeps, and how many it waits for at once.
 *
 * Sleeping costs a wake-up; looking costs a CPU. As in the ski-rental problem, looking for about
 * what a wake-up costs is never much worse than knowing the future, and it is only worth it while
 * events keep coming sooner than that. The controller is arithmetic on times it is given, so a
 * trace can be played to it; only the two st_measure_ functions look at the machine.
 */
#ifndef ST_ADAPT_H
#define ST_ADAPT_H

#include <stdint.h>

enum {
    ST_ADAPT_WINDOW_NS = 10000000, /* the mode is reconsidered this often */
    ST_ADAPT_WINDOWS = 3,          /* and changes when so many windows in a row agree */
    ST_ADAPT_BATCH_EVENTS = 4,     /* more a turn is load worth batching; a request is two: what came and what left */
    ST_ADAPT_BATCH_MAX = 256,
};

typedef struct st_adapt {
    int64_t spin_ns_max;       /* longest look before sleeping; 0: never look */
    int64_t batch_wait_ns_max; /* longest wait for a batch to fill; 0: never wait */
    int64_t wake_ns;           /* what a sleep and a wake-up cost here */
    int spare_cpus;            /* that would idle while this loop looks; 0: it would take another's */
    int spinning;
    int votes;
    int64_t found_ns, window_ns;
    double gap_ns;             /* moving mean of the time between turns that found something */
    double events;             /* moving mean of what they found */
} st_adapt;

typedef struct st_adapt_wait {
    int64_t spin_ns;
    unsigned min_events;
    int64_t min_wait_ns;
} st_adapt_wait;

void st_adapt_init(st_adapt *, int64_t spin_ns_max, int64_t batch_wait_ns_max, int64_t wake_ns);
/* A turn ended at now_ns (any monotonic clock) and had found `events` of them. */
void st_adapt_found(st_adapt *, int64_t now_ns, unsigned events);
/* What the next wait should be. */
st_adapt_wait st_adapt_next(const st_adapt *);

/* Median cost of waking a sleeping thread, nanoseconds; takes some milliseconds. < 0: -errno. */
int64_t st_measure_wake_ns(void);
/* CPUs this process may use that nobody runs on: affinity mask and cgroup quota less what
 * /proc/loadavg calls runnable. Never negative; 0 when it can not be told. */
int st_measure_spare_cpus(void);

#endif
