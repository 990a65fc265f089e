/* Inside of the io_uring poller: what its parts know of each other.
 *
 * What the loop wants is kept as state of a unit (a stream, a listener, a watch). Changing it only puts the
 * unit on the `dirty` list; st_uring_flush() turns the difference between wanted and armed into submissions
 * right before the one io_uring_enter of the turn. So nothing here fails because a queue is full, a change
 * that is taken back costs nothing, and a new ring, after the loop moved to another thread, is filled
 * by calling every unit dirty.
 *
 * No request outlives its turn that points into memory of an owner: receives land in the poller's buffers or are made
 * by read(2) when poll says so, sends are nonblocking. What stays in the kernel (receives, accepts, polls) consumes nothing until a
 * later enter, and can be dropped with its ring without losing a byte.
 */
#ifndef ST_URING_H
#define ST_URING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

#include "st_parts.h"
#include "st_poller.h"
#include "st_ring.h"

/* Who an operation belongs to and what its completion means. */
typedef enum st_op_kind {
    ST_KIND_FREE = 0,
    ST_KIND_RECEIVE,
    ST_KIND_READ_POLL,
    ST_KIND_SEND,
    ST_KIND_WRITE_POLL,
    ST_KIND_ACCEPT,
    ST_KIND_ACCEPT_POLL,
    ST_KIND_WATCH_IN,
    ST_KIND_WATCH_OUT,
    ST_KIND_WAKE,
    ST_KIND_FILE,
    ST_KIND_FILE_SYNC,
} st_op_kind;

typedef struct st_op_slot {
    void *object;
    uint32_t generation;
    uint32_t next_free;
    st_op_kind kind;
} st_op_slot;

/* Operations the kernel holds. A slot is taken until its last completion; user_data is its index and a
 * generation, never a descriptor or a pointer, so a late completion can not reach the wrong object. */
typedef struct st_ops {
    st_op_slot *slots;
    uint32_t capacity, first_free;
    uint32_t in_flight;
} st_ops;

#define ST_OP_NONE 0 /* no user_data of an operation; that of cancellations, whose completions say nothing */

int st_ops_reserve(st_ops *ops, uint32_t count); /* 0, or -ENOMEM: that many more can be taken */
uint64_t st_ops_take(st_ops *ops, st_op_kind kind, void *object);
st_op_slot *st_ops_find(st_ops *ops, uint64_t user_data); /* NULL: none, or no longer */
void st_ops_release(st_ops *ops, uint64_t user_data);
void st_ops_release_all(st_ops *ops);
void st_ops_free(st_ops *ops);

typedef struct st_uring st_uring;

typedef enum st_unit_kind { ST_UNIT_STREAM, ST_UNIT_LISTENER, ST_UNIT_WATCH } st_unit_kind;

/* What streams, listeners and watches have in common. */
typedef struct st_unit {
    struct st_unit *all_previous, *all_next;
    struct st_unit *dirty_next, *due_next, *dead_next;
    unsigned operations; /* of this unit, in the kernel */
    st_unit_kind kind;
    bool dirty;   /* wanted and armed may differ */
    bool due;     /* something that has already completed waits to be delivered */
    bool closing; /* closed by the owner, not yet by us */
} st_unit;

typedef struct st_unit_list {
    st_unit *first, *last;
} st_unit_list;

typedef struct st_uring_stream {
    st_stream base;
    st_unit unit;
    int fd;
    bool socket;    /* or a pipe or tty: read(2) and writev(2) when poll says so */
    bool multishot; /* receives keep going by themselves */
    bool keep_fd, moved;

    bool reading, into;
    bool ended;     /* end of file or an error was seen; nothing will be armed again */
    int end_result; /* what there is still to be said of it: 0, -errno; 1: nothing */
    bool bulk;      /* large receives are expected: by poll and read(2), into memory that holds them whole */
    bool armed_bulk, receive_cancelled, poll_first, starved;
    uint8_t full_receives, small_receives;
    uint64_t receive; /* the operation, or ST_OP_NONE */
    struct st_uring_stream *starved_next;
    char *held; /* bytes that arrived while reading was stopped */
    size_t held_start, held_end, held_capacity;

    bool sending, blocked, shutdown_wanted;
    uint64_t send, write_poll;
    size_t send_unreported;
    st_parts parts; /* of the send in flight */
    struct msghdr message;
} st_uring_stream;

typedef struct st_uring_listener {
    st_listener base;
    st_unit unit;
    int fd;
    bool accepting; /* never once it is closing: what still comes then is held, and closed at the end */
    bool cancelled, by_poll;
    unsigned backlog, accepted_in_turn;
    uint64_t counted_turn;
    uint64_t operation;
    bool armed_poll;
    bool flooded; /* more connections came than the owner takes: accepted one by one until none is left */
    int *held; /* connections beyond the backlog of a turn, or accepted while stopped */
    unsigned held_first, held_count, held_capacity;
} st_uring_listener;

typedef struct st_uring_watch {
    st_watch base;
    st_unit unit;
    int fd;
    unsigned wanted, unpollable;
    uint64_t operation[2]; /* one for each direction: changing one leaves the other alone */
    bool cancelled[2];
} st_uring_watch;

/* Provided buffers and the streams that found none free, in order. */
typedef struct st_uring_group {
    st_buffer_ring buffers;
    st_uring_stream *starved_first, *starved_last;
} st_uring_group;

/* A send whose success the kernel does not report. */
typedef struct st_quiet_send {
    uint64_t operation;
    unsigned position; /* of the submission queue's tail behind it */
} st_quiet_send;

typedef struct st_uring_files st_uring_files;

struct st_uring {
    st_poller base;
    st_ring ring;
    bool ring_open, forked;
    bool moved;      /* the loop has run in another thread before */
    uint64_t thread; /* that the ring belongs to */
    unsigned entries;
    uint64_t turn, turn_events; /* completions of the current turn, or the last */
    uint64_t run_turns;         /* turns since begin(), and one; 0: settled */
    int callbacks;              /* of the current turn */
    st_ops ops;
    st_uring_group small;
    char *scratch; /* for read(2) */
    st_quiet_send *quiet;
    unsigned quiet_count, quiet_capacity;
    bool quiet_sends; /* the kernel can do them: see st_uring_quiet.c */
    int wake_fd;
    int wake_pending; /* atomic */
    uint64_t wake_operation;
    st_unit *all;
    st_unit_list dirty, due, dead;
    st_uring_files *files;
    uint64_t ended_system_calls, ended_enters; /* of rings that are gone */
    st_poller_statistics counted;
};

enum {
    ST_SCRATCH_BYTES = 262144,
    /* Connections of one listener that were accepted and wait for their turn. Beyond it they stay in the kernel's backlog.
     * What one request takes at once is not in our hands: that backlog, at most, comes on top. */
    ST_ACCEPTS_HELD_MAX = 256,
    /* Larger sends leave at once, while what they send is still in the cache: beside the copy a system call is nothing. */
    ST_BATCHED_BYTES_MAX = 16384,
    /* Where every batched send costs a completion, a turn with so few of these serves so few clients that sending at once
     * is cheaper. */
    ST_INLINE_EVENTS_MAX = 2,
};

void st_unit_open(st_uring *poller, st_unit *unit, st_unit_kind kind);
void st_unit_dirty(st_uring *poller, st_unit *unit);
void st_unit_due(st_uring *poller, st_unit *unit);
void st_unit_close(st_uring *poller, st_unit *unit);
void st_unit_leave(st_uring *poller, st_unit *unit); /* every list it is in, before its memory goes */
/* The ring is gone, and every operation with it; what is wanted will be armed in the next one. */
void st_units_forget(st_uring *poller, bool left_behind);
#define UNIT_OF(type, pointer) ((type *)(void *)((char *)(pointer) - offsetof(type, unit)))
/* An operation of the unit had its last completion. */
void st_unit_operation_over(st_uring *poller, st_unit *unit, uint64_t *operation);

/* An entry for an operation of the unit, its user_data stored in *operation; NULL: no room until the next submit. */
st_uring_sqe *st_uring_prepare(st_uring *poller, st_unit *unit, st_op_kind kind, void *object, uint64_t *operation);
bool st_uring_cancel(st_uring *poller, uint64_t operation); /* false: no room */
/* A request keeps its file open even when the owner closes the descriptor next: the listener would go on listening, the
 * peer would see no end. So what the owner takes back for good is not left to a turn that may not come for long. */
bool st_uring_is_ours(const st_uring *poller); /* there is a ring, and it is this thread's */
void st_uring_cancel_now(st_uring *poller);
bool st_uring_poll(st_uring *poller, st_unit *unit, st_op_kind kind, void *object, uint64_t *operation, int fd,
                   unsigned events);

/* Each brings one unit's armed operations in line with what is wanted. false: no room, to be called again. */
bool st_uring_stream_flush(st_uring_stream *stream);
bool st_uring_listener_flush(st_uring_listener *listener);
bool st_uring_watch_flush(st_uring_watch *watch);

void st_uring_stream_due(st_uring_stream *stream);
void st_uring_listener_due(st_uring_listener *listener);

/* Completions. */
void st_uring_received(st_uring_stream *stream, int32_t result, uint32_t flags);
void st_uring_readable(st_uring_stream *stream, int32_t result);
void st_uring_sent(st_uring_stream *stream, int32_t result);
void st_uring_writable(st_uring_stream *stream, int32_t result);
void st_uring_accepted(st_uring_listener *listener, int32_t result, uint32_t flags);
void st_uring_acceptable(st_uring_listener *listener, int32_t result);
void st_uring_watched(st_uring_watch *watch, int direction, int32_t result);

/* Streams that found no buffer are armed again, as many as there are buffers now. */
void st_uring_feed_starved(st_uring *poller);
bool st_uring_send_flush(st_uring_stream *stream);
void st_uring_send_last(st_uring_stream *stream); /* it is closed: what has not begun to leave does, the rest is dropped */

bool st_uring_quiet_sends_work(st_ring *ring); /* of this kernel; the ring is enabled, and empty */
#ifdef ST_TESTING
extern bool st_uring_quiet_refused; /* tests play a kernel that can not */
#endif
bool st_uring_quiet_add(st_uring *poller, uint64_t operation); /* the entry prepared last; false: no memory */
/* Reports the sends that are over, before anything else is: who answers what came meanwhile finds nothing in flight. */
void st_uring_quiet_over(st_uring *poller);
void st_uring_stream_release(st_uring_stream *stream);
void st_uring_listener_release(st_uring_listener *listener);

/* Files have a ring of their own: see st_uring_file.c. */
void st_uring_files_turn(st_uring *poller);
bool st_uring_files_wait(st_uring *poller); /* something completed, or is to be submitted */
bool st_uring_files_lost(st_uring *poller);
void st_uring_files_after_fork(st_uring *poller);
void st_uring_files_free(st_uring *poller);
void st_uring_files_count(st_uring *poller, st_poller_statistics *counted);

st_stream *st_uring_stream_open(st_poller *poller, int fd, int kind, void *owner, int *error);
int st_uring_stream_read_start(st_stream *stream, int mode);
void st_uring_stream_read_stop(st_stream *stream);
ssize_t st_uring_stream_send(st_stream *stream, const struct iovec *parts, int count);
int st_uring_stream_send_more(st_stream *stream, const void *bytes, size_t n);
int st_uring_stream_shutdown(st_stream *stream);
void st_uring_stream_close(st_stream *stream, int keep_fd);
st_listener *st_uring_listener_open(st_poller *poller, int fd, void *owner, int *error);
int st_uring_listener_start(st_listener *listener, unsigned backlog);
void st_uring_listener_stop(st_listener *listener);
int st_uring_listener_take(st_listener *listener);
void st_uring_listener_close(st_listener *listener);
st_watch *st_uring_watch_open(st_poller *poller, int fd, void *owner, int *error);
int st_uring_watch_set(st_watch *watch, unsigned events);
void st_uring_watch_close(st_watch *watch);
int st_uring_file_read(st_poller *, int fd, const struct iovec *parts, int count, int64_t offset, void *owner);
int st_uring_file_write(st_poller *, int fd, const struct iovec *parts, int count, int64_t offset, int flags,
                        void *owner);
int st_uring_file_sync(st_poller *, int fd, int data_only, void *owner);

#endif
