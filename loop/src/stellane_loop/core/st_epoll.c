/* The epoll poller: the turn, the slots that events refer to, registration and the end of objects. */
#define _GNU_SOURCE
#include "st_epoll.h"
#include "st_clock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS_FIRST = 64, FDS_FIRST = 64, NS_PER_MS = 1000000, MS_MAX = 24 * 3600 * 1000 };

static uint64_t event_key(const st_epoll *poller, uint32_t slot) {
    return (uint64_t)poller->slots[slot].generation << 32 | slot;
}

static int slots_grow(st_epoll *poller) {
    uint32_t count = poller->slot_count ? poller->slot_count * 2 : SLOTS_FIRST;
    st_slot *slots = realloc(poller->slots, count * sizeof *slots);
    if (!slots) return -ENOMEM;
    poller->slots = slots;
    for (uint32_t slot = count - 1; slot >= poller->slot_count && slot > 0; slot--) {
        slots[slot] = (st_slot){NULL, 0, poller->slot_free};
        poller->slot_free = slot;
    }
    if (!poller->slot_count) slots[0] = (st_slot){0};
    poller->slot_count = count;
    return 0;
}

int st_entry_open(st_epoll *poller, st_entry *entry, int fd, void *owner) {
    if (!poller->slot_free && slots_grow(poller)) return -ENOMEM;
    entry->owner = owner;
    entry->poller = poller;
    entry->fd = fd;
    entry->poll_fd = -1;
    entry->slot = poller->slot_free;
    poller->slot_free = poller->slots[entry->slot].next_free;
    poller->slots[entry->slot].entry = entry;
    return 0;
}

static int fd_table_covers(st_epoll *poller, int fd) {
    if ((size_t)fd < poller->fd_count) return 0;
    size_t count = poller->fd_count ? poller->fd_count : FDS_FIRST;
    while (count <= (size_t)fd) count *= 2;
    uint32_t *slot_of_fd = realloc(poller->slot_of_fd, count * sizeof *slot_of_fd);
    if (!slot_of_fd) return -ENOMEM;
    memset(slot_of_fd + poller->fd_count, 0, (count - poller->fd_count) * sizeof *slot_of_fd);
    poller->slot_of_fd = slot_of_fd;
    poller->fd_count = count;
    return 0;
}

static int control(st_epoll *poller, int operation, int fd, struct epoll_event *event) {
    poller->counted.system_calls++;
    return epoll_ctl(poller->epoll_fd, operation, fd, event) ? -errno : 0;
}

/* epoll knows a descriptor once: the second object on it is registered by a duplicate. */
static int add_duplicate(st_entry *entry, struct epoll_event *event) {
    entry->poller->counted.system_calls++;
    int duplicate = fcntl(entry->fd, F_DUPFD_CLOEXEC, 0);
    if (duplicate < 0) return -errno;
    int error = fd_table_covers(entry->poller, duplicate);
    if (!error) error = control(entry->poller, EPOLL_CTL_ADD, duplicate, event);
    if (error) {
        close(duplicate);
        return error;
    }
    entry->poll_fd = duplicate;
    return 0;
}

int st_entry_register(st_entry *entry, unsigned events) {
    st_epoll *poller = entry->poller;
    if (poller->forked) return -ECANCELED;
    if (entry->fd < 0) return -EBADF;
    struct epoll_event event = {.events = events, .data.u64 = event_key(poller, entry->slot)};
    int error = -ENOENT;
    /* Only what is still ours is changed: the number may belong to another object by now. */
    if (entry->poll_fd >= 0 && poller->slot_of_fd[entry->poll_fd] == entry->slot)
        error = control(poller, EPOLL_CTL_MOD, entry->poll_fd, &event);
    if (error == -ENOENT) { /* not there yet, or closed and opened anew */
        if (fd_table_covers(poller, entry->fd)) return -ENOMEM;
        error = control(poller, EPOLL_CTL_ADD, entry->fd, &event);
        if (!error)
            entry->poll_fd = entry->fd;
        else if (error == -EEXIST)
            error = add_duplicate(entry, &event);
    }
    if (!error) poller->slot_of_fd[entry->poll_fd] = entry->slot;
    return error;
}

void st_entry_unregister(st_entry *entry) {
    st_epoll *poller = entry->poller;
    if (entry->poll_fd < 0) return;
    /* In a forked child there is no epoll_fd any more: this would take the registration away from the parent. */
    if (poller->slot_of_fd[entry->poll_fd] == entry->slot)
        control(poller, EPOLL_CTL_DEL, entry->poll_fd, &(struct epoll_event){0});
    if (entry->poll_fd != entry->fd) close(entry->poll_fd);
    entry->poll_fd = -1;
}

void st_entry_again(st_entry *entry) {
    if (!entry->queued && !st_queue_push(&entry->poller->again, entry)) entry->queued = 1;
}

void st_entry_close(st_entry *entry, int keep_fd) {
    if (entry->closed) return;
    entry->closed = 1;
    if (keep_fd || entry->poll_fd != entry->fd) st_entry_unregister(entry); /* else close(2) does it */
    if (!keep_fd) {
        entry->poller->counted.system_calls++;
        close(entry->fd);
    }
    st_queue_push(&entry->poller->closing, entry);
}

void st_entry_forget(st_entry *entry) {
    st_epoll *poller = entry->poller;
    st_slot *slot = &poller->slots[entry->slot];
    slot->entry = NULL;
    slot->generation++;
    slot->next_free = poller->slot_free;
    poller->slot_free = entry->slot;
    if (entry->release) entry->release(entry);
    free(entry);
}

static void end(st_entry *entry) {
    st_epoll *poller = entry->poller;
    void *owner = entry->owner;
    st_entry_forget(entry);
    poller->callbacks++;
    poller->base.sink.closed(owner);
}

static void reap(st_epoll *poller) {
    for (size_t count = poller->closing.count; count && !poller->forked; count--) {
        st_entry *entry = st_queue_pop(&poller->closing);
        if (entry->queued || entry->held) /* these queues still point to it */
            st_queue_push(&poller->closing, entry);
        else
            end(entry);
    }
}

static int wait_ns(st_epoll *poller, int64_t timeout_ns) {
    if (timeout_ns > 0 && !poller->no_pwait2) {
        struct timespec timeout = {timeout_ns / ST_NS_PER_S, timeout_ns % ST_NS_PER_S};
        long count = syscall(SYS_epoll_pwait2, poller->epoll_fd, poller->events, ST_EPOLL_EVENTS_MAX, &timeout, NULL, 0);
        if (count >= 0 || (errno != ENOSYS && errno != EPERM)) return (int)count;
        poller->no_pwait2 = 1;
    }
    int64_t ms = timeout_ns < 0 ? -1 : (timeout_ns + NS_PER_MS - 1) / NS_PER_MS;
    return epoll_wait(poller->epoll_fd, poller->events, ST_EPOLL_EVENTS_MAX, ms > MS_MAX ? MS_MAX : (int)ms);
}

/* As wait_ns, but looks for spin_ns before it sleeps. */
static int spin_and_wait_ns(st_epoll *poller, int64_t timeout_ns, int64_t spin_ns) {
    int64_t begin_ns = st_now_ns(), end_ns = st_spin_end_ns(begin_ns, spin_ns, timeout_ns), now_ns;
    do {
        int count = epoll_wait(poller->epoll_fd, poller->events, ST_EPOLL_EVENTS_MAX, 0);
        if (count) return count;
        poller->counted.waits++;
        poller->counted.system_calls++;
        now_ns = st_now_ns();
    } while (now_ns < end_ns);
    return wait_ns(poller, st_timeout_left_ns(timeout_ns, now_ns - begin_ns));
}

static int turn(st_poller *base, int64_t timeout_ns, unsigned min_events, int64_t min_wait_ns) {
    (void)min_events; /* epoll can not wait for a second event */
    (void)min_wait_ns;
    st_epoll *poller = (st_epoll *)base;
    if (poller->forked) return -ECANCELED;
    poller->callbacks = 0;
    /* Before the wait is cut short by what is queued: a stream that cannot go on at once queues itself. */
    if (poller->held.count && st_epoll_send_held(poller, 1)) timeout_ns = 0;
    if (poller->forked) return -ECANCELED;
    if (poller->again.count || poller->closing.count) timeout_ns = 0;
    poller->counted.turns++;
    poller->counted.waits++;
    poller->counted.system_calls++;
    if (timeout_ns) base->sink.block_begin(base->sink.context);
    int64_t begin_ns = timeout_ns && base->times_waits ? st_now_ns() : 0;
    int count = timeout_ns && base->spin_ns ? spin_and_wait_ns(poller, timeout_ns, base->spin_ns)
                                            : wait_ns(poller, timeout_ns);
    int error = count < 0 ? errno : 0;
    base->waited_ns = begin_ns ? st_now_ns() - begin_ns : 0;
    if (timeout_ns) base->sink.block_end(base->sink.context);
    if (error) return -error;
    size_t again = poller->again.count;
    poller->turn_events = count;
    poller->counted.events += (uint64_t)count;
    if (base->sink.waited) base->sink.waited(base->sink.context);
    /* A callback may return in a forked child: what else there is belongs to the parent. */
    for (int i = 0; i < count && !poller->forked; i++) {
        uint64_t key = poller->events[i].data.u64;
        st_slot *slot = &poller->slots[(uint32_t)key];
        /* An object closed by an earlier callback of this turn is only freed at its end. */
        if (slot->entry && slot->generation == key >> 32 && !slot->entry->closed)
            slot->entry->event(slot->entry, poller->events[i].events);
    }
    while (again-- && !poller->forked) {
        st_entry *entry = st_queue_pop(&poller->again);
        entry->queued = 0;
        if (!entry->closed) entry->again(entry);
    }
    reap(poller);
    return poller->forked ? -ECANCELED : poller->callbacks;
}

static int wake(st_poller *base) {
    /* Registered edge-triggered: each write is an event of its own and nobody has to read the count. */
    ssize_t n = write(((st_epoll *)base)->wake_fd, &(uint64_t){1}, sizeof(uint64_t));
    return n < 0 ? -errno : 0;
}

static void after_fork(st_poller *base) {
    st_epoll *poller = (st_epoll *)base;
    poller->forked = 1;
    close(poller->epoll_fd);
    close(poller->wake_fd);
    poller->epoll_fd = poller->wake_fd = -1; /* others get these numbers, and wake() would write to them */
}

static void poller_free(st_poller *base) {
    st_epoll *poller = (st_epoll *)base;
    for (uint32_t slot = 1; slot < poller->slot_count; slot++) {
        st_entry *entry = poller->slots[slot].entry;
        if (!entry) continue;
        /* Listeners and watches stand on descriptors of somebody else; only they unregister on close. */
        if (!entry->closed) {
            st_entry_unregister(entry);
            if (!entry->keep_fd) close(entry->fd);
        }
        end(entry);
    }
    close(poller->epoll_fd); /* or -1, in a forked child */
    close(poller->wake_fd);
    st_queue_free(&poller->again);
    st_queue_free(&poller->closing);
    st_queue_free(&poller->held);
    free(poller->slots);
    free(poller->slot_of_fd);
    free(poller->receive_buffer);
    free(poller);
}

static void begin(st_poller *base) { ((st_epoll *)base)->holds_sends = 1; }

static void settle(st_poller *base) {
    st_epoll *poller = (st_epoll *)base;
    poller->holds_sends = 0;
    st_epoll_send_held(poller, 0);
}

static void statistics(st_poller *base, st_poller_statistics *counted) { *counted = ((st_epoll *)base)->counted; }

static const st_poller_ops ops = {
    .name = "epoll",
    .free = poller_free,
    .turn = turn,
    .wake = wake,
    .after_fork = after_fork,
    .stream_open = st_epoll_stream_open,
    .stream_read_start = st_epoll_stream_read_start,
    .stream_read_stop = st_epoll_stream_read_stop,
    .stream_send = st_epoll_stream_send,
    .stream_send_more = st_epoll_stream_send_more,
    .stream_shutdown = st_epoll_stream_shutdown,
    .stream_close = st_epoll_stream_close,
    .listener_open = st_epoll_listener_open,
    .listener_start = st_epoll_listener_start,
    .listener_stop = st_epoll_listener_stop,
    .listener_close = st_epoll_listener_close,
    .watch_open = st_epoll_watch_open,
    .watch_set = st_epoll_watch_set,
    .watch_close = st_epoll_watch_close,
    .statistics = statistics,
    .begin = begin,
    .settle = settle,
};

st_poller *st_epoll_new(const st_sink *sink, int *error) {
    st_epoll *poller = calloc(1, sizeof *poller);
    if (!poller) {
        *error = -ENOMEM;
        return NULL;
    }
    poller->base.ops = &ops;
    poller->base.sink = *sink;
    poller->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    *error = -errno;
    poller->wake_fd = poller->epoll_fd < 0 ? -1 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (poller->wake_fd < 0) {
        if (poller->epoll_fd >= 0) {
            *error = -errno;
            close(poller->epoll_fd);
        }
        free(poller);
        return NULL;
    }
    poller->receive_buffer = malloc(ST_EPOLL_RECEIVE_BYTES);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.u64 = 0};
    *error = poller->receive_buffer ? slots_grow(poller) : -ENOMEM;
    if (!*error) *error = control(poller, EPOLL_CTL_ADD, poller->wake_fd, &event);
    if (*error) {
        poller_free(&poller->base);
        return NULL;
    }
    return &poller->base;
}
