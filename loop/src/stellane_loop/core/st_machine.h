/* What the machine tells a loop that would look before it sleeps: what waking costs, and whose CPU it would be. */
#ifndef ST_MACHINE_H
#define ST_MACHINE_H

#include <pthread.h>
#include <stdint.h>

/* Median cost of waking a thread on another CPU that has slept for a millisecond, nanoseconds: a CPU that had the time to
 * go idle wakes several times slower than one that was busy a moment ago. Sleeps itself, for 20 ms or so; no round is
 * begun after 40. < 0: -errno. */
int64_t st_measure_wake_ns(void);

/* What the CPUs that this thread may use had done at a time. */
typedef struct st_cpu_times {
    int64_t now_ns;
    int64_t idle_ns; /* all of them together */
    int64_t own_ns;  /* CPU time of this thread */
    pthread_t thread;
    int cpus;        /* in the affinity mask */
    int quota_cpus;  /* that the cgroup may use, at most as many as in the mask */
} st_cpu_times;

/* 0, or -errno; what was read then says of no interval that anything is spare. */
int st_cpu_times_read(st_cpu_times *);
/* CPUs that the others left to this thread in between: what was idle and what it used itself. Beside looking there has to
 * be room for whoever it looks out for, so time is what counts: how many are runnable at some instant does not tell, for
 * a client that waits for its answer is not while the loop runs, and wants a CPU as soon as the loop looks. Never negative;
 * 0 with one CPU, which is never spare, and when it can not be told. */
double st_cpus_spare(const st_cpu_times *before, const st_cpu_times *after);

#endif
