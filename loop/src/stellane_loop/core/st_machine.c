#define _GNU_SOURCE
#include "st_machine.h"
#include "st_clock.h"

#include <ctype.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { WAKE_ROUNDS = 15, SLEEP_NS = 1000000, ROUNDS_NS_MAX = 40000000 };

/* --- what waking costs --- */

typedef struct sleeper {
    int there, back;
    int over;
    int64_t woke_ns;
    cpu_set_t allowed;
} sleeper;

static int signal_event(int fd) { return write(fd, &(uint64_t){1}, sizeof(uint64_t)) == sizeof(uint64_t); }

static int await_event(int fd) {
    uint64_t count;
    ssize_t n;
    do {
        n = read(fd, &count, sizeof count);
    } while (n < 0 && errno == EINTR); /* Python's signal handlers do not restart it, and here it takes long */
    return n == sizeof count;
}

static void *sleep_and_answer(void *argument) {
    sleeper *self = argument;
    while (await_event(self->there)) {
        __atomic_store_n(&self->woke_ns, st_now_ns(), __ATOMIC_RELEASE);
        if (__atomic_load_n(&self->over, __ATOMIC_ACQUIRE) || !signal_event(self->back)) break;
    }
    return NULL;
}

/* Whoever wakes a loop goes on using its own CPU; to the scheduler's mind a sleeper may well be woken on that. */
static void send_elsewhere(pthread_t thread, const sleeper *self) {
    cpu_set_t others = self->allowed;
    int here = sched_getcpu();
    if (here >= 0 && here < CPU_SETSIZE) CPU_CLR(here, &others);
    if (CPU_COUNT(&others)) pthread_setaffinity_np(thread, sizeof others, &others);
}

static void sleep_whole(long ns) {
    struct timespec left = {0, ns};
    while (nanosleep(&left, &left) && errno == EINTR) {
    }
}

/* Returns how many samples there are; 0: it could not be done. */
static int time_wakes(pthread_t thread, sleeper *self, int64_t *samples) {
    int64_t end_ns = st_now_ns() + ROUNDS_NS_MAX;
    int rounds = 0;
    while (rounds < WAKE_ROUNDS && st_now_ns() < end_ns) {
        send_elsewhere(thread, self);
        sleep_whole(SLEEP_NS);
        int64_t start_ns = st_now_ns();
        if (!signal_event(self->there) || !await_event(self->back)) return 0;
        samples[rounds++] = __atomic_load_n(&self->woke_ns, __ATOMIC_ACQUIRE) - start_ns;
    }
    return rounds;
}

static int by_size(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static int64_t median_wake_ns(sleeper *self) {
    int64_t samples[WAKE_ROUNDS];
    pthread_t thread;
    int error = pthread_create(&thread, NULL, sleep_and_answer, self);
    if (error) return -error;
    int rounds = time_wakes(thread, self, samples);
    __atomic_store_n(&self->over, 1, __ATOMIC_RELEASE);
    if (!signal_event(self->there)) pthread_cancel(thread); /* it waits for a wake-up that will not come */
    pthread_join(thread, NULL);
    if (!rounds) return -EIO;
    qsort(samples, (size_t)rounds, sizeof *samples, by_size);
    return samples[rounds / 2];
}

int64_t st_measure_wake_ns(void) {
    sleeper self = {.there = eventfd(0, EFD_CLOEXEC)};
    if (self.there < 0) return -errno;
    int64_t result;
    self.back = eventfd(0, EFD_CLOEXEC);
    if (self.back < 0)
        result = -errno;
    else if (sched_getaffinity(0, sizeof self.allowed, &self.allowed))
        result = -errno;
    else
        result = median_wake_ns(&self);
    if (self.back >= 0) close(self.back);
    close(self.there);
    return result;
}

/* --- whose CPU it is --- */

/* CPUs' worth of time the cgroup may use (cgroup v2, cpu.max: "max 100000" or "quota period"). */
static int quota_cpus(int otherwise) {
    long quota, period;
    FILE *file = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (!file) return otherwise;
    int found = fscanf(file, "%ld %ld", &quota, &period);
    fclose(file);
    return found == 2 && period > 0 && quota / period < otherwise ? (int)(quota / period) : otherwise;
}

/* The time the CPUs of the mask were idle. < 0: -errno. */
static int64_t idle_ns(const cpu_set_t *mask) {
    char line[512];
    long ticks_per_s = sysconf(_SC_CLK_TCK);
    long long idle = 0, waiting = 0, ticks = 0;
    int cpu, seen = 0;
    FILE *file = fopen("/proc/stat", "re");
    if (!file) return -errno;
    /* The lines of the CPUs are the first; "cpu " without a number is all of them. */
    while (fgets(line, sizeof line, file) && !strncmp(line, "cpu", 3)) {
        if (!isdigit((unsigned char)line[3])) continue;
        if (sscanf(line, "cpu%d %*u %*u %*u %lld %lld", &cpu, &idle, &waiting) != 3) continue;
        if (cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, mask)) continue;
        ticks += idle + waiting;
        seen++;
    }
    fclose(file);
    return seen == CPU_COUNT(mask) && ticks_per_s > 0 ? ticks * (ST_NS_PER_S / ticks_per_s) : -ENODATA;
}

int st_cpu_times_read(st_cpu_times *times) {
    cpu_set_t mask;
    struct timespec own;
    memset(times, 0, sizeof *times);
    times->now_ns = st_now_ns();
    if (sched_getaffinity(0, sizeof mask, &mask)) return -errno;
    int64_t idle = idle_ns(&mask);
    if (idle < 0) return (int)idle;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &own)) return -errno;
    times->idle_ns = idle;
    times->own_ns = own.tv_sec * ST_NS_PER_S + own.tv_nsec;
    times->thread = pthread_self();
    times->cpus = CPU_COUNT(&mask);
    times->quota_cpus = quota_cpus(times->cpus);
    return 0;
}

double st_cpus_spare(const st_cpu_times *before, const st_cpu_times *after) {
    int64_t elapsed_ns = after->now_ns - before->now_ns;
    int comparable = before->cpus == after->cpus && pthread_equal(before->thread, after->thread);
    if (!comparable || after->quota_cpus < 2 || elapsed_ns <= 0) return 0;
    double free_ns = (double)(after->idle_ns - before->idle_ns) + (double)(after->own_ns - before->own_ns);
    double spare = free_ns / (double)elapsed_ns - (after->cpus - after->quota_cpus);
    return spare > 0 ? spare : 0;
}
