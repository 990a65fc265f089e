/* The io_uring poller: its life, its turn, wake-ups, and moving to another thread or a forked child.
 * More than 500 lines, because what each of these leaves to the next is understood together or not. */
#define _GNU_SOURCE
#include "st_uring.h"
#include "st_clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum {
    ENTRIES_DEFAULT = 1024,
    ENTRIES_MAX = 32768,
    /* One submission may lead to many completions (multishot), so the queue for these is longer. */
    COMPLETIONS_PER_ENTRY = 8,
    COMPLETIONS_MAX = 65536,
    BUFFERS_DEFAULT = 1024,
    BUFFERS_MAX = 32768,
    BUFFER_BYTES_DEFAULT = 4096,
    BUFFERS_WARM = 64, /* in circulation at first */
    OVERFLOW_ROUNDS_MAX = 64, /* of fetching in one turn */
    ATTACHED_AFTER_TURNS = 64, /* of one run: a short one would pay two system calls for nothing */
};

/* Threads are told apart by a number of ours: the system gives the identity of a dead one to the next. */
static uint64_t this_thread(void) {
    static uint64_t last;
    static _Thread_local uint64_t number;
    if (number == 0)
        number = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return number;
}

static int open_ring(st_uring *poller) {
    unsigned completions = poller->entries * COMPLETIONS_PER_ENTRY;
    if (completions > COMPLETIONS_MAX)
        completions = COMPLETIONS_MAX;
    int error = st_ring_open(&poller->ring, ST_RING_ONE_THREAD, poller->entries, completions);
    if (error < 0)
        return error;
    error = st_buffer_ring_register(&poller->small.buffers, &poller->ring);
    if (error == 0)
        error = st_ring_enable(&poller->ring);
    if (error < 0) {
        st_ring_close(&poller->ring);
        return error;
    }
    poller->ring_open = true;
    poller->thread = this_thread();
    return 0;
}

static void close_ring(st_uring *poller) {
    poller->ended_system_calls += poller->ring.system_calls;
    poller->ended_enters += poller->ring.enters;
    st_ring_close(&poller->ring);
    poller->ring_open = false;
    st_ops_release_all(&poller->ops);
    poller->wake_operation = ST_OP_NONE;
    poller->small.starved_first = poller->small.starved_last = NULL;
    poller->quiet_count = 0;
}

bool st_uring_is_ours(const st_uring *poller) { return poller->ring_open && poller->thread == this_thread(); }

void st_uring_cancel_now(st_uring *poller) {
    /* In another thread than the ring's it has to wait for the next turn, which drops that ring. */
    if (st_uring_is_ours(poller) && st_ring_queued(&poller->ring) > 0)
        st_ring_enter(&poller->ring, 0, 0, 0);
}

static void flush(st_uring *poller) {
    if (poller->wake_operation == ST_OP_NONE) {
        st_uring_sqe *sqe = st_uring_prepare(poller, NULL, ST_KIND_WAKE, poller, &poller->wake_operation);
        if (sqe != NULL) {
            sqe->opcode = ST_OP_POLL_ADD;
            sqe->fd = poller->wake_fd;
            sqe->length = ST_POLL_ADD_MULTI;
            sqe->op_flags = POLLIN;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            sqe->op_flags = (uint32_t)POLLIN << 16;
#endif
        }
    }
    st_uring_feed_starved(poller);
    st_unit_list dirty = poller->dirty;
    poller->dirty = (st_unit_list){0};
    for (st_unit *unit = dirty.first, *next; unit != NULL; unit = next) {
        next = unit->dirty_next;
        unit->dirty = false;
        bool done = true;
        if (unit->kind == ST_UNIT_STREAM)
            done = st_uring_stream_flush(UNIT_OF(st_uring_stream, unit));
        else if (unit->kind == ST_UNIT_LISTENER)
            done = st_uring_listener_flush(UNIT_OF(st_uring_listener, unit));
        else
            done = st_uring_watch_flush(UNIT_OF(st_uring_watch, unit));
        if (!done)
            st_unit_dirty(poller, unit);
    }
}

static void woken(st_uring *poller, uint32_t flags) {
    /* Before the loop looks at what it was woken for: who adds to that from now on writes again. */
    __atomic_store_n(&poller->wake_pending, 0, __ATOMIC_SEQ_CST);
    if (!(flags & ST_CQE_MORE)) {
        st_ops_release(&poller->ops, poller->wake_operation);
        poller->wake_operation = ST_OP_NONE;
        poller->counted.rearms++;
    }
}

static void dispatch(st_uring *poller, const st_uring_cqe *cqe) {
    st_op_slot *slot = st_ops_find(&poller->ops, cqe->user_data);
    if (slot == NULL)
        return;
    void *object = slot->object;
    switch (slot->kind) {
    case ST_KIND_RECEIVE: st_uring_received(object, cqe->result, cqe->flags); break;
    case ST_KIND_READ_POLL: st_uring_readable(object, cqe->result); break;
    case ST_KIND_SEND: st_uring_sent(object, cqe->result); break;
    case ST_KIND_WRITE_POLL: st_uring_writable(object, cqe->result); break;
    case ST_KIND_ACCEPT: st_uring_accepted(object, cqe->result, cqe->flags); break;
    case ST_KIND_ACCEPT_POLL: st_uring_acceptable(object, cqe->result); break;
    case ST_KIND_WATCH_IN: st_uring_watched(object, 0, cqe->result); break;
    case ST_KIND_WATCH_OUT: st_uring_watched(object, 1, cqe->result); break;
    case ST_KIND_WAKE: woken(poller, cqe->flags); break;
    default: break;
    }
}

static void dispatch_some(st_uring *poller, unsigned ready) {
    poller->turn_events = ready;
    poller->counted.events += ready;
    for (unsigned i = 0; i < ready && !poller->forked; i++) {
        /* Copied and given back first: a callback may take long, and the kernel wants the room. */
        st_uring_cqe cqe = *st_ring_cqe(&poller->ring, 0);
        st_ring_consume(&poller->ring, 1);
        dispatch(poller, &cqe);
    }
}

static void dispatch_ready(st_uring *poller) {
    dispatch_some(poller, poller->forked ? 0 : st_ring_ready(&poller->ring));
}

static void deliver_due(st_uring *poller, st_unit_list due) {
    for (st_unit *unit = due.first, *next; unit != NULL && !poller->forked; unit = next) {
        next = unit->due_next;
        unit->due = false;
        if (unit->closing)
            continue;
        if (unit->kind == ST_UNIT_STREAM)
            st_uring_stream_due(UNIT_OF(st_uring_stream, unit));
        else
            st_uring_listener_due(UNIT_OF(st_uring_listener, unit));
    }
}

/* The kernel is done with this unit: its descriptor can go, then its owner is told, then its memory goes. */
static void bury(st_uring *poller, st_unit *unit) {
    st_unit_leave(poller, unit);
    void *owner, *memory;
    if (unit->kind == ST_UNIT_STREAM) {
        st_uring_stream *stream = memory = UNIT_OF(st_uring_stream, unit);
        owner = stream->base.owner;
        st_uring_stream_release(stream);
    } else if (unit->kind == ST_UNIT_LISTENER) {
        st_uring_listener *listener = memory = UNIT_OF(st_uring_listener, unit);
        owner = listener->base.owner;
        st_uring_listener_release(listener);
    } else {
        st_uring_watch *watch = memory = UNIT_OF(st_uring_watch, unit);
        owner = watch->base.owner;
    }
    poller->base.sink.closed(owner);
    poller->callbacks++;
    free(memory);
}

static void bury_dead(st_uring *poller) {
    st_unit_list dead = poller->dead;
    poller->dead = (st_unit_list){0};
    for (st_unit *unit = dead.first, *next; unit != NULL && !poller->forked; unit = next) {
        next = unit->dead_next;
        bury(poller, unit);
    }
}

/* Without SINGLE_ISSUER the kernel may complete a request in the thread that made it at any moment, also while we move: what
 * it then received would be lost. But such a ring takes cancellations from everybody. */
static void end_requests(st_uring *poller) {
    if (st_ring_room(&poller->ring) == 0 && (st_ring_submit(&poller->ring) < 0 || st_ring_room(&poller->ring) == 0))
        return;
    st_uring_sqe *sqe = st_ring_sqe(&poller->ring);
    sqe->opcode = ST_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->op_flags = ST_CANCEL_ANY | ST_CANCEL_ALL;
    for (int round = 0; poller->ops.in_flight > 0 && !poller->forked && round < OVERFLOW_ROUNDS_MAX; round++) {
        st_ring_enter(&poller->ring, 1, 10000000, 0);
        dispatch_ready(poller);
    }
}

/* The loop runs in another thread than before, or for the first time. */
static int move(st_uring *poller) {
    if (poller->ring_open) {
        if (!(poller->ring.setup_flags & ST_SETUP_SINGLE_ISSUER))
            end_requests(poller);
        st_uring_quiet_over(poller);
        dispatch_ready(poller);
        if (poller->forked)
            return -EBADF;
        bool lost = st_ring_overflowed(&poller->ring); /* only the other thread could have fetched these */
        close_ring(poller);
        st_units_forget(poller, true);
        poller->moved = true;
        if (lost)
            return -EOVERFLOW;
    }
    return open_ring(poller);
}

/* A turn that would have this to tell must not sleep. */
static bool something_waits(st_uring *poller) {
    return poller->due.first != NULL || poller->dead.first != NULL || poller->dirty.first != NULL ||
           poller->small.starved_first != NULL || st_ring_ready(&poller->ring) > 0 || st_uring_files_wait(poller);
}

/* Submits and looks; what is left to wait for, and how long, is in wait and timeout_ns. Negative: -errno. */
static int look(st_uring *poller, unsigned *wait, int64_t *timeout_ns) {
    int64_t begin_ns = st_now_ns();
    int found = st_ring_spin(&poller->ring, poller->base.spin_ns, *timeout_ns);
    *timeout_ns = st_timeout_left_ns(*timeout_ns, st_now_ns() - begin_ns);
    if (found > 0)
        *wait = 0;
    return found;
}

static int enter(st_uring *poller, int64_t timeout_ns, unsigned min_events, int64_t min_wait_ns) {
    const st_sink *sink = &poller->base.sink;
    unsigned wait = timeout_ns == 0 || something_waits(poller) ? 0 : 1;
    uint32_t min_wait_us = 0;
    if (wait == 1 && min_events > 1 && min_wait_ns > 0 && (poller->ring.features & ST_FEAT_MIN_TIMEOUT)) {
        wait = min_events < poller->ring.cq_entries ? min_events : poller->ring.cq_entries;
        min_wait_us = min_wait_ns < 1000 ? 1 : min_wait_ns / 1000 > UINT32_MAX ? UINT32_MAX : (uint32_t)(min_wait_ns / 1000);
    }
    /* Work that only has to be run: no need to give up the lock. And no waiting then, for it may come to nothing, and
     * who waits with the lock stops every other thread. */
    if (wait == 1 && st_ring_work_waits(&poller->ring))
        wait = 0;
    bool blocks = wait > 0;
    if (blocks)
        sink->block_begin(sink->context);
    int64_t begin_ns = blocks && poller->base.times_waits ? st_now_ns() : 0;
    int error = blocks && poller->base.spin_ns > 0 ? look(poller, &wait, &timeout_ns) : 0;
    if (error >= 0)
        error = st_ring_enter(&poller->ring, wait, timeout_ns, min_wait_us);
    poller->base.waited_ns = begin_ns ? st_now_ns() - begin_ns : 0;
    if (blocks)
        sink->block_end(sink->context);
    if (error == -EBUSY || error == -EAGAIN)
        error = st_ring_fetch(&poller->ring); /* what was refused is still queued and goes with the next turn */
    return error;
}

/* What is there, without a wait. False: a callback returned in a forked child, where the ring is not mapped. */
static bool deliver(st_uring *poller) {
    /* Sends first, before `waited` and not only the quiet ones: what left with the enter left when it was written, for its
     * owner, and a transport that only waits for that is lost in this turn, which may be the last. */
    st_uring_quiet_over(poller);
    st_unit_list due = poller->due;
    poller->due = (st_unit_list){0};
    unsigned ready = poller->forked ? 0 : st_ring_ready(&poller->ring);
    if (poller->base.sink.waited != NULL && !poller->forked)
        poller->base.sink.waited(poller->base.sink.context);
    deliver_due(poller, due);
    if (!poller->forked)
        dispatch_some(poller, ready);
    for (int round = 0; !poller->forked && st_ring_overflowed(&poller->ring) && round < OVERFLOW_ROUNDS_MAX; round++) {
        poller->counted.overflows++;
        if (st_ring_fetch(&poller->ring) < 0)
            break;
        dispatch_ready(poller);
    }
    st_uring_quiet_over(poller);
    st_uring_files_turn(poller);
    bury_dead(poller);
    return !poller->forked;
}

static int turn(st_poller *base, int64_t timeout_ns, unsigned min_events, int64_t min_wait_ns) {
    st_uring *poller = (st_uring *)base;
    if (poller->forked)
        return -EBADF;
    poller->turn++;
    poller->counted.turns++;
    poller->callbacks = 0;
    if (!st_uring_is_ours(poller)) {
        int error = move(poller);
        if (error < 0)
            return error;
    }
    if (poller->run_turns > 0 && ++poller->run_turns == ATTACHED_AFTER_TURNS)
        st_ring_attach(&poller->ring);
    st_uring_files_turn(poller);
    if (poller->forked)
        return -EBADF;
    if (poller->quiet_count > 0) /* left by st_poller_ops.settle, which tells nobody */
        timeout_ns = 0;
    flush(poller);
    int error = enter(poller, timeout_ns, min_events, min_wait_ns);
    if (error < 0 && error != -EINTR)
        return error;
    if (!deliver(poller))
        return -EBADF;
    if (st_ring_lost(&poller->ring) || st_uring_files_lost(poller))
        return -EOVERFLOW;
    return poller->callbacks == 0 && error < 0 ? error : poller->callbacks;
}

static void begin(st_poller *base) { ((st_uring *)base)->run_turns = 1; }

static void settle(st_poller *base) {
    st_uring *poller = (st_uring *)base;
    poller->run_turns = 0;
    if (poller->forked || !st_uring_is_ours(poller))
        return;
    if (poller->dirty.first != NULL || st_ring_queued(&poller->ring) > 0) {
        flush(poller);
        st_ring_enter(&poller->ring, 0, 0, 0); /* completions are for the next turn */
    }
    st_ring_detach(&poller->ring); /* the next turn may be another thread's */
}

static int wake(st_poller *base) {
    st_uring *poller = (st_uring *)base;
    /* Called from signal handlers too: one atomic, one write(2), errno kept. */
    if (__atomic_exchange_n(&poller->wake_pending, 1, __ATOMIC_SEQ_CST) != 0)
        return 0;
    int saved = errno;
    uint64_t one = 1;
    ssize_t written = write(poller->wake_fd, &one, sizeof one);
    int error = written == (ssize_t)sizeof one || errno == EAGAIN ? 0 : -errno;
    errno = saved;
    return error;
}

static void after_fork(st_poller *base) {
    st_uring *poller = (st_uring *)base;
    poller->forked = true;
    st_uring_files_after_fork(poller);
    if (poller->ring_open) {
        /* The mappings are not here (MADV_DONTFORK); what is at their addresses is none of our business. */
        st_ring_close_fd(&poller->ring);
        poller->ring_open = false;
        for (st_unit *unit = poller->all; unit != NULL; unit = unit->all_next)
            unit->operations = 0;
    }
    poller->quiet_count = 0;
    close(poller->wake_fd);
    poller->wake_fd = -1;
}

/* Ends every request in our thread's ring now: a request keeps its socket open, and the peer would see the
 * end of the connection only when the kernel has got round to taking the ring apart. */
static void cancel_everything(st_uring *poller) {
    st_uring_sqe *sqe;
    if (st_ring_room(&poller->ring) == 0 && st_ring_submit(&poller->ring) < 0)
        return;
    if (st_ring_room(&poller->ring) == 0)
        return;
    sqe = st_ring_sqe(&poller->ring);
    sqe->opcode = ST_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->op_flags = ST_CANCEL_ANY | ST_CANCEL_ALL;
    st_ring_enter(&poller->ring, 0, 0, 0);
    while (st_ring_overflowed(&poller->ring)) {
        st_ring_consume(&poller->ring, st_ring_ready(&poller->ring));
        if (st_ring_fetch(&poller->ring) < 0)
            break;
    }
}

static void bury_all(st_uring *poller, bool streams) {
    for (st_unit *unit = poller->all; unit != NULL;) {
        if (unit->kind == ST_UNIT_STREAM && !streams) {
            unit = unit->all_next;
            continue;
        }
        bury(poller, unit);
        unit = poller->all; /* `closed` may have opened or closed anything */
    }
}

static void free_poller(st_poller *base) {
    st_uring *poller = (st_uring *)base;
    st_uring_files_free(poller);
    if (poller->ring_open) {
        bool ours = poller->thread == this_thread();
        if (ours) {
            cancel_everything(poller);
            st_ring_detach(&poller->ring);
        }
        /* Connections that were accepted, but not reported, are closed like the others. */
        for (unsigned i = 0, ready = st_ring_ready(&poller->ring); i < ready; i++) {
            const st_uring_cqe *cqe = st_ring_cqe(&poller->ring, i);
            st_op_slot *slot = st_ops_find(&poller->ops, cqe->user_data);
            if (slot != NULL && slot->kind == ST_KIND_ACCEPT && cqe->result >= 0)
                close(cqe->result);
        }
        close_ring(poller);
        st_units_forget(poller, !ours);
    }
    /* Streams last: their owners may own watches, and give these up when they are told. */
    for (st_unit *unit = poller->all, *next; unit != NULL; unit = next) {
        next = unit->all_next;
        unit->closing = true;
    }
    bury_all(poller, false);
    bury_all(poller, true);
    if (poller->wake_fd >= 0)
        close(poller->wake_fd);
    if (!poller->forked) {
        st_buffer_ring_unmap(&poller->small.buffers);
    }
    st_ops_free(&poller->ops);
    free(poller->quiet);
    free(poller->scratch);
    free(poller);
}

static void statistics(st_poller *base, st_poller_statistics *result) {
    st_uring *poller = (st_uring *)base;
    *result = poller->counted;
    result->waits = poller->ended_enters + (poller->ring_open ? poller->ring.enters : 0);
    result->system_calls += poller->ended_system_calls + (poller->ring_open ? poller->ring.system_calls : 0);
    result->in_flight = poller->ops.in_flight - (poller->wake_operation != ST_OP_NONE);
    st_uring_files_count(poller, result);
}

static const st_poller_ops uring_ops = {
    .name = "io_uring",
    .free = free_poller,
    .turn = turn,
    .wake = wake,
    .after_fork = after_fork,
    .stream_open = st_uring_stream_open,
    .stream_read_start = st_uring_stream_read_start,
    .stream_read_stop = st_uring_stream_read_stop,
    .stream_send = st_uring_stream_send,
    .stream_send_more = st_uring_stream_send_more,
    .stream_shutdown = st_uring_stream_shutdown,
    .stream_close = st_uring_stream_close,
    .listener_open = st_uring_listener_open,
    .listener_start = st_uring_listener_start,
    .listener_stop = st_uring_listener_stop,
    .listener_take = st_uring_listener_take,
    .listener_close = st_uring_listener_close,
    .watch_open = st_uring_watch_open,
    .watch_set = st_uring_watch_set,
    .watch_close = st_uring_watch_close,
    .file_read = st_uring_file_read,
    .file_write = st_uring_file_write,
    .file_sync = st_uring_file_sync,
    .statistics = statistics,
    .begin = begin,
    .settle = settle,
};

static int acceptable(unsigned value, unsigned maximum) { return (value & (value - 1)) == 0 && value <= maximum; }

/* Whether rings are to be had at all, asked now and not at the first turn. */
static int usable(st_uring *poller) {
    int error = open_ring(poller);
    if (error < 0)
        return error;
    poller->quiet_sends = st_uring_quiet_sends_work(&poller->ring);
    close_ring(poller);
    return 0;
}

st_poller *st_uring_new(const st_sink *sink, unsigned entries, unsigned buffers, unsigned buffer_bytes, int *error) {
    entries = entries ? entries : ENTRIES_DEFAULT;
    buffers = buffers ? buffers : BUFFERS_DEFAULT;
    buffer_bytes = buffer_bytes ? buffer_bytes : BUFFER_BYTES_DEFAULT;
    *error = -EINVAL;
    if (!acceptable(entries, ENTRIES_MAX) || !acceptable(buffers, BUFFERS_MAX) || buffer_bytes > INT32_MAX)
        return NULL;
    *error = -ENOMEM;
    st_uring *poller = calloc(1, sizeof *poller);
    if (poller == NULL)
        return NULL;
    poller->base.ops = &uring_ops;
    poller->base.sink = *sink;
    poller->entries = entries;
    poller->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    *error = poller->wake_fd < 0 ? -errno : 0;
    if (*error == 0)
        *error = st_buffer_ring_map(&poller->small.buffers, 0, buffers, buffer_bytes, BUFFERS_WARM);
    if (*error == 0 && (poller->scratch = malloc(ST_SCRATCH_BYTES)) == NULL)
        *error = -ENOMEM;
    if (*error == 0)
        *error = usable(poller);
    if (*error != 0) {
        free_poller(&poller->base);
        return NULL;
    }
    return &poller->base;
}
