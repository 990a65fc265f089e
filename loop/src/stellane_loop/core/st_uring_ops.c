#include <errno.h>
#include <stdlib.h>

#include "st_uring.h"

enum { NO_SLOT = UINT32_MAX, FIRST_CAPACITY = 256 };

/* Index and generation. Generations are odd while taken, so no operation has the number ST_OP_NONE. */
static uint64_t name_of(const st_ops *ops, uint32_t index) {
    return ((uint64_t)ops->slots[index].generation << 32) | index;
}

int st_ops_reserve(st_ops *ops, uint32_t count) {
    uint32_t needed = ops->in_flight + count;
    if (needed <= ops->capacity)
        return 0;
    uint32_t capacity = ops->capacity ? ops->capacity : FIRST_CAPACITY;
    while (capacity < needed)
        capacity *= 2;
    st_op_slot *slots = realloc(ops->slots, capacity * sizeof *slots);
    if (slots == NULL)
        return -ENOMEM;
    uint32_t first_free = ops->capacity == 0 ? NO_SLOT : ops->first_free;
    for (uint32_t index = capacity; index-- > ops->capacity;) {
        slots[index] = (st_op_slot){.next_free = first_free};
        first_free = index;
    }
    ops->slots = slots;
    ops->capacity = capacity;
    ops->first_free = first_free;
    return 0;
}

uint64_t st_ops_take(st_ops *ops, st_op_kind kind, void *object) {
    if (st_ops_reserve(ops, 1) != 0)
        return ST_OP_NONE;
    uint32_t index = ops->first_free;
    st_op_slot *slot = &ops->slots[index];
    ops->first_free = slot->next_free;
    ops->in_flight++;
    slot->generation++;
    slot->kind = kind;
    slot->object = object;
    return name_of(ops, index);
}

st_op_slot *st_ops_find(st_ops *ops, uint64_t user_data) {
    uint32_t index = (uint32_t)user_data;
    if (index >= ops->capacity || ops->slots[index].generation != user_data >> 32 ||
        ops->slots[index].kind == ST_KIND_FREE)
        return NULL;
    return &ops->slots[index];
}

static void release(st_ops *ops, uint32_t index) {
    st_op_slot *slot = &ops->slots[index];
    slot->generation++;
    slot->kind = ST_KIND_FREE;
    slot->object = NULL;
    slot->next_free = ops->first_free;
    ops->first_free = index;
    ops->in_flight--;
}

void st_ops_release(st_ops *ops, uint64_t user_data) {
    if (st_ops_find(ops, user_data) != NULL)
        release(ops, (uint32_t)user_data);
}

void st_ops_release_all(st_ops *ops) {
    for (uint32_t index = 0; index < ops->capacity; index++)
        if (ops->slots[index].kind != ST_KIND_FREE)
            release(ops, index);
}

void st_ops_free(st_ops *ops) {
    free(ops->slots);
    *ops = (st_ops){0};
}
