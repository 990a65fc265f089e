/*
 * The load generator: a closed loop of HTTP/1.1 keep-alive clients over epoll, one thread.
 *
 * Each connection has one request in flight; the next is sent when the whole answer is there.
 * Every answer is checked: status 200, a Content-Length equal to the expected body's, and the
 * body itself. What goes wrong is counted by kind and the first case is described.
 *
 * usage: load PORT CONNECTIONS WARMUP_MS RUN_MS METHOD PATH REQUEST_BODY_BYTES EXPECTED_BODY
 *
 * It talks to the harness over its standard streams, so that the server's CPU time can be read
 * at both ends of the measurement, with all connections open:
 *     -> "ready"       after connecting and WARMUP_MS of load
 *     <- one line      start measuring
 *     -> one JSON line the result; the connections are still open
 *     <- end of file   close them and exit
 * Exit status: 0, or 1 when there were errors, or 2 when it could not start.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    ANSWER_BYTES_MAX = 16384,
    CONNECTIONS_MAX = 4096,
    STALL_MS = 5000, /* an answer that takes longer than this is an error */
    SUB_BITS = 6,    /* histogram: 64 buckets to each power of two, so within 1.6 % */
    BUCKETS = (64 - SUB_BITS + 1) << SUB_BITS,
    EVENTS_MAX = 256,
};

enum error { BAD_STATUS, BAD_BODY, MALFORMED, CLOSED, STALLED, ERROR_KINDS };
static const char *const error_names[ERROR_KINDS] = {"bad_status", "bad_body", "malformed", "closed", "stalled"};

struct connection {
    int fd; /* -1 once broken */
    bool in_flight;
    uint64_t sent_ns;
    size_t unsent; /* bytes of the request the socket has not taken */
    size_t in_len;
    char in[ANSWER_BYTES_MAX + 1];
};

static struct connection *connections;
static size_t connection_count, alive, in_flight;
static int epoll_fd;
static char *request;
static size_t request_len;
static const char *expected;
static size_t expected_len;
static uint64_t done, last_done_ns, errors[ERROR_KINDS], error_count, buckets[BUCKETS], latency_ns_max;
static char first_error[256];

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static double own_cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void die(const char *what) {
    perror(what);
    exit(2);
}

__attribute__((format(printf, 2, 3))) static void report(enum error kind, const char *format, ...) {
    errors[kind]++;
    if (error_count++ > 0) return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(first_error, sizeof first_error, format, arguments);
    va_end(arguments);
    for (char *c = first_error; *c; c++) /* it goes into JSON, and may hold what the server sent */
        if (*c == '"' || *c == '\\' || *c < ' ' || *c > '~') *c = '?';
}

static size_t bucket_of(uint64_t ns) {
    if (ns < (1u << SUB_BITS)) return (size_t)ns;
    int shift = 63 - __builtin_clzll(ns) - SUB_BITS;
    return ((size_t)(shift + 1) << SUB_BITS) + (size_t)((ns >> shift) & ((1u << SUB_BITS) - 1));
}

static double bucket_middle_ns(size_t bucket) {
    if (bucket < (1u << SUB_BITS)) return (double)bucket;
    int shift = (int)(bucket >> SUB_BITS) - 1;
    uint64_t low = ((uint64_t)((bucket & ((1u << SUB_BITS) - 1)) | (1u << SUB_BITS))) << shift;
    return (double)low + (double)(1ull << shift) / 2;
}

static double quantile_us(double q) {
    uint64_t rank = (uint64_t)(q * (double)done), seen = 0;
    for (size_t i = 0; i < BUCKETS; i++)
        if ((seen += buckets[i]) > rank) return bucket_middle_ns(i) / 1000;
    return 0;
}

static void drop(struct connection *c) {
    close(c->fd);
    c->fd = -1;
    alive--;
    if (c->in_flight) in_flight--;
    c->in_flight = false;
}

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

static void send_request(struct connection *c, uint64_t now) {
    c->in_flight = true;
    in_flight++;
    c->sent_ns = now;
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

/* Check the answer in `in`. 1: complete, 0: more to come, -1: unusable, the connection is dropped. */
static int check_answer(struct connection *c) {
    c->in[c->in_len] = '\0';
    char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
    if (end == NULL) {
        if (c->in_len < ANSWER_BYTES_MAX) return 0;
        report(MALFORMED, "a response head of more than %d bytes", ANSWER_BYTES_MAX);
        return -1;
    }
    char *body = end + 4;
    long length = content_length(c->in, body);
    if (strncmp(c->in, "HTTP/1.1 ", 9) != 0 || length < 0) {
        report(MALFORMED, "not an HTTP/1.1 response with Content-Length: %.40s", c->in);
        return -1;
    }
    size_t head_len = (size_t)(body - c->in);
    if (head_len + (size_t)length > ANSWER_BYTES_MAX) {
        report(MALFORMED, "a response body of %ld bytes, expected %zu", length, expected_len);
        return -1;
    }
    if (c->in_len < head_len + (size_t)length) return 0;
    if (c->in_len > head_len + (size_t)length) {
        report(MALFORMED, "%zu bytes after the end of the response", c->in_len - head_len - (size_t)length);
        return -1;
    }
    if (strncmp(c->in + 9, "200", 3) != 0)
        report(BAD_STATUS, "status %.3s, expected 200", c->in + 9);
    else if ((size_t)length != expected_len || memcmp(body, expected, expected_len) != 0)
        report(BAD_BODY, "a body of %ld bytes that is not the %zu expected: %.40s", length, expected_len, body);
    return 1;
}

static void receive(struct connection *c, bool send_next) {
    ssize_t got = recv(c->fd, c->in + c->in_len, ANSWER_BYTES_MAX - c->in_len, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        report(CLOSED, "the server closed the connection %s: %s",
               c->in_flight ? "with a request in flight" : "while idle", got < 0 ? strerror(errno) : "end of file");
        drop(c);
        return;
    }
    c->in_len += (size_t)got;
    int complete = c->in_flight && c->unsent == 0 ? check_answer(c) : -1;
    if (!c->in_flight || c->unsent > 0) report(MALFORMED, "bytes that answer no request");
    if (complete < 0) drop(c);
    if (complete <= 0) return;
    uint64_t now = now_ns(), took = now - c->sent_ns;
    done++;
    last_done_ns = now;
    buckets[bucket_of(took)]++;
    if (took > latency_ns_max) latency_ns_max = took;
    c->in_len = 0;
    c->in_flight = false;
    in_flight--;
    if (send_next) send_request(c, now);
}

static void find_stalled(uint64_t now) {
    for (size_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        if (c->fd < 0 || !c->in_flight || now < c->sent_ns + STALL_MS * 1000000ull) continue;
        report(STALLED, "no complete answer within %d ms", STALL_MS);
        drop(c);
    }
}

/* Load the server for `ms`, then wait for the answers still owed. Returns the seconds it took. */
static double run(long ms) {
    done = latency_ns_max = 0;
    memset(buckets, 0, sizeof buckets);
    uint64_t start = now_ns(), deadline = start + (uint64_t)ms * 1000000, next_look = start;
    last_done_ns = start;
    for (size_t i = 0; i < connection_count; i++)
        if (connections[i].fd >= 0) send_request(&connections[i], now_ns());
    while (in_flight > 0) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, 100);
        uint64_t now = now_ns();
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c->unsent > 0 && (events[i].events & EPOLLOUT)) {
                push(c);
                if (c->fd < 0) continue;
                if (c->unsent == 0) {
                    struct epoll_event readable = {.events = EPOLLIN, .data.ptr = c};
                    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &readable);
                }
            }
            if (events[i].events & ~(uint32_t)EPOLLOUT) receive(c, now < deadline);
        }
        if (now >= next_look) {
            find_stalled(now);
            next_look = now + 100000000;
        }
    }
    return (double)(last_done_ns - start) / 1e9;
}

static void connect_all(unsigned short port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (size_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) die("load: connect");
        int one = 1;
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("load: epoll_ctl");
        alive++;
    }
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

static long number(const char *text, long least, long most, const char *name) {
    char *rest;
    long value = strtol(text, &rest, 10);
    if (*text && !*rest && value >= least && value <= most) return value;
    fprintf(stderr, "load: %s is '%s', and must be a number from %ld to %ld\n", name, text, least, most);
    exit(2);
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fprintf(stderr, "usage: load PORT CONNECTIONS WARMUP_MS RUN_MS METHOD PATH REQUEST_BODY_BYTES EXPECTED_BODY\n");
        return 2;
    }
    long port = number(argv[1], 1, 65535, "PORT");
    connection_count = (size_t)number(argv[2], 1, CONNECTIONS_MAX, "CONNECTIONS");
    long warmup_ms = number(argv[3], 0, 3600000, "WARMUP_MS"), run_ms = number(argv[4], 1, 3600000, "RUN_MS");
    build_request(argv[1], argv[5], argv[6], (size_t)number(argv[7], 0, 1048576, "REQUEST_BODY_BYTES"));
    expected = argv[8];
    expected_len = strlen(expected);
    connections = calloc(connection_count, sizeof *connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (connections == NULL || epoll_fd < 0) die("load: start");
    connect_all((unsigned short)port);

    run(warmup_ms); /* errors here count too: they are never reset */
    char line[16];
    printf("ready\n");
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL) return 2;
    double cpu_before_s = own_cpu_s(), elapsed_s = run(run_ms), cpu_s = own_cpu_s() - cpu_before_s;
    printf("{\"requests\": %" PRIu64 ", \"elapsed_s\": %.6f, \"cpu_s\": %.6f, \"connections_lost\": %zu, ", done,
           elapsed_s, cpu_s, connection_count - alive);
    printf("\"p50_us\": %.2f, \"p99_us\": %.2f, \"max_us\": %.2f, \"errors\": {", quantile_us(0.50), quantile_us(0.99),
           (double)latency_ns_max / 1000);
    for (int i = 0; i < ERROR_KINDS; i++) printf("%s\"%s\": %" PRIu64, i ? ", " : "", error_names[i], errors[i]);
    printf("}, \"first_error\": \"%s\"}\n", first_error);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin) != NULL) {
    }
    return error_count > 0;
}
