/* Listening sockets on io_uring: one multishot accept each. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "st_uring.h"

enum { HELD_FIRST = 64 };

static st_uring *poller_of(st_uring_listener *listener) { return (st_uring *)listener->base.poller; }

st_listener *st_uring_listener_open(st_poller *base, int fd, void *owner, int *error) {
    st_uring *poller = (st_uring *)base;
    int listening = 0;
    socklen_t bytes = sizeof listening;
    *error = 0;
    poller->counted.system_calls++;
    if (poller->forked)
        *error = -EBADF;
    else if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &bytes) != 0)
        *error = -errno;
    if (*error != 0)
        return NULL;
    st_uring_listener *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        *error = -ENOMEM;
        return NULL;
    }
    listener->base = (st_listener){base, owner};
    listener->fd = fd;
    listener->by_poll = poller->moved;
    st_unit_open(poller, &listener->unit, ST_UNIT_LISTENER);
    return &listener->base;
}

int st_uring_listener_start(st_listener *base, unsigned backlog) {
    st_uring_listener *listener = (st_uring_listener *)base;
    if (listener->unit.closing)
        return -EBADF;
    listener->backlog = backlog ? backlog : 1;
    listener->accepting = true;
    if (listener->held_count > 0)
        st_unit_due(poller_of(listener), &listener->unit);
    st_unit_dirty(poller_of(listener), &listener->unit);
    return 0;
}

void st_uring_listener_stop(st_listener *base) {
    st_uring_listener *listener = (st_uring_listener *)base;
    listener->accepting = false;
    st_unit_dirty(poller_of(listener), &listener->unit);
}

static void close_held(st_uring_listener *listener) {
    for (; listener->held_count > 0; listener->held_count--) {
        poller_of(listener)->counted.system_calls++;
        close(listener->held[listener->held_first++]);
    }
    listener->held_first = 0;
}

void st_uring_listener_close(st_listener *base) {
    st_uring_listener *listener = (st_uring_listener *)base;
    st_uring *poller = poller_of(listener);
    if (listener->unit.closing)
        return;
    listener->accepting = false;
    close_held(listener);
    st_unit_close(poller, &listener->unit);
    if (listener->operation != ST_OP_NONE && poller->ring_open && st_uring_listener_flush(listener))
        st_uring_cancel_now(poller);
}

static void hold(st_uring_listener *listener, int fd) {
    if (listener->held_count == 0)
        listener->held_first = 0;
    if (listener->held_first + listener->held_count == listener->held_capacity) {
        unsigned capacity = listener->held_capacity ? listener->held_capacity * 2 : HELD_FIRST;
        int *held = realloc(listener->held, capacity * sizeof *held);
        if (held == NULL) {
            close(fd); /* as the kernel does when its backlog is full */
            return;
        }
        listener->held = held;
        listener->held_capacity = capacity;
    }
    listener->held[listener->held_first + listener->held_count++] = fd;
    if (listener->held_count >= ST_ACCEPTS_HELD_MAX) {
        listener->flooded = true;
        st_unit_dirty(poller_of(listener), &listener->unit);
    }
    if (listener->accepting)
        st_unit_due(poller_of(listener), &listener->unit);
}

/* What the kernel has accepted and the turn has not come to, out of the completions. */
static void hold_completed(st_uring_listener *listener) {
    st_uring *poller = poller_of(listener);
    if (listener->operation == ST_OP_NONE || listener->armed_poll || !st_uring_is_ours(poller))
        return;
    if (st_uring_listener_flush(listener))
        st_uring_cancel_now(poller);
    for (unsigned i = 0, ready = st_ring_ready(&poller->ring); i < ready; i++) {
        st_uring_cqe *completion = st_ring_cqe(&poller->ring, i);
        if (completion->user_data != listener->operation || completion->result < 0)
            continue;
        hold(listener, completion->result);
        completion->result = -ECANCELED; /* the turn will come to it, and must not find the connection again */
    }
}

int st_uring_listener_take(st_listener *base) {
    st_uring_listener *listener = (st_uring_listener *)base;
    if (listener->unit.closing || poller_of(listener)->forked)
        return -1;
    listener->accepting = false;
    hold_completed(listener);
    if (listener->held_count == 0)
        return -1;
    poller_of(listener)->counted.accepts++;
    listener->held_count--;
    return listener->held[listener->held_first++];
}

static bool turn_is_full(st_uring_listener *listener) {
    st_uring *poller = poller_of(listener);
    if (listener->counted_turn != poller->turn) {
        listener->counted_turn = poller->turn;
        listener->accepted_in_turn = 0;
    }
    return listener->accepted_in_turn >= listener->backlog;
}

static void tell(st_uring_listener *listener, int fd) {
    st_uring *poller = poller_of(listener);
    listener->accepted_in_turn++;
    poller->callbacks++;
    if (fd >= 0)
        poller->counted.accepts++;
    poller->base.sink.accepted(listener->base.owner, fd);
}

void st_uring_listener_due(st_uring_listener *listener) {
    while (listener->held_count > 0 && listener->accepting && !turn_is_full(listener) && !poller_of(listener)->forked) {
        listener->held_count--;
        tell(listener, listener->held[listener->held_first++]);
    }
    if (listener->flooded && listener->held_count == 0)
        st_unit_dirty(poller_of(listener), &listener->unit);
    if (listener->held_count > 0 && listener->accepting)
        st_unit_due(poller_of(listener), &listener->unit);
}

static void took(st_uring_listener *listener, int fd) {
    if (!listener->accepting || listener->held_count > 0 || turn_is_full(listener))
        hold(listener, fd);
    else
        tell(listener, fd);
}

/* The connection was gone before it was accepted, or the kernel wants us to ask again: accept(2) names these. */
static bool passing(int error) {
    static const int errors[] = {EAGAIN,      EINTR,     ECONNABORTED, EPROTO,    ENETDOWN,    ENOPROTOOPT,
                                 EHOSTDOWN,   ENONET,    EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, ECANCELED};
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++)
        if (error == -errors[i])
            return true;
    return false;
}

/* EMFILE and its like: the connection stays where it is and accepting again would fail at once, forever. */
static void failed(st_uring_listener *listener, int error) {
    if (passing(error))
        return;
    bool accepting = listener->accepting;
    listener->accepting = false;
    if (accepting)
        tell(listener, error);
}

void st_uring_accepted(st_uring_listener *listener, int32_t result, uint32_t flags) {
    if (!(flags & ST_CQE_MORE)) {
        if (!listener->cancelled && listener->accepting)
            poller_of(listener)->counted.rearms++;
        listener->cancelled = false;
        st_unit_operation_over(poller_of(listener), &listener->unit, &listener->operation);
    }
    if (result >= 0)
        took(listener, result);
    else
        failed(listener, result);
}

void st_uring_acceptable(st_uring_listener *listener, int32_t result) {
    st_uring *poller = poller_of(listener);
    listener->cancelled = false;
    st_unit_operation_over(poller, &listener->unit, &listener->operation);
    if (result < 0) {
        failed(listener, result);
        return;
    }
    while (listener->accepting && !turn_is_full(listener) && !poller->forked) {
        poller->counted.system_calls++;
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            took(listener, fd);
            continue;
        }
        int error = -errno;
        failed(listener, error);
        if (error == -EAGAIN) {
            listener->flooded = false;
            return;
        }
    }
}

bool st_uring_listener_flush(st_uring_listener *listener) {
    st_uring *poller = poller_of(listener);
    if (listener->operation != ST_OP_NONE) {
        if ((listener->accepting && (!listener->flooded || listener->armed_poll)) || listener->cancelled)
            return true;
        listener->cancelled = st_uring_cancel(poller, listener->operation);
        return listener->cancelled;
    }
    if (!listener->accepting || (listener->flooded && listener->held_count > 0))
        return true;
    listener->armed_poll = listener->by_poll || listener->flooded;
    if (listener->armed_poll)
        return st_uring_poll(poller, &listener->unit, ST_KIND_ACCEPT_POLL, listener, &listener->operation, listener->fd,
                             POLLIN);
    st_uring_sqe *sqe = st_uring_prepare(poller, &listener->unit, ST_KIND_ACCEPT, listener, &listener->operation);
    if (sqe == NULL)
        return false;
    sqe->opcode = ST_OP_ACCEPT;
    sqe->fd = listener->fd;
    sqe->ioprio = ST_ACCEPT_MULTISHOT;
    sqe->op_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    return true;
}

void st_uring_listener_release(st_uring_listener *listener) {
    close_held(listener);
    free(listener->held);
}
