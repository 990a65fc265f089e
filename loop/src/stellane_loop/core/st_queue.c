#include "st_queue.h"

#include <string.h>

enum { CAPACITY_FIRST = 64 };

int st_queue_grow(st_queue *queue) {
    size_t capacity = queue->capacity ? queue->capacity * 2 : CAPACITY_FIRST;
    void **items = malloc(capacity * sizeof *items);
    if (!items) return -ENOMEM;
    size_t front = queue->capacity - queue->first; /* items up to the end of the old ring */
    if (front > queue->count) front = queue->count;
    if (queue->count) {
        memcpy(items, queue->items + queue->first, front * sizeof *items);
        memcpy(items + front, queue->items, (queue->count - front) * sizeof *items);
    }
    free(queue->items);
    *queue = (st_queue){items, 0, queue->count, capacity};
    return 0;
}

int st_queue_move(st_queue *from, st_queue *to) {
    if (!to->count) { /* the usual case, and as quick for thousands as for one */
        st_queue empty = *to;
        *to = *from;
        *from = empty;
        return 0;
    }
    while (from->count) {
        if (st_queue_push(to, st_queue_at(from, 0))) return -ENOMEM;
        st_queue_pop(from);
    }
    return 0;
}

void st_queue_free(st_queue *queue) {
    free(queue->items);
    *queue = (st_queue){0};
}
