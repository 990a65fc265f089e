/* A first-in first-out ring of pointers that grows. Its user does the locking, if any. */
#ifndef ST_QUEUE_H
#define ST_QUEUE_H

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>

typedef struct st_queue {
    void **items;
    size_t first, count, capacity; /* capacity: 0 or a power of two */
} st_queue;

int st_queue_grow(st_queue *); /* 0 or -ENOMEM */
int st_queue_move(st_queue *from, st_queue *to); /* behind what `to` has; 0, or -ENOMEM and the rest stays */
void st_queue_free(st_queue *);

static inline int st_queue_push(st_queue *queue, void *item) {
    if (queue->count == queue->capacity && st_queue_grow(queue)) return -ENOMEM;
    queue->items[(queue->first + queue->count++) & (queue->capacity - 1)] = item;
    return 0;
}

static inline void *st_queue_pop(st_queue *queue) { /* NULL when it is empty */
    if (!queue->count) return NULL;
    void *item = queue->items[queue->first];
    queue->first = (queue->first + 1) & (queue->capacity - 1);
    queue->count--;
    return item;
}

static inline void *st_queue_at(const st_queue *queue, size_t place) {
    return queue->items[(queue->first + place) & (queue->capacity - 1)];
}

#endif
