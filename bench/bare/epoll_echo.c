/*
 * The bare echo server over epoll, one thread: every byte is sent back, in order.
 *
 * It does what a correct server must and nothing more. A client that does not read is not read from
 * until it does, so nothing piles up here.
 *
 * usage: epoll_echo PORT        (127.0.0.1; 0 picks a free port; the port is printed)
 */
#define _GNU_SOURCE
#include "listen.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    READ_BYTES = 262144, /* one buffer for all connections: what is not sent at once is copied */
    EVENTS_MAX = 256,
};

struct connection {
    int fd;
    char *unsent; /* NULL, or what waits for the socket */
    size_t start, len;
};

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

static void wait_for(int epoll_fd, struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
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
    wait_for(epoll_fd, c, EPOLLIN);
    return true;
}

/* One read and its echo; epoll is level-triggered, so what is left comes next turn. False: close. */
static bool echo(int epoll_fd, struct connection *c) {
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
    wait_for(epoll_fd, c, EPOLLOUT);
    return true;
}

static void accept_all(int epoll_fd, int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return; /* EAGAIN, or a client that has gone */
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (c == NULL || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
            free(c);
            close(fd);
            continue;
        }
        c->fd = fd;
    }
}

int main(int argc, char **argv) {
    int listener = listen_on(port_argument(argc, argv, 2), SOCK_NONBLOCK);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}; /* NULL marks the listener */
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) < 0) {
        perror("epoll_echo: epoll");
        return 1;
    }
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL) {
                accept_all(epoll_fd, listener);
            } else if (!echo(epoll_fd, c)) {
                close(c->fd);
                free(c->unsent);
                free(c);
            }
        }
    }
}
