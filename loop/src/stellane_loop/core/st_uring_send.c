/* Sending on io_uring: one SEND or SENDMSG at a time, nonblocking, so that it is over when the enter that submitted
 * it returns. What did not fit waits for poll. So the kernel never keeps a pointer into an owner's
 * memory from one turn to the next, and how much has left is exact whatever happens to ring or thread.
 * Large sends and what is not a socket leave by a system call of their own.
 *
 * No zero-copy sends: they need two completions and pinned pages, pay from about 32 KiB on real network cards, and
 * over loopback the kernel copies anyway.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "st_uring.h"

enum {
    PARTS_PER_CALL_MAX = 1024, /* the kernel's UIO_MAXIOV */
};

static st_uring *poller_of(st_uring_stream *stream) { return (st_uring *)stream->base.poller; }

/* At once: returns bytes, 0 when nothing fits now, or -errno. */
static ssize_t send_now(st_uring_stream *stream, const struct iovec *parts, int count) {
    struct msghdr message = {.msg_iov = (struct iovec *)parts};
    ssize_t n;
    if (count > PARTS_PER_CALL_MAX)
        count = PARTS_PER_CALL_MAX;
    message.msg_iovlen = (size_t)count;
    do {
        poller_of(stream)->counted.system_calls++;
        if (!stream->socket)
            n = writev(stream->fd, parts, count);
        else if (count == 1)
            n = send(stream->fd, parts->iov_base, parts->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT);
        else
            n = sendmsg(stream->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    if (n < 0)
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
    poller_of(stream)->counted.sends++;
    return n;
}

/* n bytes have left: the parts begin behind them. */
static void advance(st_uring_stream *stream, size_t n) {
    st_parts_done(&stream->parts, n);
    stream->send_unreported += n;
}

static void over(st_uring_stream *stream) {
    stream->sending = stream->blocked = false;
    stream->send_unreported = 0;
    st_parts_drop(&stream->parts);
}

static void shut(st_uring_stream *stream) {
    /* In a forked child this would end the parent's connection. */
    if (!stream->shutdown_wanted || stream->sending || stream->unit.closing || poller_of(stream)->forked)
        return;
    poller_of(stream)->counted.system_calls++;
    shutdown(stream->fd, SHUT_WR);
}

/* A send ended with n bytes, 0 when none fitted, or -errno: tells the owner, and goes on. */
static void progress(st_uring_stream *stream, ssize_t n) {
    st_uring *poller = poller_of(stream);
    if (stream->unit.closing || !stream->sending)
        return;
    if (n > 0)
        advance(stream, (size_t)n);
    size_t rest = n < 0 ? 0 : stream->parts.rest, left = stream->send_unreported;
    stream->send_unreported = 0;
    if (n < 0 || rest == 0)
        over(stream);
    else
        st_unit_dirty(poller, &stream->unit);
    if (n >= 0 && left == 0)
        return;
    poller->callbacks++;
    poller->base.sink.stream_sent(stream->base.owner, n < 0 ? n : (ssize_t)left, rest);
    shut(stream);
}

void st_uring_sent(st_uring_stream *stream, int32_t result) {
    st_unit_operation_over(poller_of(stream), &stream->unit, &stream->send);
    if (result > 0)
        poller_of(stream)->counted.sends++;
    if (result == -EINTR || result == -ECANCELED)
        result = 0;
    else if (result == -EAGAIN || (size_t)(result < 0 ? 0 : result) < stream->parts.rest)
        stream->blocked = true;
    progress(stream, result == -EAGAIN ? 0 : result);
}

void st_uring_writable(st_uring_stream *stream, int32_t result) {
    st_unit_operation_over(poller_of(stream), &stream->unit, &stream->write_poll);
    if (result == -ECANCELED || stream->unit.closing || !stream->sending)
        return;
    stream->blocked = false;
    if (result < 0) {
        progress(stream, result);
        return;
    }
    if (stream->socket && stream->parts.rest <= ST_BATCHED_BYTES_MAX)
        return; /* dirty by now: the next flush sends */
    ssize_t n = send_now(stream, stream->parts.at + stream->parts.first, stream->parts.count - stream->parts.first);
    stream->blocked = n >= 0 && (size_t)n < stream->parts.rest;
    progress(stream, n);
}

bool st_uring_send_flush(st_uring_stream *stream) {
    st_uring *poller = poller_of(stream);
    if (stream->unit.closing) {
        /* Its last completion frees the stream: a cancellation that is repeated does no harm. */
        return stream->write_poll == ST_OP_NONE || st_uring_cancel(poller, stream->write_poll);
    }
    if (!stream->sending || stream->send != ST_OP_NONE || stream->write_poll != ST_OP_NONE)
        return true;
    if (stream->blocked || !stream->socket)
        return st_uring_poll(poller, &stream->unit, ST_KIND_WRITE_POLL, stream, &stream->write_poll, stream->fd, POLLOUT);
    st_uring_sqe *sqe = st_uring_prepare(poller, &stream->unit, ST_KIND_SEND, stream, &stream->send);
    if (sqe == NULL)
        return false;
    struct iovec *parts = stream->parts.at + stream->parts.first;
    int count = stream->parts.count - stream->parts.first;
    sqe->fd = stream->fd;
    sqe->op_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    /* Silence stands for all of it, so all of it has to be in this one request. */
    if (poller->quiet_sends && !stream->base.sent_awaited && !stream->shutdown_wanted && count <= PARTS_PER_CALL_MAX &&
        stream->parts.rest <= ST_BATCHED_BYTES_MAX && st_uring_quiet_add(poller, stream->send)) {
        sqe->flags = ST_SQE_SKIP_SUCCESS;
        sqe->op_flags |= MSG_WAITALL; /* makes a short send a failure, which is reported */
    }
    if (count == 1) {
        sqe->opcode = ST_OP_SEND;
        sqe->address = (uint64_t)(uintptr_t)parts->iov_base;
        sqe->length = parts->iov_len > INT32_MAX ? INT32_MAX : (uint32_t)parts->iov_len;
    } else {
        memset(&stream->message, 0, sizeof stream->message);
        stream->message.msg_iov = parts;
        stream->message.msg_iovlen = (size_t)(count > PARTS_PER_CALL_MAX ? PARTS_PER_CALL_MAX : count);
        sqe->opcode = ST_OP_SENDMSG;
        sqe->address = (uint64_t)(uintptr_t)&stream->message;
        sqe->length = 1;
    }
    return true;
}

ssize_t st_uring_stream_send(st_stream *base, const struct iovec *parts, int count) {
    st_uring_stream *stream = (st_uring_stream *)base;
    st_uring *poller = poller_of(stream);
    if (stream->unit.closing || poller->forked)
        return -EBADF;
    if (stream->sending)
        return -EBUSY;
    if (stream->shutdown_wanted)
        return -EPIPE;
    size_t total = st_parts_bytes(parts, count);
    if (total == 0)
        return -EINVAL;
    /* Before anything leaves: after that there is no refusing. */
    if (st_parts_keep(&stream->parts, parts, count) < 0)
        return -ENOMEM;
    ssize_t n = 0;
    bool now = !stream->socket || total > ST_BATCHED_BYTES_MAX ||
               (!poller->quiet_sends && poller->turn_events <= ST_INLINE_EVENTS_MAX);
    if (now) {
        n = send_now(stream, parts, count);
        if (n < 0 || (size_t)n == total) {
            st_parts_drop(&stream->parts);
            return n;
        }
    }
    stream->send_unreported = 0;
    stream->sending = true;
    stream->blocked = now;
    advance(stream, (size_t)n);
    st_unit_dirty(poller, &stream->unit);
    return 0;
}

/* Whether the kernel was told of what is in flight. */
static bool has_begun(const st_uring_stream *stream) {
    return stream->send != ST_OP_NONE || stream->blocked || stream->write_poll != ST_OP_NONE;
}

void st_uring_send_last(st_uring_stream *stream) {
    if (stream->sending && !has_begun(stream) && !poller_of(stream)->forked)
        send_now(stream, stream->parts.at + stream->parts.first, stream->parts.count - stream->parts.first);
    stream->sending = false;
}

int st_uring_stream_send_more(st_stream *base, const void *bytes, size_t n) {
    st_uring_stream *stream = (st_uring_stream *)base;
    if (!stream->sending || has_begun(stream) || stream->shutdown_wanted || n == 0 ||
        stream->parts.rest + n > ST_BATCHED_BYTES_MAX)
        return -EBUSY;
    return st_parts_add(&stream->parts, bytes, n);
}

int st_uring_stream_shutdown(st_stream *base) {
    st_uring_stream *stream = (st_uring_stream *)base;
    if (stream->unit.closing || poller_of(stream)->forked)
        return -EBADF;
    if (stream->shutdown_wanted || !stream->socket)
        return 0;
    stream->shutdown_wanted = true;
    if (stream->sending)
        return 0;
    poller_of(stream)->counted.system_calls++;
    return shutdown(stream->fd, SHUT_WR) == 0 ? 0 : -errno;
}
