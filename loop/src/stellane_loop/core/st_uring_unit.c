/* What streams, listeners and watches have in common: the lists they wait in, and submissions. */
#include <poll.h>
#include <stddef.h>

#include "st_uring.h"

static void append(st_unit_list *list, st_unit *unit, size_t link) {
    st_unit **next = (st_unit **)(void *)((char *)unit + link);
    *next = NULL;
    if (list->last != NULL)
        *(st_unit **)(void *)((char *)list->last + link) = unit;
    else
        list->first = unit;
    list->last = unit;
}

void st_unit_open(st_uring *poller, st_unit *unit, st_unit_kind kind) {
    unit->kind = kind;
    unit->all_next = poller->all;
    if (poller->all != NULL)
        poller->all->all_previous = unit;
    poller->all = unit;
}

void st_unit_dirty(st_uring *poller, st_unit *unit) {
    if (unit->dirty)
        return;
    unit->dirty = true;
    append(&poller->dirty, unit, offsetof(st_unit, dirty_next));
}

void st_unit_due(st_uring *poller, st_unit *unit) {
    if (unit->due || unit->closing)
        return;
    unit->due = true;
    append(&poller->due, unit, offsetof(st_unit, due_next));
}

static void dead(st_uring *poller, st_unit *unit) { append(&poller->dead, unit, offsetof(st_unit, dead_next)); }

static void remove_from(st_unit_list *list, st_unit *unit, size_t link) {
    st_unit *previous = NULL;
    for (st_unit *at = list->first; at != NULL; previous = at, at = *(st_unit **)(void *)((char *)at + link)) {
        if (at != unit)
            continue;
        st_unit *next = *(st_unit **)(void *)((char *)at + link);
        if (previous != NULL)
            *(st_unit **)(void *)((char *)previous + link) = next;
        else
            list->first = next;
        if (list->last == unit)
            list->last = previous;
        return;
    }
}

void st_unit_leave(st_uring *poller, st_unit *unit) {
    if (unit->dirty)
        remove_from(&poller->dirty, unit, offsetof(st_unit, dirty_next));
    if (unit->due)
        remove_from(&poller->due, unit, offsetof(st_unit, due_next));
    if (unit->all_previous != NULL)
        unit->all_previous->all_next = unit->all_next;
    else
        poller->all = unit->all_next;
    if (unit->all_next != NULL)
        unit->all_next->all_previous = unit->all_previous;
}

void st_unit_close(st_uring *poller, st_unit *unit) {
    if (unit->closing)
        return;
    unit->closing = true;
    if (unit->operations > 0)
        st_unit_dirty(poller, unit);
    else
        dead(poller, unit);
}

void st_unit_operation_over(st_uring *poller, st_unit *unit, uint64_t *operation) {
    st_ops_release(&poller->ops, *operation);
    *operation = ST_OP_NONE;
    if (--unit->operations == 0 && unit->closing)
        dead(poller, unit);
    else
        st_unit_dirty(poller, unit);
}

static bool make_room(st_uring *poller, unsigned entries) {
    if (st_ring_room(&poller->ring) >= entries)
        return true;
    /* Refused (-EBUSY) while completions wait to be fetched: the unit stays dirty and goes with a later turn. */
    return st_ring_submit(&poller->ring) == 0 && st_ring_room(&poller->ring) >= entries;
}

st_uring_sqe *st_uring_prepare(st_uring *poller, st_unit *unit, st_op_kind kind, void *object, uint64_t *operation) {
    if (!make_room(poller, 1))
        return NULL;
    *operation = st_ops_take(&poller->ops, kind, object);
    if (*operation == ST_OP_NONE)
        return NULL;
    if (unit != NULL)
        unit->operations++;
    st_uring_sqe *sqe = st_ring_sqe(&poller->ring);
    sqe->user_data = *operation;
    return sqe;
}

bool st_uring_cancel(st_uring *poller, uint64_t operation) {
    if (!make_room(poller, 1))
        return false;
    st_uring_sqe *sqe = st_ring_sqe(&poller->ring);
    sqe->opcode = ST_OP_ASYNC_CANCEL;
    sqe->flags = ST_SQE_SKIP_SUCCESS;
    sqe->fd = -1;
    sqe->address = operation;
    sqe->user_data = ST_OP_NONE;
    return true;
}

bool st_uring_poll(st_uring *poller, st_unit *unit, st_op_kind kind, void *object, uint64_t *operation, int fd,
                   unsigned events) {
    st_uring_sqe *sqe = st_uring_prepare(poller, unit, kind, object, operation);
    if (sqe == NULL)
        return false;
    sqe->opcode = ST_OP_POLL_ADD;
    sqe->fd = fd;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    events = (events << 16) | (events >> 16); /* the kernel reads two half-words */
#endif
    sqe->op_flags = events;
    return true;
}

/* What the old ring held is gone. None of it had consumed anything that was not reported, see st_uring.h. */
void st_units_forget(st_uring *poller, bool left_behind) {
    for (st_unit *unit = poller->all, *next; unit != NULL; unit = next) {
        next = unit->all_next;
        if (unit->kind == ST_UNIT_STREAM) {
            st_uring_stream *stream = UNIT_OF(st_uring_stream, unit);
            stream->receive = stream->send = stream->write_poll = ST_OP_NONE;
            stream->starved = stream->receive_cancelled = false;
            stream->moved = stream->moved || left_behind;
        } else if (unit->kind == ST_UNIT_LISTENER) {
            st_uring_listener *listener = UNIT_OF(st_uring_listener, unit);
            listener->operation = ST_OP_NONE;
            listener->cancelled = false;
            /* Until the kernel has taken the old ring apart, its accept may be the one that is woken for a connection
             * (exclusively). A poll is woken as well, so from now on we look for ourselves. */
            listener->by_poll = true;
        } else {
            st_uring_watch *watch = UNIT_OF(st_uring_watch, unit);
            watch->operation[0] = watch->operation[1] = ST_OP_NONE;
            watch->cancelled[0] = watch->cancelled[1] = false;
        }
        bool had_operations = unit->operations > 0;
        unit->operations = 0;
        if (!unit->closing) {
            st_unit_dirty(poller, unit);
        } else if (had_operations) {
            unit->closing = false; /* so that closing puts it on the list of the dead now */
            st_unit_close(poller, unit);
        }
    }
}
