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

static const st_sink *sink_of(st_epoll_stream *stream) { return &stream->entry.poller->base.sink; }

static void tell_data(st_epoll_stream *stream, char *data, ssize_t n) {
    if (n <= 0) {
        stream->reading = stream->readable = 0;
        stream->ended = 1;
    }
    stream->entry.poller->callbacks++;
    sink_of(stream)->stream_data(stream->base.owner, data, n);
}

static ssize_t receive(st_epoll_stream *stream, char *at, size_t len) {
    ssize_t n;
    do {
        stream->entry.poller->counted.system_calls++;
        n = stream->kind == ST_SOCKET ? recv(stream->entry.fd, at, len, 0) : read(stream->entry.fd, at, len);
    } while (n < 0 && errno == EINTR);
    stream->entry.poller->counted.receives++;
    return n < 0 ? -errno : n;
}

static void read_while_readable(st_epoll_stream *stream) {
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

static void again(st_entry *entry) {
    st_epoll_stream *stream = (st_epoll_stream *)entry;
    if (stream->sending) st_epoll_send_on(stream);
    if (!entry->closed && stream->reading && stream->readable && !entry->poller->forked) read_while_readable(stream);
}

static void event(st_entry *entry, unsigned events) {
    st_epoll_stream *stream = (st_epoll_stream *)entry;
    if (stream->sending && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) st_epoll_send_on(stream);
    if (entry->closed || entry->poller->forked || !(events & ~(unsigned)EPOLLOUT)) return;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) stream->hung_up = 1;
    /* A receive ends at TCP's urgent mark, whatever there is behind it. */
    if (events & EPOLLPRI) stream->short_is_drained = 0;
    if (stream->ended) return;
    stream->readable = 1;
    if (stream->reading) read_while_readable(stream);
}

static void release(st_entry *entry) { st_parts_drop(&((st_epoll_stream *)entry)->parts); }

/* A short receive from TCP or a pipe took all there was (epoll(7)). Not so from a terminal, nor from a
 * Unix socket, where a message with descriptors attached ends a receive before the next one. */
static int short_receive_drains(int fd, int kind) {
    int domain = 0;
    socklen_t len = sizeof domain;
    if (kind != ST_SOCKET || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len)) return 0;
    return domain == AF_INET || domain == AF_INET6;
}

st_stream *st_epoll_stream_open(st_poller *poller, int fd, int kind, void *owner, int *error) {
    st_epoll_stream *stream = calloc(1, sizeof *stream);
    *error = stream ? st_entry_open((st_epoll *)poller, &stream->entry, fd, owner) : -ENOMEM;
    if (*error) {
        free(stream);
        return NULL;
    }
    stream->entry.event = event;
    stream->entry.again = again;
    stream->entry.release = release;
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
    st_epoll_stream *stream = st_epoll_stream_of(base);
    stream->mode = (uint8_t)mode;
    if (stream->ended || stream->reading || stream->entry.closed) return 0;
    stream->reading = 1;
    if (stream->readable) st_entry_again(&stream->entry);
    return 0;
}

void st_epoll_stream_read_stop(st_stream *base) { st_epoll_stream_of(base)->reading = 0; }

void st_epoll_stream_close(st_stream *base, int keep_fd) {
    st_epoll_stream *stream = st_epoll_stream_of(base);
    stream->reading = 0;
    st_epoll_send_last(stream);
    st_entry_close(&stream->entry, keep_fd);
}
