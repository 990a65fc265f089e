/* What the parts of the epoll poller share. */
#ifndef ST_EPOLL_H
#define ST_EPOLL_H

#include <stddef.h>
#include <sys/epoll.h>

#include "st_parts.h"
#include "st_poller.h"
#include "st_queue.h"

enum {
    ST_EPOLL_EVENTS_MAX = 256,            /* readiness events taken per epoll_wait */
    ST_EPOLL_RECEIVE_BYTES = 256 * 1024,  /* size of the buffer shared by all streams */
    ST_EPOLL_RECEIVES_PER_TURN_MAX = 16,  /* of one stream, before the others get their turn */
};

typedef struct st_epoll st_epoll;

/* What every object known to epoll begins with. Events carry slot and generation, not a pointer: the kernel
 * may report a descriptor after its close, when somebody else (a forked child) still holds the open file. */
typedef struct st_entry {
    void (*event)(struct st_entry *, unsigned events); /* readiness */
    void (*again)(struct st_entry *);                  /* its turn in the again queue */
    void (*release)(struct st_entry *);                /* of what it has allocated, before its own memory goes; or NULL */
    void *owner;
    st_epoll *poller;
    uint32_t slot;
    int fd;
    int poll_fd;     /* what epoll knows it by: fd, a duplicate of it, or -1 */
    uint8_t queued;  /* in the again queue */
    uint8_t held;    /* in the queue of held sends */
    uint8_t closed;  /* in the closing queue */
    uint8_t keep_fd; /* do not close fd */
} st_entry;

typedef struct st_slot {
    st_entry *entry;
    uint32_t generation;
    uint32_t next_free;
} st_slot;

struct st_epoll {
    st_poller base;
    int epoll_fd, wake_fd;
    int forked;      /* in a child: the kernel's side belongs to the parent */
    int no_pwait2;   /* epoll_pwait2(2) is missing or forbidden: milliseconds it is */
    int callbacks;   /* made in this turn */
    st_slot *slots;  /* [0] is the wake-up */
    uint32_t slot_count, slot_free;
    uint32_t *slot_of_fd; /* who registered a descriptor last; 0: nobody */
    size_t fd_count;
    st_queue again;   /* entries with something to do that needs no event */
    st_queue closing; /* entries whose `closed` is due */
    st_queue held;    /* streams whose send leaves before the next wait */
    int holds_sends;  /* the loop runs: there will be a next wait */
    int turn_events;  /* readiness events of the last wait */
    char *receive_buffer;
    st_poller_statistics counted;
    struct epoll_event events[ST_EPOLL_EVENTS_MAX];
};

typedef struct st_epoll_stream {
    st_entry entry; /* first: events and ends go by it */
    st_stream base;
    uint8_t kind, mode;
    uint8_t reading;
    uint8_t readable; /* an edge came and nothing has said since that all is read */
    uint8_t hung_up;  /* the other side will send no more, so the end of file is to be fetched */
    uint8_t ended;    /* end of file or an error was reported */
    uint8_t short_is_drained;
    uint8_t sending, shutdown;
    int send_error;         /* -errno, to be reported */
    size_t sent_unreported; /* bytes of the send in flight */
    st_parts parts;         /* of it */
} st_epoll_stream;

static inline st_epoll_stream *st_epoll_stream_of(st_stream *base) {
    return (st_epoll_stream *)(void *)((char *)base - offsetof(st_epoll_stream, base));
}

int st_entry_open(st_epoll *, st_entry *, int fd, void *owner); /* takes a slot; 0 or -errno */
void st_entry_forget(st_entry *); /* frees one that never came to life, without a word to its owner */
int st_entry_register(st_entry *, unsigned events);             /* or changes what is registered; 0 or -errno */
void st_entry_unregister(st_entry *);
void st_entry_again(st_entry *); /* call its `again` in the next turn, which will not block */
void st_entry_close(st_entry *, int keep_fd);

st_stream *st_epoll_stream_open(st_poller *, int fd, int kind, void *owner, int *error);
int st_epoll_stream_read_start(st_stream *, int mode);
void st_epoll_stream_read_stop(st_stream *);
ssize_t st_epoll_stream_send(st_stream *, const struct iovec *, int count);
int st_epoll_stream_send_more(st_stream *, const void *bytes, size_t n);
void st_epoll_send_on(st_epoll_stream *); /* tries the rest of what is in flight, and tells the owner */
void st_epoll_send_last(st_epoll_stream *); /* the stream is closed: what is held leaves, the rest is dropped */
/* What was held leaves. Without `tell` the owners hear of it in the next turn. Whether the turn must not sleep: an owner
 * was told what it waits for, or more is held. */
int st_epoll_send_held(st_epoll *, int tell);
int st_epoll_stream_shutdown(st_stream *);
void st_epoll_stream_close(st_stream *, int keep_fd);

st_listener *st_epoll_listener_open(st_poller *, int fd, void *owner, int *error);
int st_epoll_listener_start(st_listener *, unsigned backlog);
void st_epoll_listener_stop(st_listener *);
void st_epoll_listener_close(st_listener *);

st_watch *st_epoll_watch_open(st_poller *, int fd, void *owner, int *error);
int st_epoll_watch_set(st_watch *, unsigned events);
void st_epoll_watch_close(st_watch *);

#endif
