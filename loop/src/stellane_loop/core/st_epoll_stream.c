/* Streams on epoll: registered once, edge-triggered. What the edges said is kept in `readable`, so
 * a receive that moved less than it could saves the second one that would say EAGAIN. */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "st_epoll.h"
#include "st_parts.h"

enum { PARTS_INLINE = 4, PARTS_MAX = 1024 /* IOV_MAX, as the kernel's UIO_MAXIOV */ };

typedef struct epoll_stream {
    st_entry entry; /* first: events and ends go by it */
    st_stream base;
    uint8_t kind, mode;
    uint8_t reading;
    uint8_t readable; /* an edge came and nothing has said since that all is read */
    uint8_t hung_up;  /* the other side will send no more, so the end of file is to be fetched */
    uint8_t ended;    /* end of file or an error was reported */
    uint8_t short_is_drained;
    uint8_t sending, shutdown;
    int part_first, part_count;
    size_t sent_unreported, rest;
    struct iovec *parts; /* of the send in flight: inline_parts or malloc'd */
    struct iovec inline_parts[PARTS_INLINE];
} epoll_stream;

static epoll_stream *of(st_stream *base) { return (epoll_stream *)((char *)base - offsetof(epoll_stream, base)); }
static const st_sink *sink_of(epoll_stream *stream) { return &stream->entry.poller->base.sink; }

static void tell_data(epoll_stream *stream, char *data, ssize_t n) {
    if (n <= 0) {
        stream->reading = stream->readable = 0;
        stream->ended = 1;
    }
    stream->entry.poller->callbacks++;
    sink_of(stream)->stream_data(stream->base.owner, data, n);
}

static ssize_t receive(epoll_stream *stream, char *at, size_t len) {
    ssize_t n;
    do {
        stream->entry.poller->counted.system_calls++;
        n = stream->kind == ST_SOCKET ? recv(stream->entry.fd, at, len, 0) : read(stream->entry.fd, at, len);
    } while (n < 0 && errno == EINTR);
    stream->entry.poller->counted.receives++;
    return n < 0 ? -errno : n;
}

static void read_while_readable(epoll_stream *stream) {
    st_epoll *poller = stream->entry.poller;
    for (int i = 0; i < ST_EPOLL_RECEIVES_PER_TURN_MAX; i++) {
        char *at = poller->receive_buffer;
        size_t len = ST_EPOLL_RECEIVE_BYTES;
        if (stream->mode == ST_READ_INTO) {
            poller->callbacks++;
            int stop = sink_of(stream)->stream_buffer(stream->base.owner, &at, &len);
            if (stop) stream->reading = 0;
            if (stream->entry.closed || !stream->reading || poller->forked) return;
        }
        ssize_t n = receive(stream, at, len);
        if (n == -EAGAIN) {
            stream->readable = 0;
            return;
        }
        if (n > 0 && (size_t)n < len && stream->short_is_drained && !stream->hung_up) stream->readable = 0;
        tell_data(stream, at, n);
        if (stream->entry.closed || !stream->reading || !stream->readable || poller->forked) return;
        /* A fast sender waits for its next turn, so that others get theirs; and an end of file is told a turn
         * after the last bytes, so that their owner has been able to act on them. */
        if ((size_t)n == len || stream->hung_up) break;
    }
    st_entry_again(&stream->entry);
}

static ssize_t send_parts(epoll_stream *stream, const struct iovec *parts, int count) {
    ssize_t n;
    if (count > PARTS_MAX) count = PARTS_MAX;
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

static void send_over(epoll_stream *stream) {
    if (stream->parts != stream->inline_parts) free(stream->parts);
    stream->parts = NULL;
    stream->sending = 0;
    stream->rest = 0;
}

/* Takes n bytes off the send in flight. */
static void advance(epoll_stream *stream, size_t n) {
    stream->rest -= n;
    stream->sent_unreported += n;
    stream->part_first = st_parts_advance(stream->parts, stream->part_first, stream->part_count, n);
}

static void send_on(epoll_stream *stream) {
    ssize_t n;
    do {
        n = send_parts(stream, stream->parts + stream->part_first, stream->part_count - stream->part_first);
        if (n > 0) advance(stream, (size_t)n);
    } while (n > 0 && stream->rest);
    if (n >= 0 && !stream->sent_unreported) return;
    size_t rest = stream->rest;
    if (n >= 0) n = (ssize_t)stream->sent_unreported;
    stream->sent_unreported = 0;
    if (n < 0 || !rest) send_over(stream);
    stream->entry.poller->callbacks++;
    sink_of(stream)->stream_sent(stream->base.owner, n, n < 0 ? 0 : rest);
    /* In a forked child this would end the parent's connection. */
    if (stream->shutdown && !stream->sending && !stream->entry.closed && !stream->entry.poller->forked)
        shutdown(stream->entry.fd, SHUT_WR);
}

static void again(st_entry *entry) {
    epoll_stream *stream = (epoll_stream *)entry;
    if (stream->sending) send_on(stream);
    if (!entry->closed && stream->reading && stream->readable && !entry->poller->forked) read_while_readable(stream);
}

static void event(st_entry *entry, unsigned events) {
    epoll_stream *stream = (epoll_stream *)entry;
    if (stream->sending && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) send_on(stream);
    if (entry->closed || entry->poller->forked || !(events & ~(unsigned)EPOLLOUT)) return;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) stream->hung_up = 1;
    /* A receive ends at TCP's urgent mark, whatever there is behind it. */
    if (events & EPOLLPRI) stream->short_is_drained = 0;
    if (stream->ended) return;
    stream->readable = 1;
    if (stream->reading) read_while_readable(stream);
}

/* A short receive from TCP or a pipe took all there was (epoll(7)). Not so from a terminal, nor from a
 * Unix socket, where a message with descriptors attached ends a receive before the next one. */
static int short_receive_drains(int fd, int kind) {
    int domain = 0;
    socklen_t len = sizeof domain;
    if (kind != ST_SOCKET || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len)) return 0;
    return domain == AF_INET || domain == AF_INET6;
}

st_stream *st_epoll_stream_open(st_poller *poller, int fd, int kind, void *owner, int *error) {
    epoll_stream *stream = calloc(1, sizeof *stream);
    *error = stream ? st_entry_open((st_epoll *)poller, &stream->entry, fd, owner) : -ENOMEM;
    if (*error) {
        free(stream);
        return NULL;
    }
    stream->entry.event = event;
    stream->entry.again = again;
    stream->base = (st_stream){.poller = poller, .owner = owner};
    stream->kind = (uint8_t)kind;
    stream->short_is_drained = (uint8_t)short_receive_drains(fd, kind);
    *error = st_entry_register(&stream->entry, EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    if (*error) {
        st_entry_forget(&stream->entry);
        return NULL;
    }
    return &stream->base;
}

int st_epoll_stream_read_start(st_stream *base, int mode) {
    epoll_stream *stream = of(base);
    stream->mode = (uint8_t)mode;
    if (stream->ended || stream->reading || stream->entry.closed) return 0;
    stream->reading = 1;
    if (stream->readable) st_entry_again(&stream->entry);
    return 0;
}

void st_epoll_stream_read_stop(st_stream *base) { of(base)->reading = 0; }

ssize_t st_epoll_stream_send(st_stream *base, const struct iovec *parts, int count) {
    epoll_stream *stream = of(base);
    if (stream->entry.poller->forked) return -EBADF;
    if (stream->sending) return -EBUSY;
    if (stream->shutdown) return -EPIPE;
    ssize_t n = send_parts(stream, parts, count);
    if (n < 0) return n;
    size_t total = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    if ((size_t)n == total) return n;
    stream->parts = stream->inline_parts;
    if (count > PARTS_INLINE) stream->parts = malloc((size_t)count * sizeof *parts);
    if (!stream->parts) return -ENOMEM;
    memcpy(stream->parts, parts, (size_t)count * sizeof *parts);
    stream->part_first = 0;
    stream->part_count = count;
    stream->rest = total;
    stream->sending = 1;
    advance(stream, (size_t)n);
    /* More than the kernel takes in one call leaves room without an edge to come. */
    if (count > PARTS_MAX) st_entry_again(&stream->entry);
    return 0;
}

int st_epoll_stream_shutdown(st_stream *base) {
    epoll_stream *stream = of(base);
    if (stream->entry.poller->forked) return -EBADF;
    if (stream->shutdown) return 0;
    stream->shutdown = 1;
    if (stream->sending || stream->kind != ST_SOCKET) return 0;
    stream->entry.poller->counted.system_calls++;
    return shutdown(stream->entry.fd, SHUT_WR) ? -errno : 0;
}

void st_epoll_stream_close(st_stream *base, int keep_fd) {
    epoll_stream *stream = of(base);
    stream->reading = 0;
    if (stream->sending) send_over(stream);
    st_entry_close(&stream->entry, keep_fd);
}
