/* The turns of a reference server over io_uring: one multishot accept, one io_uring_enter a turn. Its includer
 * defines the functions declared here. */
#ifndef URING_TURNS_H
#define URING_TURNS_H
#include "listen.h"
#include "ring.h"
#include <netinet/tcp.h>
#include <stdbool.h>

enum tag { ACCEPT, RECEIVE, SEND };

struct connection;

/* A client is there. */
static void on_connection(int fd);
static void on_receive(struct connection *c, const struct io_uring_cqe *cqe);
static void on_send(struct connection *c, int result);
/* Completions are there, or will be soon, and none was looked at yet. */
static void begin_turn(void);

static int listener;

static void arm_accept(void) {
    struct io_uring_sqe *sqe = new_sqe(IORING_OP_ACCEPT, listener, NULL, ACCEPT);
    sqe->accept_flags = SOCK_CLOEXEC;
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    push_sqe();
}

static void on_accept(const struct io_uring_cqe *cqe) {
    if (!(cqe->flags & IORING_CQE_F_MORE)) arm_accept();
    if (cqe->res < 0) return;
    int one = 1;
    setsockopt(cqe->res, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    on_connection(cqe->res);
}

static void on_completion(void *owner, unsigned tag, const struct io_uring_cqe *cqe) {
    if (tag == ACCEPT)
        on_accept(cqe);
    else if (tag == RECEIVE)
        on_receive(owner, cqe);
    else
        on_send(owner, cqe->res);
}

/* Serve for ever, once the ring is there. */
static void run(void) {
    arm_accept();
    for (;;) {
        enter(1);
        begin_turn();
        reap();
    }
}

#endif
