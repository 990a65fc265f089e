/* The turns of a reference server over epoll: level-triggered, one epoll_wait a turn, all that waits accepted at
 * once. Its includer defines `struct connection`, with a descriptor `fd`, before it includes this, and then the
 * functions declared here. */
#ifndef EPOLL_TURNS_H
#define EPOLL_TURNS_H
#include "listen.h"
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    EVENTS_MAX = 256,
};

/* Do all that can be done. False: close the connection. */
static bool serve(int epoll_fd, struct connection *c);
/* It is over: free what it holds. */
static void release(struct connection *c);
/* Events are there, and nothing was done about them yet. */
static void begin_turn(void);

static void wait_for(int epoll_fd, int fd, struct connection *c, uint32_t events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event);
}

static void end_connection(struct connection *c) {
    close(c->fd);
    release(c);
    free(c);
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

/* Serve for ever; returns the exit status when it can not begin. */
static int run(unsigned short port) {
    int listener = listen_on(port, SOCK_NONBLOCK);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}; /* NULL marks the listener */
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) < 0) {
        perror("epoll");
        return 1;
    }
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, -1);
        begin_turn();
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == NULL)
                accept_all(epoll_fd, listener);
            else if (!serve(epoll_fd, c))
                end_connection(c);
        }
    }
}

#endif
