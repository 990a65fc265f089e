#include "st_timers.h"

#include <errno.h>
#include <stdlib.h>

/* Four children a node: half the levels of a binary heap, and the children share a cache line or two. */
enum { CHILDREN = 4, CAPACITY_FIRST = 64 };

static int before(const st_timer_slot *a, const st_timer_slot *b) {
    return a->when_s < b->when_s || (a->when_s == b->when_s && a->order < b->order);
}

static void put(st_timers *timers, size_t at, st_timer_slot slot) {
    timers->slots[at] = slot;
    slot.timer->place = at + 1;
}

static void rise(st_timers *timers, size_t at, st_timer_slot slot) {
    while (at > 0) {
        size_t parent = (at - 1) / CHILDREN;
        if (!before(&slot, &timers->slots[parent])) break;
        put(timers, at, timers->slots[parent]);
        at = parent;
    }
    put(timers, at, slot);
}

static void sink(st_timers *timers, size_t at, st_timer_slot slot) {
    for (;;) {
        size_t child = at * CHILDREN + 1, end = child + CHILDREN, least = child;
        if (child >= timers->count) break;
        if (end > timers->count) end = timers->count;
        for (size_t other = child + 1; other < end; other++)
            if (before(&timers->slots[other], &timers->slots[least])) least = other;
        if (!before(&timers->slots[least], &slot)) break;
        put(timers, at, timers->slots[least]);
        at = least;
    }
    put(timers, at, slot);
}

int st_timers_add(st_timers *timers, st_timer *timer, double when_s) {
    if (timers->count == timers->capacity) {
        size_t capacity = timers->capacity ? timers->capacity * 2 : CAPACITY_FIRST;
        st_timer_slot *slots = realloc(timers->slots, capacity * sizeof *slots);
        if (!slots) return -ENOMEM;
        timers->slots = slots;
        timers->capacity = capacity;
    }
    st_timer_slot slot = {when_s, timers->order++, timer};
    rise(timers, timers->count++, slot);
    return 0;
}

void st_timers_remove(st_timers *timers, st_timer *timer) {
    if (!timer->place) return;
    size_t at = timer->place - 1;
    st_timer_slot last = timers->slots[--timers->count];
    timer->place = 0;
    if (last.timer == timer) return;
    if (at > 0 && before(&last, &timers->slots[(at - 1) / CHILDREN]))
        rise(timers, at, last);
    else
        sink(timers, at, last);
}

void st_timers_free(st_timers *timers) {
    free(timers->slots);
    *timers = (st_timers){0};
}
