/* How long a loop looks for events before it sleeps, and how many it waits for at once.
 *
 * Sleeping costs a wake-up; looking costs a CPU. As in the ski-rental problem, looking for about
 * what a wake-up costs is never much worse than knowing the future, and it is only worth it while
 * most waits are over sooner than that. What counts is the time waited: what the callbacks took in
 * between is spent either way. The controller is arithmetic on times it is given, so a trace can be
 * played to it; st_machine.h looks at the machine.
 */
#ifndef ST_ADAPT_H
#define ST_ADAPT_H

#include <stdint.h>

enum {
    ST_ADAPT_WINDOW_NS = 10000000, /* the mode is reconsidered this often */
    ST_ADAPT_WINDOWS = 3,          /* and changes when so many windows in a row agree */
    ST_ADAPT_START_CAUGHT = 3,     /* looking begins where it would catch so many waits for each that outlasts it */
    ST_ADAPT_STAY_CAUGHT = 1,      /* and ends where it catches fewer than this */
    ST_ADAPT_NO_WAIT_PART = 16,    /* what took less than this part of a look was there: it says nothing of waits */
    ST_ADAPT_BATCH_EVENTS = 4,     /* more a turn is load worth batching; a request is two: what came and what left */
    ST_ADAPT_BATCH_MAX = 256,
};

/* CPUs that have to be spare, this loop's own among them: others' work of a tenth of one may have to queue. */
#define ST_ADAPT_SPARE_MIN 0.9

typedef struct st_adapt {
    int64_t spin_ns_max;       /* longest look before sleeping; 0: never look */
    int64_t batch_wait_ns_max; /* longest wait for a batch to fill; 0: never wait */
    int64_t wake_ns;           /* what waking costs here after a sleep of some length */
    double spare_cpus;         /* that others leave to this loop; under ST_ADAPT_SPARE_MIN a look would take theirs */
    int dense;                 /* most waits are short enough to look for their end */
    int votes;                 /* of windows in a row that say otherwise */
    int64_t window_end_ns;     /* 0: before the first turn */
    int caught, missed;        /* waits of this window that a look ends, or would; and those that outlast it */
    double events;             /* moving mean of what turns found that found something */
} st_adapt;

typedef struct st_adapt_wait {
    int64_t spin_ns;
    unsigned min_events;
    int64_t min_wait_ns;
} st_adapt_wait;

void st_adapt_init(st_adapt *, int64_t spin_ns_max, int64_t batch_wait_ns_max, int64_t wake_ns);
/* A turn is over at now_ns (any monotonic clock). Of it waited_ns were waiting, looking and asleep (0: it did not wait),
 * and it found `events`, none where a timer or another thread ended it. */
void st_adapt_turn_over(st_adapt *, int64_t now_ns, int64_t waited_ns, unsigned events);
/* What the next wait should be. */
st_adapt_wait st_adapt_next(const st_adapt *);

#endif
