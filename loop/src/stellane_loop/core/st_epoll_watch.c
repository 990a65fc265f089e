/* Readiness of any descriptor, level-triggered or once, and listening sockets, on epoll. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "st_epoll.h"

typedef struct epoll_watch {
    st_entry entry;
    st_watch base;
    uint8_t wanted;
    uint8_t once;       /* registered edge-triggered, for good */
    uint8_t seen;       /* edges that nobody had asked for yet */
    uint8_t hung_up;    /* or failed: no further edge will say so */
    uint8_t urgent;     /* TCP's urgent mark was there: a receive ends at it, and no edge tells of what lies behind */
    uint32_t registered; /* epoll's events; 0: none */
} epoll_watch;

typedef struct epoll_listener {
    st_entry entry;
    st_listener base;
    unsigned backlog;
    uint8_t accepting;
} epoll_listener;

static epoll_watch *watch_of(st_watch *base) { return (epoll_watch *)((char *)base - offsetof(epoll_watch, base)); }

static epoll_listener *listener_of(st_listener *base) {
    return (epoll_listener *)((char *)base - offsetof(epoll_listener, base));
}

static void watch_tell(epoll_watch *watch, unsigned ready) {
    if (watch->once) {
        watch->seen |= ready & ~watch->wanted;
        ready &= watch->wanted;
        watch->wanted &= ~ready;
    } else {
        ready &= watch->wanted;
    }
    if (!ready) return;
    watch->entry.poller->callbacks++;
    watch->entry.poller->base.sink.ready(watch->base.owner, ready);
}

static void watch_event(st_entry *entry, unsigned events) {
    unsigned ready = 0;
    epoll_watch *watch = (epoll_watch *)entry;
    if (events & (EPOLLIN | EPOLLRDHUP)) ready |= ST_READABLE;
    if (events & EPOLLOUT) ready |= ST_WRITABLE;
    if (events & (EPOLLERR | EPOLLHUP)) ready |= ST_READABLE | ST_WRITABLE;
    if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)) watch->hung_up = 1;
    if (events & EPOLLPRI) watch->urgent = 1; /* not readable: a receive with nothing behind the mark drops the byte */
    watch_tell(watch, ready);
}

static void watch_again(st_entry *entry) {
    epoll_watch *watch = (epoll_watch *)entry;
    unsigned ready = watch->seen & watch->wanted;
    watch->seen &= ~ready;
    watch_tell(watch, ready);
}

st_watch *st_epoll_watch_open(st_poller *poller, int fd, void *owner, int *error) {
    epoll_watch *watch = calloc(1, sizeof *watch);
    *error = watch ? st_entry_open((st_epoll *)poller, &watch->entry, fd, owner) : -ENOMEM;
    if (*error) {
        free(watch);
        return NULL;
    }
    watch->entry.event = watch_event;
    watch->entry.again = watch_again;
    watch->entry.keep_fd = 1;
    watch->base = (st_watch){poller, owner};
    return &watch->base;
}

int st_epoll_watch_set(st_watch *base, unsigned events) {
    epoll_watch *watch = watch_of(base);
    uint32_t wanted = 0;
    int error = 0;
    if (events & ST_ONCE) {
        wanted = EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    } else {
        if (events & ST_READABLE) wanted |= EPOLLIN;
        if (events & ST_WRITABLE) wanted |= EPOLLOUT;
    }
    watch->once = !!(events & ST_ONCE);
    /* Errors pass, and who reads has then to wait: epoll looks anew. */
    int look = (watch->hung_up || watch->urgent) && events & ST_READABLE;
    /* Asked for the same again, level-triggered: the number may stand for another file by now. */
    if (wanted != watch->registered || look || (wanted && !watch->once)) {
        if (wanted)
            error = st_entry_register(&watch->entry, wanted);
        else
            st_entry_unregister(&watch->entry); /* at once: the caller may close its descriptor next */
        if (error) return error;
        watch->registered = wanted;
        watch->seen = watch->hung_up = 0;
    }
    watch->wanted = events & (ST_READABLE | ST_WRITABLE);
    if (watch->once && watch->seen & watch->wanted) st_entry_again(&watch->entry);
    return 0;
}

void st_epoll_watch_close(st_watch *base) { st_entry_close(&watch_of(base)->entry, 1); }

static void accept_batch(st_entry *entry, unsigned events) {
    (void)events;
    epoll_listener *listener = (epoll_listener *)entry;
    st_epoll *poller = entry->poller;
    for (unsigned i = 0; i < listener->backlog && listener->accepting && !entry->closed && !poller->forked; i++) {
        poller->counted.system_calls++;
        int fd = accept4(entry->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN) return;
            if (errno == EINTR || errno == ECONNABORTED) continue;
            fd = -errno;
            /* The connection stays in the backlog and would be reported forever. */
            st_epoll_listener_stop(&listener->base);
        } else {
            poller->counted.accepts++;
        }
        poller->callbacks++;
        poller->base.sink.accepted(listener->base.owner, fd);
    }
}

st_listener *st_epoll_listener_open(st_poller *poller, int fd, void *owner, int *error) {
    epoll_listener *listener = calloc(1, sizeof *listener);
    *error = listener ? st_entry_open((st_epoll *)poller, &listener->entry, fd, owner) : -ENOMEM;
    if (*error) {
        free(listener);
        return NULL;
    }
    listener->entry.event = accept_batch;
    listener->entry.keep_fd = 1;
    listener->base = (st_listener){poller, owner};
    return &listener->base;
}

int st_epoll_listener_start(st_listener *base, unsigned backlog) {
    epoll_listener *listener = listener_of(base);
    listener->backlog = backlog ? backlog : 1;
    if (listener->accepting) return 0;
    /* Of the processes that share a listener one is woken, not all. */
    int error = st_entry_register(&listener->entry, EPOLLIN | EPOLLEXCLUSIVE);
    if (!error) listener->accepting = 1;
    return error;
}

void st_epoll_listener_stop(st_listener *base) {
    epoll_listener *listener = listener_of(base);
    listener->accepting = 0;
    st_entry_unregister(&listener->entry);
}

void st_epoll_listener_close(st_listener *base) {
    listener_of(base)->accepting = 0;
    st_entry_close(&listener_of(base)->entry, 1);
}
