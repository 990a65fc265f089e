#define _GNU_SOURCE
#include "st_adapt.h"
#include "st_clock.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define WEIGHT 0.1 /* of the newest sample in a moving mean */

enum { WAKE_ROUNDS = 33 };

void st_adapt_init(st_adapt *adapt, int64_t spin_ns_max, int64_t batch_wait_ns_max, int64_t wake_ns) {
    memset(adapt, 0, sizeof *adapt);
    adapt->spin_ns_max = spin_ns_max;
    adapt->batch_wait_ns_max = batch_wait_ns_max;
    adapt->wake_ns = wake_ns;
    adapt->gap_ns = 1e9; /* idle until events say otherwise */
}

void st_adapt_found(st_adapt *adapt, int64_t now_ns, unsigned events) {
    if (adapt->found_ns) {
        adapt->gap_ns += WEIGHT * ((double)(now_ns - adapt->found_ns) - adapt->gap_ns);
        adapt->events += WEIGHT * ((double)events - adapt->events);
    }
    adapt->found_ns = now_ns;
    if (now_ns < adapt->window_ns) return;
    adapt->window_ns = now_ns + ST_ADAPT_WINDOW_NS;
    int wanted = adapt->spare_cpus > 0 && adapt->gap_ns < 2.0 * (double)adapt->wake_ns;
    adapt->votes = wanted == adapt->spinning ? 0 : adapt->votes + 1;
    if (adapt->votes == ST_ADAPT_WINDOWS) {
        adapt->spinning = wanted;
        adapt->votes = 0;
    }
}

st_adapt_wait st_adapt_next(const st_adapt *adapt) {
    st_adapt_wait wait = {0, 1, 0};
    if (adapt->spinning && adapt->spare_cpus > 0) {
        int64_t spin_ns = 2 * adapt->wake_ns;
        wait.spin_ns = spin_ns < adapt->spin_ns_max ? spin_ns : adapt->spin_ns_max;
    }
    if (adapt->batch_wait_ns_max && adapt->events > ST_ADAPT_BATCH_EVENTS) {
        double half = adapt->events / 2;
        wait.min_events = half < ST_ADAPT_BATCH_MAX ? (unsigned)half : ST_ADAPT_BATCH_MAX;
        wait.min_wait_ns = adapt->batch_wait_ns_max;
    }
    return wait;
}

/* --- looking at the machine --- */

typedef struct wake_pair {
    int there, back;
} wake_pair;

static void *answer_wakes(void *argument) {
    wake_pair *pair = argument;
    uint64_t count;
    for (int i = 0; i < WAKE_ROUNDS; i++) {
        if (read(pair->there, &count, sizeof count) != sizeof count) break;
        if (write(pair->back, &(uint64_t){1}, sizeof count) != sizeof count) break;
    }
    return NULL;
}

static int by_size(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

/* Rounds of two wake-ups each. Returns how many were whole. */
static int time_wakes(const wake_pair *pair, int64_t *samples) {
    uint64_t count;
    for (int i = 0; i < WAKE_ROUNDS; i++) {
        int64_t start = st_now_ns();
        if (write(pair->there, &(uint64_t){1}, sizeof count) != sizeof count) return i;
        if (read(pair->back, &count, sizeof count) != sizeof count) return i;
        samples[i] = (st_now_ns() - start) / 2;
    }
    return WAKE_ROUNDS;
}

int64_t st_measure_wake_ns(void) {
    wake_pair pair = {eventfd(0, EFD_CLOEXEC), eventfd(0, EFD_CLOEXEC)};
    int64_t samples[WAKE_ROUNDS], result = -errno;
    pthread_t thread;
    if (pair.there >= 0 && pair.back >= 0) {
        int error = pthread_create(&thread, NULL, answer_wakes, &pair);
        result = -error;
        if (!error) {
            int rounds = time_wakes(&pair, samples);
            if (rounds < WAKE_ROUNDS) {
                result = -EIO;
                pthread_cancel(thread); /* it waits for a wake-up that will not come */
            }
            pthread_join(thread, NULL);
            if (rounds == WAKE_ROUNDS) {
                qsort(samples, WAKE_ROUNDS, sizeof *samples, by_size);
                result = samples[WAKE_ROUNDS / 2];
            }
        }
    }
    if (pair.there >= 0) close(pair.there);
    if (pair.back >= 0) close(pair.back);
    return result;
}

/* CPUs' worth of time the cgroup may use (cgroup v2, cpu.max: "max 100000" or "quota period"). */
static int quota_cpus(int otherwise) {
    long quota, period;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!file) return otherwise;
    int found = fscanf(file, "%ld %ld", &quota, &period);
    fclose(file);
    return found == 2 && period > 0 && quota / period < otherwise ? (int)(quota / period) : otherwise;
}

int st_measure_spare_cpus(void) {
    cpu_set_t mask;
    int running = 0;
    if (sched_getaffinity(0, sizeof mask, &mask)) return 0;
    FILE *file = fopen("/proc/loadavg", "re");
    if (!file) return 0;
    int found = fscanf(file, "%*f %*f %*f %d/", &running);
    fclose(file);
    int spare = quota_cpus(CPU_COUNT(&mask)) - running;
    return found == 1 && spare > 0 ? spare : 0;
}
