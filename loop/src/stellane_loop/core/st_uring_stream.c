/* Streams on io_uring: opening, receiving, closing. Sending is in st_uring_send.c.
 *
 * TCP receives by one multishot request into provided buffers; Unix sockets by single ones, because kernels
 * lost the end of file of multishot receives there; pipes and ttys by poll and read(2), because on a
 * nonblocking descriptor of a kind the kernel can not retry, READ only says EAGAIN. So do sockets that fill
 * their buffers: read(2) puts 100 KiB where they are wanted, in one piece and without a copy in between.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "st_uring.h"

enum {
    NOTHING = 1, /* of end_result: 0 and negative values are what stream_data takes */
    BULK_AFTER_FULL = 2,    /* provided buffers filled in a row, then the stream is read by poll and read(2) */
    SMALL_AFTER_SMALL = 16, /* receives in a row that a provided buffer would have held, and back */
    HELD_BYTES_FIRST = 4096,
};

static st_uring *poller_of(st_uring_stream *stream) { return (st_uring *)stream->base.poller; }

static int find_kind(st_uring_stream *stream, int kind) {
    struct stat status;
    int domain = 0;
    socklen_t bytes = sizeof domain;
    poller_of(stream)->counted.system_calls++;
    if (kind == ST_SOCKET) {
        if (getsockopt(stream->fd, SOL_SOCKET, SO_DOMAIN, &domain, &bytes) != 0)
            return -errno;
        stream->socket = true;
        stream->multishot = domain == AF_INET || domain == AF_INET6;
        return 0;
    }
    if (fstat(stream->fd, &status) != 0)
        return -errno;
    return S_ISREG(status.st_mode) || S_ISDIR(status.st_mode) ? -EPERM : 0;
}

st_stream *st_uring_stream_open(st_poller *base, int fd, int kind, void *owner, int *error) {
    st_uring *poller = (st_uring *)base;
    *error = -ENOMEM;
    st_uring_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL)
        return NULL;
    stream->base = (st_stream){.poller = base, .owner = owner};
    stream->fd = fd;
    stream->end_result = NOTHING;
    *error = poller->forked ? -EBADF : find_kind(stream, kind);
    if (*error != 0) {
        free(stream);
        return NULL;
    }
    st_unit_open(poller, &stream->unit, ST_UNIT_STREAM);
    return &stream->base;
}

static bool has_held(const st_uring_stream *stream) { return stream->held_end > stream->held_start; }

int st_uring_stream_read_start(st_stream *base, int mode) {
    st_uring_stream *stream = (st_uring_stream *)base;
    if (stream->unit.closing)
        return -EBADF;
    stream->into = mode == ST_READ_INTO;
    stream->reading = true;
    if (has_held(stream) || stream->end_result != NOTHING)
        st_unit_due(poller_of(stream), &stream->unit);
    if (!stream->ended)
        st_unit_dirty(poller_of(stream), &stream->unit);
    return 0;
}

void st_uring_stream_read_stop(st_stream *base) {
    st_uring_stream *stream = (st_uring_stream *)base;
    stream->reading = false;
    if (stream->receive != ST_OP_NONE)
        st_unit_dirty(poller_of(stream), &stream->unit);
}

static void end(st_uring_stream *stream, int result) {
    stream->ended = true;
    stream->end_result = result;
}

/* Keeps what came while nobody reads, so that the buffer goes back at once: who reads slowly must not take
 * the buffers of the others. */
static void hold(st_uring_stream *stream, const char *data, size_t n) {
    if (stream->held_start == stream->held_end)
        stream->held_start = stream->held_end = 0;
    if (stream->held_end + n > stream->held_capacity) {
        size_t capacity = stream->held_capacity ? stream->held_capacity * 2 : HELD_BYTES_FIRST;
        while (capacity < stream->held_end + n)
            capacity *= 2;
        char *held = realloc(stream->held, capacity);
        if (held == NULL) {
            /* A stream with a hole is worse than a broken one. */
            end(stream, -ENOMEM);
            return;
        }
        stream->held = held;
        stream->held_capacity = capacity;
    }
    memcpy(stream->held + stream->held_end, data, n);
    stream->held_end += n;
}

static void tell(st_uring_stream *stream, char *data, ssize_t n) {
    st_uring *poller = poller_of(stream);
    poller->callbacks++;
    poller->base.sink.stream_data(stream->base.owner, data, n);
}

/* Where the owner wants its bytes. False: nowhere, reading has stopped. */
static bool ask(st_uring_stream *stream, char **at, size_t *length) {
    st_uring *poller = poller_of(stream);
    poller->callbacks++;
    /* Room for nothing is taken for a refusal: 0 bytes would look like the end of the file. */
    if (poller->base.sink.stream_buffer(stream->base.owner, at, length) != 0 || *length == 0)
        st_uring_stream_read_stop(&stream->base);
    /* It may also have stopped or closed by itself, or returned in a forked child, which leaves bytes to its parent. */
    return stream->reading && !stream->unit.closing && !poller->forked;
}

/* Gives bytes to the owner in the way it reads now. Returns how many it took: fewer when it stopped. */
static size_t give(st_uring_stream *stream, char *data, size_t n) {
    size_t given = 0;
    while (given < n && stream->reading && !stream->unit.closing && !poller_of(stream)->forked) {
        if (!stream->into) {
            tell(stream, data + given, (ssize_t)(n - given));
            return n;
        }
        char *at = NULL;
        size_t length = 0;
        if (!ask(stream, &at, &length))
            break;
        if (length > n - given)
            length = n - given;
        memcpy(at, data + given, length);
        given += length;
        tell(stream, at, (ssize_t)length);
    }
    return given;
}

static void tell_end(st_uring_stream *stream) {
    int result = stream->end_result;
    stream->end_result = NOTHING;
    stream->reading = false;
    tell(stream, NULL, result);
}

/* Bytes that were just received: to the owner, or behind those that already wait. */
static void arrived(st_uring_stream *stream, char *data, size_t n) {
    poller_of(stream)->counted.receives++;
    if (stream->unit.closing || stream->ended) /* ended: for want of memory, and what follows would hide the hole */
        return;
    size_t given = stream->reading && !has_held(stream) ? give(stream, data, n) : 0;
    if (given < n && !stream->unit.closing && !poller_of(stream)->forked)
        hold(stream, data + given, n - given);
}

static void arrived_end(st_uring_stream *stream, int result) {
    end(stream, result);
    if (stream->reading && !has_held(stream) && !stream->unit.closing)
        tell_end(stream);
}

/* What was held, at the start of a turn in which the owner reads again. */
void st_uring_stream_due(st_uring_stream *stream) {
    size_t n = stream->held_end - stream->held_start;
    if (n > 0 && stream->reading) {
        /* Taken off first: the owner may stop and start again while it is called. */
        char *held = stream->held;
        size_t start = stream->held_start, capacity = stream->held_capacity;
        stream->held = NULL;
        stream->held_start = stream->held_end = stream->held_capacity = 0;
        size_t given = give(stream, held + start, n);
        if (given < n && !stream->unit.closing) {
            stream->held = held;
            stream->held_start = start + given;
            stream->held_end = start + n;
            stream->held_capacity = capacity;
        } else {
            free(held);
        }
    }
    if (stream->unit.closing || !stream->reading || has_held(stream) || poller_of(stream)->forked)
        return;
    if (stream->end_result != NOTHING)
        tell_end(stream);
    else if (!stream->ended)
        st_unit_dirty(poller_of(stream), &stream->unit);
}

static void starve(st_uring_stream *stream) {
    st_uring_group *group = &poller_of(stream)->small;
    poller_of(stream)->counted.starved++;
    /* More buffers into circulation, if there are any; else whoever waits longest gets the next ones. */
    st_buffer_ring_grow(&group->buffers);
    stream->starved = true;
    stream->starved_next = NULL;
    if (group->starved_last != NULL)
        group->starved_last->starved_next = stream;
    else
        group->starved_first = stream;
    group->starved_last = stream;
}

void st_uring_feed_starved(st_uring *poller) {
    st_uring_group *group = &poller->small;
    unsigned credit = group->buffers.available;
    while (credit-- > 0 && group->starved_first != NULL) {
        st_uring_stream *stream = group->starved_first;
        group->starved_first = stream->starved_next;
        if (group->starved_first == NULL)
            group->starved_last = NULL;
        stream->starved = false;
        st_unit_dirty(poller, &stream->unit);
    }
}

static void leave_starved(st_uring_stream *stream) {
    st_uring_group *group = &poller_of(stream)->small;
    st_uring_stream **link = &group->starved_first, *previous = NULL;
    while (*link != stream) {
        previous = *link;
        link = &(*link)->starved_next;
    }
    *link = stream->starved_next;
    if (group->starved_last == stream)
        group->starved_last = previous;
    stream->starved = false;
}

/* Provided buffers for requests, poll and read(2) for streams that fill these. */
static void choose_size(st_uring_stream *stream, size_t n) {
    size_t small = poller_of(stream)->small.buffers.bytes;
    if (n >= small) {
        stream->small_receives = 0;
        if (!stream->bulk && ++stream->full_receives >= BULK_AFTER_FULL)
            stream->bulk = true;
    } else {
        stream->full_receives = 0;
        if (stream->bulk && ++stream->small_receives >= SMALL_AFTER_SMALL)
            stream->bulk = false;
    }
    if (stream->receive != ST_OP_NONE && stream->bulk && !stream->armed_bulk)
        st_unit_dirty(poller_of(stream), &stream->unit);
}

void st_uring_received(st_uring_stream *stream, int32_t result, uint32_t flags) {
    st_uring *poller = poller_of(stream);
    st_uring_group *group = &poller->small;
    if (!(flags & ST_CQE_MORE)) {
        if (stream->multishot && !stream->receive_cancelled)
            poller->counted.rearms++;
        stream->receive_cancelled = false;
        st_unit_operation_over(poller, &stream->unit, &stream->receive);
    }
    unsigned buffer = flags >> ST_CQE_BUFFER_SHIFT;
    if (flags & ST_CQE_BUFFER)
        group->buffers.available--;
    if (result > 0) {
        stream->poll_first = !(flags & ST_CQE_SOCK_NONEMPTY);
        choose_size(stream, (size_t)result);
        arrived(stream, st_buffer_ring_at(&group->buffers, buffer), (size_t)result);
    }
    if (poller->forked)
        return; /* the buffers are not mapped in a child */
    if (flags & ST_CQE_BUFFER)
        st_buffer_ring_return(&group->buffers, buffer);
    if (result > 0 || stream->unit.closing)
        return;
    if (result == -ENOBUFS)
        starve(stream);
    else if (result != -ECANCELED && result != -EINTR && result != -EAGAIN)
        arrived_end(stream, result);
}

/* poll says there is something: read it. */
void st_uring_readable(st_uring_stream *stream, int32_t result) {
    st_uring *poller = poller_of(stream);
    stream->receive_cancelled = false;
    st_unit_operation_over(poller, &stream->unit, &stream->receive);
    if (stream->unit.closing || !stream->reading || stream->ended || result == -ECANCELED)
        return;
    if (result < 0) {
        arrived_end(stream, result);
        return;
    }
    char *at = poller->scratch;
    size_t length = ST_SCRATCH_BYTES;
    if (stream->into) {
        if (!ask(stream, &at, &length))
            return;
    }
    poller->counted.system_calls++;
    ssize_t n = read(stream->fd, at, length);
    if (n > 0) {
        poller->counted.receives++;
        if (stream->socket)
            choose_size(stream, (size_t)n);
        tell(stream, at, n);
    } else if (n == 0) {
        arrived_end(stream, 0);
    } else if (errno != EAGAIN && errno != EINTR) {
        arrived_end(stream, -errno);
    }
}

static bool arm_receive(st_uring_stream *stream) {
    st_uring *poller = poller_of(stream);
    stream->armed_bulk = stream->bulk;
    if (!stream->socket || stream->bulk)
        return st_uring_poll(poller, &stream->unit, ST_KIND_READ_POLL, stream, &stream->receive, stream->fd,
                             stream->socket ? POLLIN : POLLIN | POLLPRI);
    st_uring_sqe *sqe = st_uring_prepare(poller, &stream->unit, ST_KIND_RECEIVE, stream, &stream->receive);
    if (sqe == NULL)
        return false;
    sqe->opcode = ST_OP_RECV;
    sqe->flags = ST_SQE_BUFFER_SELECT;
    sqe->fd = stream->fd;
    sqe->buffer_group = (uint16_t)poller->small.buffers.group;
    if (stream->multishot) {
        sqe->ioprio = ST_RECV_MULTISHOT;
    } else {
        sqe->length = poller->small.buffers.bytes;
        sqe->ioprio = stream->poll_first ? ST_RECVSEND_POLL_FIRST : 0;
    }
    return true;
}

static bool receive_flush(st_uring_stream *stream) {
    bool wanted = stream->reading && !stream->ended && !stream->unit.closing;
    if (stream->receive != ST_OP_NONE) {
        bool keep = wanted && (!stream->bulk || stream->armed_bulk); /* a poll ends by itself */
        if (keep || stream->receive_cancelled)
            return true;
        stream->receive_cancelled = st_uring_cancel(poller_of(stream), stream->receive);
        return stream->receive_cancelled;
    }
    if (stream->starved && !wanted)
        leave_starved(stream);
    /* What is held goes first, and no more is fetched meanwhile. */
    if (!wanted || stream->starved || has_held(stream))
        return true;
    return arm_receive(stream);
}

bool st_uring_stream_flush(st_uring_stream *stream) {
    bool received = receive_flush(stream);
    return st_uring_send_flush(stream) && received;
}

static void close_fd(st_uring_stream *stream) {
    st_uring *poller = poller_of(stream);
    if (stream->fd < 0 || stream->keep_fd)
        return;
    /* A ring that was left behind in another thread may keep the socket open for some time yet. Else no shutdown(2): it
     * would reach copies in other processes, and turn an abort (SO_LINGER 0) into an orderly end. */
    if (stream->moved && stream->socket && !poller->forked)
        shutdown(stream->fd, SHUT_RDWR);
    poller->counted.system_calls++;
    close(stream->fd);
    stream->fd = -1;
}

void st_uring_stream_close(st_stream *base, int keep_fd) {
    st_uring_stream *stream = (st_uring_stream *)base;
    st_uring *poller = poller_of(stream);
    if (stream->unit.closing)
        return;
    stream->keep_fd = keep_fd != 0;
    stream->reading = false;
    st_uring_send_last(stream);
    if (stream->starved)
        leave_starved(stream);
    st_unit_close(poller, &stream->unit);
    if (stream->unit.operations > 0 && poller->ring_open && st_uring_stream_flush(stream))
        st_uring_cancel_now(poller);
    /* The peer is to see the end now, also when the loop does not turn again for long. Not while an entry that was not
     * submitted names the descriptor: its number may be another connection's by then. */
    if (stream->unit.operations == 0 || (poller->ring_open && st_ring_queued(&poller->ring) == 0))
        close_fd(stream);
}

void st_uring_stream_release(st_uring_stream *stream) {
    close_fd(stream);
    if (stream->starved)
        leave_starved(stream);
    st_parts_drop(&stream->parts);
    free(stream->held);
}
