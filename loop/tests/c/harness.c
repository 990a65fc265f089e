#define _GNU_SOURCE
#include "harness.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

const char *poller_name = "epoll";
unsigned ring_entries, ring_buffers, ring_buffer_bytes;
int blocks, waited;
int segment_bytes;

void fail(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: %s (errno %d)\n", file, line, what, errno);
    _exit(1);
}

void check_equal(const char *file, int line, const char *what, long long left, long long right) {
    if (left == right)
        return;
    fprintf(stderr, "%s:%d: %s, but %lld and %lld\n", file, line, what, left, right);
    _exit(1);
}

static void on_block_begin(void *context) {
    (void)context;
    blocks++;
}

static void on_block_end(void *context) {
    (void)context;
    blocks--;
}

static void on_waited(void *context) {
    (void)context;
    CHECK(blocks == 0);
    waited++;
}

static int on_buffer(void *at, char **data, size_t *length) {
    owner *self = at;
    CHECK(blocks == 0);
    self->buffer_calls++;
    if (self->refuse_buffer)
        return 1;
    *data = self->into;
    *length = self->into_bytes;
    if (self->on_buffer)
        self->on_buffer(self);
    return 0;
}

static void on_data(void *at, char *data, ssize_t n) {
    owner *self = at;
    CHECK(blocks == 0 && self->closed == 0 && self->ended == 0);
    if (n <= 0) {
        self->ended++;
        self->end_result = n;
    } else {
        self->data_calls++;
        if (self->discard) {
            self->hash = hash_bytes(self->hash, data, (size_t)n);
        } else {
            if (self->bytes + (size_t)n > self->capacity) {
                self->capacity = (self->bytes + (size_t)n) * 2;
                self->data = realloc(self->data, self->capacity);
                CHECK(self->data != NULL);
            }
            memcpy(self->data + self->bytes, data, (size_t)n);
        }
        self->bytes += (size_t)n;
    }
    if (self->on_data)
        self->on_data(self, data, n);
}

static void on_sent(void *at, ssize_t n, size_t rest) {
    owner *self = at;
    CHECK(blocks == 0 && self->closed == 0);
    if (n < 0)
        self->send_error = n;
    else
        self->sent += (size_t)n;
    if (n < 0 || rest == 0)
        self->sends_over++;
    if (self->on_sent)
        self->on_sent(self, n, rest);
}

static void on_accepted(void *at, int fd) {
    owner *self = at;
    CHECK(blocks == 0 && self->closed == 0);
    if (fd < 0)
        self->accept_error = fd;
    else
        self->fds[self->accepted++ % 256] = fd;
    if (self->on_accepted)
        self->on_accepted(self, fd);
}

static void on_ready(void *at, unsigned events) {
    owner *self = at;
    CHECK(blocks == 0 && self->closed == 0);
    self->ready_calls++;
    self->ready_events |= events;
    if (self->on_ready)
        self->on_ready(self, events);
}

static void on_file_done(void *at, int64_t result) {
    owner *self = at;
    self->files_done++;
    self->file_result = result;
    if (self->on_file_done)
        self->on_file_done(self);
}

static void on_closed(void *at) {
    owner *self = at;
    CHECK(self->closed == 0);
    self->closed++;
    if (self->on_closed)
        self->on_closed(self);
}

const st_sink *test_sink(void) {
    static const st_sink sink = {
        .block_begin = on_block_begin,
        .block_end = on_block_end,
        .waited = on_waited,
        .stream_buffer = on_buffer,
        .stream_data = on_data,
        .stream_sent = on_sent,
        .accepted = on_accepted,
        .ready = on_ready,
        .file_done = on_file_done,
        .closed = on_closed,
    };
    return &sink;
}

st_poller *new_poller(void) {
    int error = 0;
    st_poller *poller = strcmp(poller_name, "epoll") == 0
                            ? st_epoll_new(test_sink(), &error)
                            : st_uring_new(test_sink(), ring_entries, ring_buffers, ring_buffer_bytes, &error);
    if (poller == NULL) {
        fprintf(stderr, "no %s poller: %s\n", poller_name, strerror(-error));
        _exit(1);
    }
    CHECK(strcmp(poller->ops->name, poller_name) == 0);
    return poller;
}

int turn(st_poller *poller, int timeout_ms) {
    int result = poller->ops->turn(poller, (int64_t)timeout_ms * 1000000, 1, 0);
    CHECK(result >= 0 || result == -EINTR);
    CHECK(blocks == 0);
    return result;
}

double now_s(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

double cpu_s(void) {
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return (double)at.tv_sec + (double)at.tv_nsec * 1e-9;
}

owner *new_owner(st_poller *poller) {
    owner *self = calloc(1, sizeof *self);
    CHECK(self != NULL);
    self->poller = poller;
    return self;
}

void free_owner(owner *self) {
    free(self->data);
    free(self);
}

owner *open_stream(st_poller *poller, int fd, int kind) {
    int error = 0;
    owner *self = new_owner(poller);
    self->stream = poller->ops->stream_open(poller, fd, kind, self, &error);
    CHECK_EQ(error, 0);
    CHECK(self->stream != NULL && self->stream->owner == self && self->stream->poller == poller);
    return self;
}

void close_stream(owner *self) {
    self->poller->ops->stream_close(self->stream, 0);
    CHECK_EQ(self->closed, 0);
    TURN_UNTIL(self->poller, self->closed);
    free_owner(self);
}

owner *open_watch(st_poller *poller, int fd, unsigned events) {
    int error = 0;
    owner *self = new_owner(poller);
    self->watch = poller->ops->watch_open(poller, fd, self, &error);
    CHECK_EQ(error, 0);
    CHECK_EQ(poller->ops->watch_set(self->watch, events), 0);
    return self;
}

void close_watch(owner *self) {
    self->poller->ops->watch_close(self->watch);
    CHECK_EQ(self->closed, 0);
    TURN_UNTIL(self->poller, self->closed);
    free_owner(self);
}

ssize_t send_bytes(owner *self, const void *bytes, size_t n) {
    struct iovec part = {.iov_base = (void *)bytes, .iov_len = n};
    return self->poller->ops->stream_send(self->stream, &part, 1);
}

int listen_tcp(int *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 1024) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &bytes) == 0);
    *port = ntohs(address.sin_port);
    return fd;
}

int connect_tcp(int port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (segment_bytes)
        setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment_bytes, sizeof segment_bytes);
    CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

void tcp_pair(int fds[2]) {
    int port, listener = listen_tcp(&port);
    fds[1] = connect_tcp(port);
    for (;;) {
        fds[0] = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fds[0] >= 0)
            break;
        CHECK(errno == EAGAIN);
    }
    int one = 1;
    setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    close(listener);
}

void unix_pair(int fds[2]) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
}

uint64_t hash_bytes(uint64_t hash, const char *data, size_t n) {
    hash = hash ? hash : 14695981039346656037ULL;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)data[i]) * 1099511628211ULL;
    return hash;
}

void fill_pattern(char *data, size_t n, uint64_t seed) {
    uint64_t state = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        data[i] = (char)(state >> 56);
    }
}

void read_exactly(int fd, char *data, size_t n) {
    for (size_t done = 0; done < n;) {
        ssize_t got = read(fd, data + done, n - done);
        if (got < 0 && errno == EINTR)
            continue;
        CHECK(got > 0);
        done += (size_t)got;
    }
}

int open_descriptors(void) {
    int found = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory) != NULL)
        found++;
    closedir(directory);
    return found - 3; /* itself, and two dots */
}

st_poller_statistics count(st_poller *poller) {
    st_poller_statistics result;
    poller->ops->statistics(poller, &result);
    return result;
}

static int run_one(const test *one) {
    fflush(NULL);
    double begin = now_s();
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        one->run();
        exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    bool passed = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("%s %s %s (%.2f s)\n", passed ? "ok  " : "FAIL", poller_name, one->name, now_s() - begin);
    if (WIFSIGNALED(status))
        printf("     killed by signal %d%s\n", WTERMSIG(status), WTERMSIG(status) == SIGALRM ? ": took too long" : "");
    return passed ? 0 : 1;
}

int run_tests(int argc, char **argv, const test *tests, size_t count_) {
    int failed = 0, run = 0;
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1)
        poller_name = argv[1];
    for (size_t i = 0; i < count_; i++) {
        bool chosen = argc <= 2;
        for (int a = 2; a < argc; a++)
            chosen = chosen || strcmp(argv[a], tests[i].name) == 0;
        if (!chosen)
            continue;
        run++;
        failed += run_one(&tests[i]);
    }
    printf("%d run, %d failed\n", run, failed);
    return failed > 0 || run == 0;
}
