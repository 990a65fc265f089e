/*
 * The echo load generator: clients in a closed loop (generator.h, which also says how it talks to
 * the harness) that send a message and wait for the same bytes.
 *
 * Every byte is checked, as soon as it arrives. Neighbouring messages and neighbouring connections
 * have different bytes, so an old message, another connection's, or one put together wrongly
 * is found. With datagrams a message is one, and so is its echo.
 *
 * usage: echo_load PORT CONNECTIONS WARMUP_MS RUN_MS MESSAGE_BYTES [datagrams]
 */
#define _GNU_SOURCE
#include "generator.h"

enum {
    CONNECTIONS_MAX = 16384,
    MESSAGE_BYTES_MAX = 1048576,
    DATAGRAM_BYTES_MAX = 65507,
    SPREAD = 4093, /* messages begin at this many places of the pattern; a prime, so that steps do not repeat early */
};

struct message {
    size_t at; /* the message in flight is pattern[at, at + message_bytes) */
};

static char pattern[MESSAGE_BYTES_MAX + SPREAD], scratch[262144];
static size_t message_bytes;

static void fill_pattern(void) {
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < sizeof pattern; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        pattern[i] = (char)(x >> 56);
    }
}

/* Send what is left of the message; edge-triggered EPOLLOUT tells when there is room again. */
static void push(struct connection *c) {
    const struct message *m = c->own;
    while (c->unsent > 0) {
        ssize_t sent = send(c->fd, pattern + m->at + message_bytes - c->unsent, c->unsent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) {
            report(CLOSED, "the server closed the connection: send: %s", strerror(errno));
            drop(c);
            return;
        }
        c->unsent -= (size_t)sent;
    }
}

static void begin_request(struct connection *c) {
    struct message *m = c->own;
    m->at = (m->at + 17) % SPREAD;
    c->unsent = message_bytes;
    push(c);
}

/* Whether the bytes are those sent, in their place. If not, the connection is of no more use. */
static bool right_bytes(struct connection *c, size_t got) {
    const struct message *m = c->own;
    if (!c->in_flight || c->received + got > message_bytes - c->unsent) {
        report(MALFORMED, "%zu bytes more than were sent", c->in_flight ? c->received + got - message_bytes + c->unsent : got);
        return false;
    }
    if (memcmp(scratch, pattern + m->at + c->received, got) == 0) return true;
    size_t i = 0;
    while (scratch[i] == pattern[m->at + c->received + i]) i++;
    report(BAD_BODY, "byte %zu of the echo is not the byte that was sent", c->received + i);
    return false;
}

static void on_event(struct connection *c, uint32_t events, bool send_next) {
    if (c->unsent > 0 && (events & EPOLLOUT)) push(c);
    while (c->fd >= 0 && (events & ~(uint32_t)EPOLLOUT)) {
        ssize_t got = take(c, scratch, sizeof scratch);
        if (got <= 0) return;
        if (!right_bytes(c, (size_t)got)) {
            drop(c);
            return;
        }
        c->received += (size_t)got;
        if (c->received == message_bytes) finish_request(c, send_next);
        /* A short read emptied the socket, and a new edge tells of more; but an end that is here already has had its edge. */
        if ((size_t)got < sizeof scratch && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))) return;
    }
}

int main(int argc, char **argv) {
    bool datagrams = argc == 7 && strcmp(argv[6], "datagrams") == 0;
    if (argc != 6 && !datagrams) {
        fprintf(stderr, "usage: echo_load PORT CONNECTIONS WARMUP_MS RUN_MS MESSAGE_BYTES [datagrams]\n");
        return 2;
    }
    long port = number(argv[1], 1, 65535, "PORT");
    size_t count = (size_t)number(argv[2], 1, CONNECTIONS_MAX, "CONNECTIONS");
    long warmup_ms = number(argv[3], 0, 3600000, "WARMUP_MS"), run_ms = number(argv[4], 1, 3600000, "RUN_MS");
    message_bytes = (size_t)number(argv[5], 1, datagrams ? DATAGRAM_BYTES_MAX : MESSAGE_BYTES_MAX, "MESSAGE_BYTES");
    fill_pattern();
    connect_all((unsigned short)port, count, datagrams ? SOCK_DGRAM : SOCK_STREAM,
                EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, sizeof(struct message));
    for (size_t i = 0; i < count; i++) ((struct message *)connections[i].own)->at = i * 131 % SPREAD;
    return converse(warmup_ms, run_ms);
}
