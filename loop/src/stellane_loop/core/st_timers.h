/* A heap of timers, ordered by time and then by the order of insertion. The timers are the caller's
 * memory; the heap holds pointers, so that a timer is removed in O(log n) the moment it is cancelled. */
#ifndef ST_TIMERS_H
#define ST_TIMERS_H

#include <stddef.h>
#include <stdint.h>

typedef struct st_timer {
    void *item;   /* whose timer this is */
    size_t place; /* where it is in the heap, from 1; 0: not in it */
} st_timer;

typedef struct st_timer_slot {
    double when_s; /* on the caller's clock */
    uint64_t order;
    st_timer *timer;
} st_timer_slot;

typedef struct st_timers {
    st_timer_slot *slots;
    size_t count, capacity;
    uint64_t order;
} st_timers;

int st_timers_add(st_timers *, st_timer *, double when_s); /* 0 or -ENOMEM */
void st_timers_remove(st_timers *, st_timer *);            /* no-op when it is not in the heap */
void st_timers_free(st_timers *);                          /* the heap's own memory only */

#endif
