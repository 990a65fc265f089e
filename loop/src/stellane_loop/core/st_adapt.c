#include "st_adapt.h"

#include <string.h>

#define WEIGHT 0.1 /* of the newest sample in a moving mean */

void st_adapt_init(st_adapt *adapt, int64_t spin_ns_max, int64_t batch_wait_ns_max, int64_t wake_ns) {
    memset(adapt, 0, sizeof *adapt);
    adapt->spin_ns_max = spin_ns_max;
    adapt->batch_wait_ns_max = batch_wait_ns_max;
    adapt->wake_ns = wake_ns;
}

static int64_t look_ns(const st_adapt *adapt) {
    int64_t worth_ns = 2 * adapt->wake_ns;
    return worth_ns < adapt->spin_ns_max ? worth_ns : adapt->spin_ns_max;
}

static int looks(const st_adapt *adapt) { return adapt->dense && adapt->spare_cpus >= ST_ADAPT_SPARE_MIN; }

static void count_wait(st_adapt *adapt, int64_t waited_ns) {
    int64_t look = look_ns(adapt);
    if (waited_ns * ST_ADAPT_NO_WAIT_PART <= look) return;
    /* A wait that was slept through has the wake-up in it. Only half of one is taken off, because after a short sleep it
     * is cheaper than what was measured: who takes off too much looks, misses, stops and begins again. */
    if (!looks(adapt)) waited_ns -= adapt->wake_ns / 2;
    if (waited_ns <= look)
        adapt->caught++;
    else
        adapt->missed++;
}

static void end_window(st_adapt *adapt, int64_t waited_ns) {
    /* Without a wait there was nothing to look for, and a look would have cost nothing: no reason for either. */
    if (adapt->caught + adapt->missed == 0) return;
    int needed = adapt->dense ? ST_ADAPT_STAY_CAUGHT : ST_ADAPT_START_CAUGHT;
    int wanted = adapt->caught >= needed * adapt->missed;
    /* A wait as long as several windows is the vote of each: silence is looked into once or twice. */
    int64_t votes = wanted ? 1 : 1 + waited_ns / ST_ADAPT_WINDOW_NS;
    adapt->votes = wanted == adapt->dense ? 0 : votes < ST_ADAPT_WINDOWS ? adapt->votes + (int)votes : ST_ADAPT_WINDOWS;
    if (adapt->votes >= ST_ADAPT_WINDOWS) {
        adapt->dense = wanted;
        adapt->votes = 0;
    }
    adapt->caught = adapt->missed = 0;
}

void st_adapt_turn_over(st_adapt *adapt, int64_t now_ns, int64_t waited_ns, unsigned events) {
    if (events) adapt->events += WEIGHT * ((double)events - adapt->events);
    if (waited_ns) count_wait(adapt, waited_ns);
    if (now_ns < adapt->window_end_ns) return;
    end_window(adapt, waited_ns);
    adapt->window_end_ns = now_ns + ST_ADAPT_WINDOW_NS;
}

st_adapt_wait st_adapt_next(const st_adapt *adapt) {
    st_adapt_wait wait = {0, 1, 0};
    if (looks(adapt)) wait.spin_ns = look_ns(adapt);
    if (adapt->batch_wait_ns_max && adapt->events > ST_ADAPT_BATCH_EVENTS) {
        double half = adapt->events / 2;
        wait.min_events = half < ST_ADAPT_BATCH_MAX ? (unsigned)half : ST_ADAPT_BATCH_MAX;
        wait.min_wait_ns = adapt->batch_wait_ns_max;
    }
    return wait;
}
