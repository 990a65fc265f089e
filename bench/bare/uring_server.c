/*
 * The bare HTTP/1.1 server over io_uring, one thread, on the raw system calls: the same answers as
 * epoll_server.c (http_answer.h), with one io_uring_enter a turn.
 *
 * Connections are accepted by one multishot operation. Each has at most one receive and one send in flight;
 * the receive goes straight into its buffer and is only asked for while there is room, so a client that
 * does not read is not read from.
 *
 * usage: uring_server PORT        (127.0.0.1; 0 picks a free port; the port is printed)
 */
#define _GNU_SOURCE
#define SERVER_NAME "uring"
#include "http_answer.h"
#include "uring_turns.h"

struct connection {
    int fd;
    bool closing; /* close once `out` is sent */
    bool eof;     /* the client has sent all it will send, or the connection is broken */
    bool receiving, sending;
    size_t in_len;
    size_t out_start, out_len;
    char in[HEAD_BYTES_MAX];
    char out[OUT_BYTES];
};

static void arm_receive(struct connection *c) {
    struct io_uring_sqe *sqe = new_sqe(IORING_OP_RECV, c->fd, c, RECEIVE);
    sqe->addr = (uintptr_t)(c->in + c->in_len);
    sqe->len = (uint32_t)(HEAD_BYTES_MAX - c->in_len);
    sqe->ioprio = IORING_RECVSEND_POLL_FIRST; /* it is asked for when the last request was just answered */
    push_sqe();
    c->receiving = true;
}

static void arm_send(struct connection *c) {
    struct io_uring_sqe *sqe = new_sqe(IORING_OP_SEND, c->fd, c, SEND);
    sqe->addr = (uintptr_t)(c->out + c->out_start);
    sqe->len = (uint32_t)c->out_len;
    sqe->msg_flags = MSG_NOSIGNAL;
    push_sqe();
    c->sending = true;
}

/* Answer every complete request in `in`. False: `out` has no room behind what is being sent, and there may be more. */
static bool answer_all(struct connection *c) {
    size_t from = 0;
    bool room = true;
    while (!c->closing && (room = c->out_start + c->out_len + ANSWER_BYTES_MAX <= OUT_BYTES)) {
        char *to = c->out + c->out_start + c->out_len, *end = memmem(c->in + from, c->in_len - from, "\r\n\r\n", 4);
        if (end == NULL) {
            if (from > 0 || c->in_len < HEAD_BYTES_MAX) break;
            c->closing = true;
            c->out_len +=
                format_answer(to, "431 Request Header Fields Too Large", "head too large\n", "connection: close\r\n");
            break;
        }
        c->out_len += answer(c->in + from, end + 4, to, &c->closing);
        from = (size_t)(end + 4 - c->in);
    }
    c->in_len -= from;
    if (from > 0) memmove(c->in, c->in + from, c->in_len);
    return room;
}

/* Everything that can be done now. The receive owns `in` while it is in flight, so answers wait for it. */
static void go_on(struct connection *c) {
    bool room = !c->receiving && answer_all(c);
    if (!c->sending && c->out_len > 0) arm_send(c);
    if (room && !c->closing && !c->eof) {
        arm_receive(c);
    } else if (!c->receiving && !c->sending) {
        close(c->fd);
        free(c);
    }
}

static void on_connection(int fd) {
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL) die("uring_server: calloc");
    c->fd = fd;
    arm_receive(c);
}

static void on_receive(struct connection *c, const struct io_uring_cqe *cqe) {
    c->receiving = false;
    if (cqe->res > 0)
        c->in_len += (size_t)cqe->res;
    else if (cqe->res != -EINTR && cqe->res != -EAGAIN)
        c->eof = true;
    go_on(c);
}

static void on_send(struct connection *c, int result) {
    c->sending = false;
    if (result < 0) {
        c->eof = c->closing = true;
        c->out_len = 0;
        shutdown(c->fd, SHUT_RDWR); /* ends the receive; a close alone would not */
    } else {
        c->out_start += (size_t)result;
        c->out_len -= (size_t)result;
        if (c->out_len == 0) c->out_start = 0;
    }
    go_on(c);
}

static void begin_turn(void) { refresh_date(); }

int main(int argc, char **argv) {
    listener = listen_on(port_argument(argc, argv, 2), 0);
    map_ring();
    run();
}
