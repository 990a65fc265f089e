/* The seam between the event loop (Cython, above) and what waits for the kernel (epoll or
 * io_uring, below). Completion-style: the loop says what it wants and is told what happened,
 * so the two pollers look the same from above. No Python.h on this side.
 *
 * Threads: everything belongs to the thread that runs the loop, but for st_poller_wake(). A
 * loop may be built in one thread and run in another, and in a third later: each poller copes.
 *
 * Memory: every stream, listener and watch belongs to its poller. After st_*_close() the object must
 * not be used again; `closed` is the last call that names its owner, and comes from a later
 * st_poller_turn() (or st_poller_free()), never from inside the close itself: by then the kernel
 * holds no pointer into the owner's memory and the file descriptor is closed.
 *
 * Errors are negative errno values; nothing here prints or exits.
 */
#ifndef ST_POLLER_H
#define ST_POLLER_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef struct st_poller st_poller;
typedef struct st_stream st_stream;     /* a connected stream socket, pipe end or tty */
typedef struct st_listener st_listener; /* a listening socket */
typedef struct st_watch st_watch;       /* level-triggered readiness of any pollable descriptor */

enum {
    ST_READABLE = 1,
    ST_WRITABLE = 2,
    /* With the two above: each of them is reported at most once, then nothing until watch_set names it again. The
     * owner asks only after the operation itself said EAGAIN or moved less than it could. So one epoll registration
     * (edge-triggered) serves the whole life of a descriptor; on io_uring it is a one-shot poll that is not re-armed. */
    ST_ONCE = 4,
};

/* How the bytes of a stream reach its owner. */
enum {
    ST_READ_COPY = 0, /* into the poller's memory: `stream_data` gets a pointer that holds during the call */
    ST_READ_INTO = 1, /* into memory the owner names: `stream_buffer` right before the bytes are put
                         there, `stream_data` right after; the memory is not kept in between turns */
};

enum { ST_SOCKET = 0, ST_PIPE = 1 }; /* recv/sendmsg with MSG_NOSIGNAL, or read/writev */

/* What the loop is told. Called from st_poller_turn() only, never nested, with the lock held. A callback
 * may call anything below but st_poller_turn() and st_poller_free(), also for its own object. */
typedef struct st_sink {
    void *context;
    /* Around a system call that may block: release and take again the interpreter's lock. */
    void (*block_begin)(void *context);
    void (*block_end)(void *context);
    /* Once a turn, after the wait and before anything of what it found is told: the place of what was due before that. May
     * be NULL. What happens from here on to what was found (it is closed, or reading is stopped) is respected. */
    void (*waited)(void *context);
    /* Where the next bytes go: at most *len bytes at *at. 0, or nonzero to stop reading (as read_stop). */
    int (*stream_buffer)(void *owner, char **at, size_t *len);
    /* n > 0: bytes at `data`. 0: end of file, once. < 0: -errno, once. After 0 or an error reading has stopped. */
    void (*stream_data)(void *owner, char *data, ssize_t n);
    /* n more bytes of the send in flight have left; `rest` are still to go (0: the send is over and its
     * memory may be freed). n < 0: -errno, the send is over, its rest is lost. */
    void (*stream_sent)(void *owner, ssize_t n, size_t rest);
    /* fd >= 0: a connection, nonblocking and close-on-exec. < 0: -errno; EMFILE and its like stop
     * accepting until st_listener_start() is called again. */
    void (*accepted)(void *owner, int fd);
    /* The descriptor is ready for some of the `events` asked for (errors and hang-ups make it ready for all). */
    void (*ready)(void *owner, unsigned events);
    /* A file operation is over: bytes, or -errno. */
    void (*file_done)(void *owner, int64_t result);
    /* The last call for this owner. */
    void (*closed)(void *owner);
} st_sink;

/* Counted since the poller was made. */
typedef struct st_poller_statistics {
    uint64_t turns;        /* st_poller_turn() calls */
    uint64_t waits;        /* epoll_wait or io_uring_enter calls */
    uint64_t system_calls; /* all system calls the poller made, waits included */
    uint64_t events;       /* readiness events or completions */
    uint64_t accepts, receives, sends;
    uint64_t rearms;       /* multishot operations that ended and were started again */
    uint64_t starved;      /* receives that found the buffer ring empty */
    uint64_t overflows;    /* completions that had to be flushed from the overflow list */
    uint64_t in_flight;    /* operations the kernel holds now */
} st_poller_statistics;

typedef struct st_poller_ops {
    const char *name; /* "epoll", "io_uring" */
    void (*free)(st_poller *);
    /* Submit what is queued, wait at most timeout_ns (0: do not block, < 0: no limit) and report what
     * happened. At least min_events are waited for up to min_wait_ns where the poller can (batching; 1, 0: off).
     * Returns the number of callbacks made, or -EINTR when a signal arrived first, or another -errno; -EOVERFLOW: what
     * happened to some operation was lost, and nothing can be relied on any more. */
    int (*turn)(st_poller *, int64_t timeout_ns, unsigned min_events, int64_t min_wait_ns);
    int (*wake)(st_poller *); /* any thread, any signal handler: the current or the next turn returns at once */
    void (*after_fork)(st_poller *); /* in the child: close, without touching what the parent shares; nothing is sent */

    /* The poller takes over `fd` and closes it. NULL with *error = -errno. Reading begins with read_start. */
    st_stream *(*stream_open)(st_poller *, int fd, int kind, void *owner, int *error);
    int (*stream_read_start)(st_stream *, int mode); /* also changes the mode; no-op after EOF */
    void (*stream_read_stop)(st_stream *);           /* once it returns, no stream_data until read_start */
    /* Send `count` parts, in order. > 0: that many bytes, all of them, have left and the memory is free.
     * 0: taken; stream_sent follows, and the parts' memory (not the iovec array) must stay until it says
     * rest == 0 or `closed` comes. One send may be in flight: -EBUSY otherwise. < 0: -errno, nothing was taken.
     * See sent_awaited for when stream_sent comes. */
    ssize_t (*stream_send)(st_stream *, const struct iovec *parts, int count);
    /* Adds to the send in flight. 0: taken, as by stream_send. -EBUSY: it has begun to leave, or would be too large; this
     * one has to wait for stream_sent. NULL where what is in flight always has begun. */
    int (*stream_send_more)(st_stream *, const void *bytes, size_t n);
    int (*stream_shutdown)(st_stream *); /* SHUT_WR, once what is in flight has left */
    /* cancel, final completions, close(2), `closed`. A send that only waits for the end of the turn leaves first, as far as
     * there is room: with fewer events in that turn it would have left long ago. Else what is in flight is dropped. No
     * shutdown(2): it would reach the copies that other processes hold, and turn an abort by SO_LINGER into an ordinary end.
     * With keep_fd the descriptor is not closed: it goes on elsewhere. */
    void (*stream_close)(st_stream *, int keep_fd);

    st_listener *(*listener_open)(st_poller *, int fd, void *owner, int *error); /* fd stays the caller's */
    int (*listener_start)(st_listener *, unsigned backlog); /* at most backlog accepts a turn */
    void (*listener_stop)(st_listener *);
    /* Before listener_close, and instead of another start: a connection that was accepted and not told, or -1 when there is
     * none; what is not taken is closed. NULL where nothing is accepted before it can be told. */
    int (*listener_take)(st_listener *);
    void (*listener_close)(st_listener *); /* once it returns nothing is accepted; the caller may close fd */

    /* -EPERM, from either of the two: not pollable, as epoll_ctl(2). Several watches and a stream may be open on one
     * descriptor. The descriptor may be closed and its number used anew before watch_close. */
    st_watch *(*watch_open)(st_poller *, int fd, void *owner, int *error);
    int (*watch_set)(st_watch *, unsigned events); /* replaces what was asked for; 0: none; level-triggered */
    void (*watch_close)(st_watch *);

    /* Without a thread pool, where the poller can; NULL when it can not. flags: 0, or ST_FILE_*.
     * `file_done` reports; it is acknowledged only when the write was whole and the sync returned 0
     * (a short write is -EIO after the rest was tried). A read is short at the end of the file only. The parts' memory
     * must stay until then. -ESPIPE: reads and writes of what has no offsets. */
    int (*file_read)(st_poller *, int fd, const struct iovec *parts, int count, int64_t offset, void *owner);
    int (*file_write)(st_poller *, int fd, const struct iovec *parts, int count, int64_t offset, int flags, void *owner);
    int (*file_sync)(st_poller *, int fd, int data_only, void *owner);

    void (*statistics)(st_poller *, st_poller_statistics *);
    /* The loop begins to run, in this thread, and no other uses the poller until settle(). NULL where it makes no difference. */
    void (*begin)(st_poller *);
    /* The loop stops running, maybe for long: what waits for the next turn (sends, cancellations) leaves now. No callbacks.
     * NULL where nothing ever waits. */
    void (*settle)(st_poller *);
} st_poller_ops;

enum { ST_FILE_SYNC = 1 }; /* fdatasync after the write, in the same submission */

struct st_poller {
    const st_poller_ops *ops;
    st_sink sink;
    int64_t spin_ns; /* a turn that would sleep looks for events this long first, the lock released; 0: it does not */
    /* How long the last turn waited, looking and asleep, without the callbacks and without waiting for the lock; 0 where
     * it did not wait. Kept only while times_waits is set: it is two looks at the clock. */
    int64_t waited_ns;
    uint8_t times_waits;
};
struct st_stream {
    st_poller *poller;
    void *owner;
    /* The owner's: something waits for the send in flight to be over. While it is 0 a turn does not return only because a
     * small send has left: stream_sent comes in the turn it left in, but that may sleep until something else happens. */
    uint8_t sent_awaited;
};
struct st_listener {
    st_poller *poller;
    void *owner;
};
struct st_watch {
    st_poller *poller;
    void *owner;
};

st_poller *st_epoll_new(const st_sink *, int *error);
/* entries: submission queue size, buffers: provided buffers of buffer_bytes each (powers of two); 0: default. */
st_poller *st_uring_new(const st_sink *, unsigned entries, unsigned buffers, unsigned buffer_bytes, int *error);

#endif
