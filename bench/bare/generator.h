/*
 * What the load generators share: a closed loop of connections over epoll, in one thread. Each
 * connection has one request in flight; the next is sent when the whole answer is there. Latencies
 * are counted, errors too, by kind, and the first one is described.
 *
 * A generator talks to the harness over its standard streams, so that the server's CPU time can be
 * read at both ends of the measurement, with all connections open:
 *     -> "ready"       after connecting and WARMUP_MS of load
 *     <- one line      start measuring
 *     -> one JSON line the result; the connections are still open
 *     <- end of file   close them and exit
 * Exit status: 0, or 1 when there were errors, or 2 when it could not start.
 */
#ifndef GENERATOR_H
#define GENERATOR_H
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
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
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
    size_t unsent;   /* bytes of the request the socket has not taken */
    size_t received; /* bytes of the answer */
    void *own;       /* what the generator keeps for it */
};

static struct connection *connections;
static size_t connection_count, alive, in_flight;
static int epoll_fd;
static uint64_t done, last_done_ns, errors[ERROR_KINDS], error_count, buckets[BUCKETS], latency_ns_max;
static char first_error[256];

/* What each generator defines: begin the next request of a connection, and take what epoll says of one. */
static void begin_request(struct connection *c);
static void on_event(struct connection *c, uint32_t events, bool send_next);

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

static void start_request(struct connection *c, uint64_t now) {
    c->in_flight = true;
    in_flight++;
    c->sent_ns = now;
    begin_request(c);
}

/* The whole answer is there: count it, and ask again. */
static void finish_request(struct connection *c, bool send_next) {
    uint64_t now = now_ns(), took = now - c->sent_ns;
    done++;
    last_done_ns = now;
    buckets[bucket_of(took)]++;
    if (took > latency_ns_max) latency_ns_max = took;
    c->received = 0;
    c->in_flight = false;
    in_flight--;
    if (send_next) start_request(c, now);
}

/* recv(2) into `to`; 0 when there is nothing now, and -1 when the connection is broken and dropped. */
static ssize_t take(struct connection *c, char *to, size_t room) {
    ssize_t got = recv(c->fd, to, room, 0);
    if (got > 0) return got;
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return 0;
    report(CLOSED, "the server closed the connection %s: %s", c->in_flight ? "with a request in flight" : "while idle",
           got < 0 ? strerror(errno) : "end of file");
    drop(c);
    return -1;
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
        if (connections[i].fd >= 0) start_request(&connections[i], now_ns());
    while (in_flight > 0) {
        struct epoll_event events[EVENTS_MAX];
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, 100);
        uint64_t now = now_ns();
        for (int i = 0; i < count; i++) on_event(events[i].data.ptr, events[i].events, now < deadline);
        if (now >= next_look) {
            find_stalled(now);
            next_look = now + 100000000;
        }
    }
    return (double)(last_done_ns - start) / 1e9;
}

/* Open `count` connections of a type of socket(2), watched for `events`, each with `own_bytes` of the generator's own memory. */
static void connect_all(unsigned short port, size_t count, int type, uint32_t events, size_t own_bytes) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    connection_count = count;
    connections = calloc(count, sizeof *connections);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (connections == NULL || epoll_fd < 0) die("load: start");
    for (size_t i = 0; i < count; i++) {
        struct connection *c = &connections[i];
        c->own = calloc(1, own_bytes);
        c->fd = socket(AF_INET, type | SOCK_CLOEXEC, 0);
        if (c->own == NULL || c->fd < 0 || connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0)
            die("load: connect");
        int one = 1; /* to a datagram socket it means nothing, and is refused */
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = events, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("load: epoll_ctl");
        alive++;
    }
}

static long number(const char *text, long least, long most, const char *name) {
    char *rest;
    long value = strtol(text, &rest, 10);
    if (*text && !*rest && value >= least && value <= most) return value;
    fprintf(stderr, "load: %s is '%s', and must be a number from %ld to %ld\n", name, text, least, most);
    exit(2);
}

/* The conversation with the harness, from the warm-up on. Returns the exit status. */
static int converse(long warmup_ms, long run_ms) {
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

#endif
