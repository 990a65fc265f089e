/* Sending on epoll: at once, or, where a turn serves several clients, all answers together before the next wait. A
 * client that is woken by the first of them finds the others without sleeping between them, so one wake-up serves many,
 * and what is written piece by piece leaves in one call. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>

#include "st_epoll.h"

enum {
    PARTS_PER_CALL_MAX = 1024, /* the kernel's UIO_MAXIOV */
    /* Larger sends leave at once, while what they send is still in the cache. */
    HELD_BYTES_MAX = 16384,
    /* A turn with fewer events serves so few clients that nothing is gained by letting them wait. */
    HOLDING_EVENTS_MIN = 3,
};

static ssize_t send_parts(st_epoll_stream *stream, const struct iovec *parts, int count) {
    ssize_t n;
    if (count > PARTS_PER_CALL_MAX) count = PARTS_PER_CALL_MAX;
    do {
        stream->entry.poller->counted.system_calls++;
        if (stream->kind != ST_SOCKET) {
            n = writev(stream->entry.fd, parts, count);
        } else if (count == 1) {
            n = send(stream->entry.fd, parts->iov_base, parts->iov_len, MSG_NOSIGNAL);
        } else {
            struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
            n = sendmsg(stream->entry.fd, &message, MSG_NOSIGNAL);
        }
    } while (n < 0 && errno == EINTR);
    stream->entry.poller->counted.sends++;
    if (n < 0) return errno == EAGAIN ? 0 : -errno;
    return n;
}

static void send_over(st_epoll_stream *stream) {
    st_parts_drop(&stream->parts);
    stream->sending = 0;
    stream->sent_unreported = 0;
    stream->send_error = 0;
}

static void send_rest(st_epoll_stream *stream) {
    st_parts *parts = &stream->parts;
    while (parts->rest) {
        ssize_t n = send_parts(stream, parts->at + parts->first, parts->count - parts->first);
        if (n < 0) stream->send_error = (int)n;
        if (n <= 0) return;
        st_parts_done(parts, (size_t)n);
        stream->sent_unreported += (size_t)n;
    }
}

static void tell_sent(st_epoll_stream *stream) {
    size_t rest = stream->parts.rest;
    ssize_t n = stream->send_error ? stream->send_error : (ssize_t)stream->sent_unreported;
    if (!n) return;
    stream->sent_unreported = 0;
    if (n < 0 || !rest) send_over(stream);
    stream->entry.poller->callbacks++;
    stream->entry.poller->base.sink.stream_sent(stream->base.owner, n, n < 0 ? 0 : rest);
    /* In a forked child this would end the parent's connection. */
    if (stream->shutdown && !stream->sending && !stream->entry.closed && !stream->entry.poller->forked)
        shutdown(stream->entry.fd, SHUT_WR);
}

void st_epoll_send_on(st_epoll_stream *stream) {
    send_rest(stream);
    tell_sent(stream);
}

static int is_held(const st_epoll_stream *stream, size_t bytes) {
    const st_epoll *poller = stream->entry.poller;
    return poller->holds_sends && poller->turn_events >= HOLDING_EVENTS_MIN && stream->kind == ST_SOCKET &&
           bytes <= HELD_BYTES_MAX;
}

/* Once, also where an event came first and what was held has left: a second place would outlive the stream. */
static int waits(st_epoll_stream *stream) {
    return stream->entry.held || !st_queue_push(&stream->entry.poller->held, stream);
}

ssize_t st_epoll_stream_send(st_stream *base, const struct iovec *parts, int count) {
    st_epoll_stream *stream = st_epoll_stream_of(base);
    st_epoll *poller = stream->entry.poller;
    if (poller->forked) return -EBADF;
    if (stream->sending) return -EBUSY;
    if (stream->shutdown) return -EPIPE;
    size_t total = st_parts_bytes(parts, count);
    if (!total) return -EINVAL;
    /* Before anything leaves: after that there is no refusing. */
    if (st_parts_keep(&stream->parts, parts, count)) return -ENOMEM;
    if (is_held(stream, total) && waits(stream)) {
        stream->entry.held = stream->sending = 1;
        return 0;
    }
    ssize_t n = send_parts(stream, parts, count);
    if (n < 0 || (size_t)n == total) {
        st_parts_drop(&stream->parts);
        return n;
    }
    st_parts_done(&stream->parts, (size_t)n);
    stream->sent_unreported = (size_t)n;
    stream->sending = 1;
    /* More than the kernel takes in one call leaves room without an edge to come. */
    if (count > PARTS_PER_CALL_MAX) st_entry_again(&stream->entry);
    return 0;
}

int st_epoll_stream_send_more(st_stream *base, const void *bytes, size_t n) {
    st_epoll_stream *stream = st_epoll_stream_of(base);
    if (!stream->entry.held || !stream->sending || stream->shutdown || stream->parts.rest + n > HELD_BYTES_MAX)
        return -EBUSY;
    return st_parts_add(&stream->parts, bytes, n);
}

int st_epoll_send_held(st_epoll *poller, int tell) {
    int told = 0;
    for (size_t count = poller->held.count; count && !poller->forked; count--) {
        st_epoll_stream *stream = st_queue_pop(&poller->held);
        stream->entry.held = 0;
        send_rest(stream);
        if (!tell) {
            st_entry_again(&stream->entry);
            continue;
        }
        told |= stream->base.sent_awaited || stream->send_error;
        tell_sent(stream);
    }
    return told || poller->held.count > 0; /* who was told may have sent more */
}

void st_epoll_send_last(st_epoll_stream *stream) {
    if (stream->entry.held && stream->sending && !stream->entry.poller->forked) send_rest(stream);
    send_over(stream);
}

int st_epoll_stream_shutdown(st_stream *base) {
    st_epoll_stream *stream = st_epoll_stream_of(base);
    if (stream->entry.poller->forked) return -EBADF;
    if (stream->shutdown) return 0;
    stream->shutdown = 1;
    if (stream->sending || stream->kind != ST_SOCKET) return 0;
    stream->entry.poller->counted.system_calls++;
    return shutdown(stream->entry.fd, SHUT_WR) ? -errno : 0;
}
