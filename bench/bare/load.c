/*
 * The HTTP load generator: HTTP/1.1 keep-alive clients in a closed loop (generator.h, which also
 * says how it talks to the harness).
 *
 * Every answer is checked: status 200, a Content-Length equal to the expected body's, and the
 * body itself.
 *
 * usage: load PORT CONNECTIONS WARMUP_MS RUN_MS METHOD PATH REQUEST_BODY_BYTES EXPECTED_BODY
 */
#define _GNU_SOURCE
#include "generator.h"
#include <strings.h>

enum {
    ANSWER_BYTES_MAX = 16384,
    CONNECTIONS_MAX = 4096,
};

static char *request;
static size_t request_len;
static const char *expected;
static size_t expected_len;

/* Send what is left of the request. A request larger than the socket's room waits for EPOLLOUT. */
static void push(struct connection *c) {
    while (c->unsent > 0) {
        ssize_t sent = send(c->fd, request + request_len - c->unsent, c->unsent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) {
            report(CLOSED, "the server closed the connection: send: %s", strerror(errno));
            drop(c);
            return;
        }
        c->unsent -= (size_t)sent;
        if (c->unsent == 0) return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void begin_request(struct connection *c) {
    c->unsent = request_len;
    push(c);
}

/* The value of Content-Length in the head [head, end), or -1. The head ends with an empty line. */
static long content_length(const char *head, const char *end) {
    for (const char *line = memchr(head, '\n', (size_t)(end - head)); line && ++line < end;
         line = memchr(line, '\n', (size_t)(end - line)))
        if ((line[0] | 0x20) == 'c' && strncasecmp(line, "content-length:", 15) == 0) return strtol(line + 15, NULL, 10);
    return -1;
}

/* Check the answer so far. 1: complete, 0: more to come, -1: unusable, the connection is dropped. */
static int check_answer(struct connection *c) {
    char *in = c->own;
    in[c->received] = '\0';
    char *end = memmem(in, c->received, "\r\n\r\n", 4);
    if (end == NULL) {
        if (c->received < ANSWER_BYTES_MAX) return 0;
        report(MALFORMED, "a response head of more than %d bytes", ANSWER_BYTES_MAX);
        return -1;
    }
    char *body = end + 4;
    long length = content_length(in, body);
    if (strncmp(in, "HTTP/1.1 ", 9) != 0 || length < 0) {
        report(MALFORMED, "not an HTTP/1.1 response with Content-Length: %.40s", in);
        return -1;
    }
    size_t head_len = (size_t)(body - in);
    if (head_len + (size_t)length > ANSWER_BYTES_MAX) {
        report(MALFORMED, "a response body of %ld bytes, expected %zu", length, expected_len);
        return -1;
    }
    if (c->received < head_len + (size_t)length) return 0;
    if (c->received > head_len + (size_t)length) {
        report(MALFORMED, "%zu bytes after the end of the response", c->received - head_len - (size_t)length);
        return -1;
    }
    if (strncmp(in + 9, "200", 3) != 0)
        report(BAD_STATUS, "status %.3s, expected 200", in + 9);
    else if ((size_t)length != expected_len || memcmp(body, expected, expected_len) != 0)
        report(BAD_BODY, "a body of %ld bytes that is not the %zu expected: %.40s", length, expected_len, body);
    return 1;
}

static void receive(struct connection *c, bool send_next) {
    ssize_t got = take(c, (char *)c->own + c->received, ANSWER_BYTES_MAX - c->received);
    if (got <= 0) return;
    c->received += (size_t)got;
    int complete = c->in_flight && c->unsent == 0 ? check_answer(c) : -1;
    if (!c->in_flight || c->unsent > 0) report(MALFORMED, "bytes that answer no request");
    if (complete < 0) drop(c);
    if (complete > 0) finish_request(c, send_next);
}

static void on_event(struct connection *c, uint32_t events, bool send_next) {
    if (c->unsent > 0 && (events & EPOLLOUT)) {
        push(c);
        if (c->fd < 0) return;
        if (c->unsent == 0) {
            struct epoll_event readable = {.events = EPOLLIN, .data.ptr = c};
            epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &readable);
        }
    }
    if (events & ~(uint32_t)EPOLLOUT) receive(c, send_next);
}

static void build_request(const char *port, const char *method, const char *path, size_t body_bytes) {
    char length_field[64] = "";
    if (body_bytes > 0) snprintf(length_field, sizeof length_field, "Content-Length: %zu\r\n", body_bytes);
    size_t room = strlen(method) + strlen(path) + strlen(port) + body_bytes + 256;
    request = malloc(room);
    if (request == NULL) die("load: malloc");
    int head = snprintf(request, room, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\n%s\r\n", method, path, port, length_field);
    memset(request + head, 'x', body_bytes);
    request_len = (size_t)head + body_bytes;
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fprintf(stderr, "usage: load PORT CONNECTIONS WARMUP_MS RUN_MS METHOD PATH REQUEST_BODY_BYTES EXPECTED_BODY\n");
        return 2;
    }
    long port = number(argv[1], 1, 65535, "PORT");
    size_t count = (size_t)number(argv[2], 1, CONNECTIONS_MAX, "CONNECTIONS");
    long warmup_ms = number(argv[3], 0, 3600000, "WARMUP_MS"), run_ms = number(argv[4], 1, 3600000, "RUN_MS");
    build_request(argv[1], argv[5], argv[6], (size_t)number(argv[7], 0, 1048576, "REQUEST_BODY_BYTES"));
    expected = argv[8];
    expected_len = strlen(expected);
    connect_all((unsigned short)port, count, SOCK_STREAM, EPOLLIN, ANSWER_BYTES_MAX + 1);
    return converse(warmup_ms, run_ms);
}
