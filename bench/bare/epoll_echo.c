/*
 * The bare echo server over epoll, one thread: every byte is sent back, in order.
 *
 * It does what a correct server must and nothing more. A client that does not read is not read from
 * until it does, so nothing piles up here.
 *
 * usage: epoll_echo PORT        (127.0.0.1; 0 picks a free port; the port is printed)
 */
#define _GNU_SOURCE
#include <stddef.h>

enum {
    READ_BYTES = 262144, /* one buffer for all connections: what is not sent at once is copied */
};

struct connection {
    int fd;
    char *unsent; /* NULL, or what waits for the socket */
    size_t start, len;
};

#include "epoll_turns.h"
#include <string.h>

static char buffer[READ_BYTES];

/* Send; the bytes the socket did not take, or -1 when the connection is broken. */
static ssize_t send_some(int fd, const char *from, size_t len) {
    while (len > 0) {
        ssize_t sent = send(fd, from, len, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) return -1;
        from += sent;
        len -= (size_t)sent;
    }
    return (ssize_t)len;
}

/* Send what waits, and read again once it has left. False: close the connection. */
static bool resume(int epoll_fd, struct connection *c) {
    ssize_t left = send_some(c->fd, c->unsent + c->start, c->len);
    if (left < 0) return false;
    c->start += c->len - (size_t)left;
    c->len = (size_t)left;
    if (left > 0) return true;
    free(c->unsent);
    c->unsent = NULL;
    wait_for(epoll_fd, c->fd, c, EPOLLIN);
    return true;
}

/* One read and its echo; epoll is level-triggered, so what is left comes next turn. False: close. */
static bool serve(int epoll_fd, struct connection *c) {
    if (c->unsent != NULL) return resume(epoll_fd, c);
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) return false;
    ssize_t left = send_some(c->fd, buffer, (size_t)got);
    if (left <= 0) return left == 0;
    c->unsent = malloc((size_t)left);
    if (c->unsent == NULL) return false;
    memcpy(c->unsent, buffer + (got - left), (size_t)left);
    c->start = 0;
    c->len = (size_t)left;
    wait_for(epoll_fd, c->fd, c, EPOLLOUT);
    return true;
}

static void release(struct connection *c) { free(c->unsent); }

static void begin_turn(void) {}

int main(int argc, char **argv) { return run(port_argument(argc, argv, 2)); }
