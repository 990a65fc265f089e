/*
 * The bare reference server: HTTP/1.1 over epoll, one thread, one fixed answer.
 *
 * Every ratio of the benchmark has this program as its unit, so it does what a correct server
 * must do for a GET and nothing more: keep-alive, pipelining, requests split at any byte, a
 * checked request line, `Connection: close`, back-pressure when the client does not read, and
 * a Date that is refreshed once a second (RFC 9110, RFC 9112).
 *
 * usage: epoll_server PORT        (127.0.0.1; 0 picks a free port; the port is printed)
 */
#define _GNU_SOURCE
#define SERVER_NAME "epoll"
#include "http_answer.h"
#include <signal.h>
#include <string.h>

struct connection {
    int fd;
    bool closing; /* close once `out` is sent */
    bool eof;     /* the client has sent all it will send */
    bool waiting_writable;
    size_t in_len;
    size_t out_start, out_len;
    char in[HEAD_BYTES_MAX];
    char out[OUT_BYTES];
};

#include "epoll_turns.h"

/* Answer every complete request in `in`, as far as `out` has room. */
static void answer_all(struct connection *c) {
    size_t from = 0;
    while (!c->closing && c->out_start + c->out_len + ANSWER_BYTES_MAX <= OUT_BYTES) {
        char *end = memmem(c->in + from, c->in_len - from, "\r\n\r\n", 4);
        if (end == NULL) {
            if (from == 0 && c->in_len == HEAD_BYTES_MAX) {
                c->closing = true;
                c->out_len += format_answer(c->out + c->out_start + c->out_len, "431 Request Header Fields Too Large",
                                            "head too large\n", "connection: close\r\n");
            }
            break;
        }
        c->out_len += answer(c->in + from, end + 4, c->out + c->out_start + c->out_len, &c->closing);
        from = (size_t)(end + 4 - c->in);
    }
    if (from == 0) return;
    c->in_len -= from;
    memmove(c->in, c->in + from, c->in_len);
}

/* Send what waits. False: the connection is broken. */
static bool flush(struct connection *c) {
    while (c->out_len > 0) {
        ssize_t sent = send(c->fd, c->out + c->out_start, c->out_len, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            return errno == EAGAIN;
        }
        c->out_start += (size_t)sent;
        c->out_len -= (size_t)sent;
    }
    c->out_start = 0;
    return true;
}

/* Read, answer, send until the socket has no more. False: close the connection. */
static bool answer_and_send(struct connection *c) {
    bool socket_empty = false;
    for (;;) {
        answer_all(c);
        if (!flush(c)) return false;
        if (c->out_len > 0) return true; /* the client reads too slowly; EPOLLOUT will tell */
        if (c->closing) return false;
        if (c->in_len > 0 && memmem(c->in, c->in_len, "\r\n\r\n", 4) != NULL) continue; /* `out` was full */
        if (c->eof) return false;
        if (socket_empty) return true;
        size_t room = HEAD_BYTES_MAX - c->in_len; /* never 0: a full buffer with no head was answered 431 */
        ssize_t got = recv(c->fd, c->in + c->in_len, room, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno == EAGAIN;
        c->eof = got == 0;
        c->in_len += (size_t)got;
        socket_empty = (size_t)got < room; /* epoll is level-triggered, so a wrong guess costs one turn */
    }
}

/* Wait for room to send while something waits, for requests otherwise. */
static void watch(int epoll_fd, struct connection *c) {
    bool want_writable = c->out_len > 0;
    if (want_writable == c->waiting_writable) return;
    wait_for(epoll_fd, c->fd, c, want_writable ? EPOLLOUT : EPOLLIN);
    c->waiting_writable = want_writable;
}

static bool serve(int epoll_fd, struct connection *c) {
    if (!answer_and_send(c)) return false;
    watch(epoll_fd, c);
    return true;
}

static void release(struct connection *c) { (void)c; }

static void begin_turn(void) { refresh_date(); }

int main(int argc, char **argv) {
    unsigned short port = port_argument(argc, argv, 2);
    signal(SIGPIPE, SIG_IGN);
    return run(port);
}
