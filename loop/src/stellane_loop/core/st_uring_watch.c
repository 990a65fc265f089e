/* Readiness on io_uring. Level-triggered by one-shot polls that are armed again after the callback, if still
 * wanted; multishot polls report edges. A poll for each direction, so that changing one costs the other nothing. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "st_uring.h"

static const unsigned directions[2] = {ST_READABLE, ST_WRITABLE};
/* Not POLLPRI: who does not read what is behind the urgent mark would be told of it in every turn. */
static const unsigned poll_events[2] = {POLLIN | POLLRDHUP, POLLOUT};

static st_uring *poller_of(st_uring_watch *watch) { return (st_uring *)watch->base.poller; }

/* What has no poll of its own is always ready to io_uring and refused by epoll. Callers rely on the refusal, so where the
 * file type does not tell, epoll is asked. */
static int pollable(st_uring *poller, int fd) {
    struct stat status;
    poller->counted.system_calls++;
    if (fstat(fd, &status) != 0)
        return -errno;
    if (S_ISSOCK(status.st_mode) || S_ISFIFO(status.st_mode))
        return 0;
    if (S_ISREG(status.st_mode) || S_ISDIR(status.st_mode))
        return -EPERM;
    poller->counted.system_calls += 3;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        return -errno;
    struct epoll_event event = {.events = 0};
    int error = epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0 ? -errno : 0;
    close(epoll);
    return error;
}

st_watch *st_uring_watch_open(st_poller *base, int fd, void *owner, int *error) {
    st_uring *poller = (st_uring *)base;
    *error = poller->forked ? -EBADF : pollable(poller, fd);
    if (*error != 0)
        return NULL;
    st_uring_watch *watch = calloc(1, sizeof *watch);
    if (watch == NULL) {
        *error = -ENOMEM;
        return NULL;
    }
    watch->base = (st_watch){base, owner};
    watch->fd = fd;
    st_unit_open(poller, &watch->unit, ST_UNIT_WATCH);
    return &watch->base;
}

static void take_back(st_uring_watch *watch) {
    st_uring *poller = poller_of(watch);
    if (watch->unit.operations > 0 && poller->ring_open && st_uring_watch_flush(watch))
        st_uring_cancel_now(poller);
}

int st_uring_watch_set(st_watch *base, unsigned events) {
    st_uring_watch *watch = (st_uring_watch *)base;
    if (watch->unit.closing)
        return -EBADF;
    watch->wanted = events;
    watch->unpollable = 0;
    st_unit_dirty(poller_of(watch), &watch->unit);
    if ((events & (ST_READABLE | ST_WRITABLE)) == 0)
        take_back(watch);
    return 0;
}

void st_uring_watch_close(st_watch *base) {
    st_uring_watch *watch = (st_uring_watch *)base;
    watch->wanted = 0;
    st_unit_close(poller_of(watch), &watch->unit);
    take_back(watch);
}

void st_uring_watched(st_uring_watch *watch, int direction, int32_t result) {
    st_uring *poller = poller_of(watch);
    watch->cancelled[direction] = false;
    st_unit_operation_over(poller, &watch->unit, &watch->operation[direction]);
    unsigned ready = directions[direction] & watch->wanted;
    if (watch->unit.closing || ready == 0 || result == -ECANCELED)
        return;
    if (result < 0) {
        /* Closed under us, as a rule. epoll would just never report it again; nor do we, until it is asked for anew. */
        watch->unpollable |= directions[direction];
        return;
    }
    if (watch->wanted & ST_ONCE)
        watch->wanted &= ~ready;
    poller->callbacks++;
    poller->base.sink.ready(watch->base.owner, ready);
}

bool st_uring_watch_flush(st_uring_watch *watch) {
    st_uring *poller = poller_of(watch);
    bool done = true;
    for (int i = 0; i < 2; i++) {
        bool wanted = (watch->wanted & ~watch->unpollable & directions[i]) != 0;
        if (watch->operation[i] == ST_OP_NONE && wanted) {
            st_op_kind kind = i == 0 ? ST_KIND_WATCH_IN : ST_KIND_WATCH_OUT;
            done &= st_uring_poll(poller, &watch->unit, kind, watch, &watch->operation[i], watch->fd, poll_events[i]);
        } else if (watch->operation[i] != ST_OP_NONE && !wanted && !watch->cancelled[i]) {
            watch->cancelled[i] = st_uring_cancel(poller, watch->operation[i]);
            done &= watch->cancelled[i];
        }
    }
    return done;
}
