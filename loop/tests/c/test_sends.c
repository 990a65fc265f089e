/* Sending, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

/* 10 MB through a tiny send buffer to a slow reader, from many parts: no byte twice, none missing. */
typedef struct slow_reader {
    int fd;
    uint64_t hash;
    size_t bytes, pause_every;
} slow_reader;

static void *read_slowly(void *argument) {
    slow_reader *self = argument;
    char buffer[30000];
    ssize_t n;
    size_t since = 0;
    while ((n = read(self->fd, buffer, sizeof buffer)) > 0) {
        self->hash = hash_bytes(self->hash, buffer, (size_t)n);
        self->bytes += (size_t)n;
        if ((since += (size_t)n) > self->pause_every) {
            usleep(500);
            since = 0;
        }
    }
    return NULL;
}

static void send_large(int ours, int peer, int kind, size_t bytes, int parts_count) {
    st_poller *poller = new_poller();
    char *pattern = malloc(bytes);
    fill_pattern(pattern, bytes, 11);
    owner *self = open_stream(poller, ours, kind);
    slow_reader reader = {.fd = peer, .pause_every = 500000};
    pthread_t thread;
    pthread_create(&thread, NULL, read_slowly, &reader);
    struct iovec *parts = calloc((size_t)parts_count, sizeof *parts);
    for (int i = 0; i < parts_count; i++) {
        size_t from = bytes / (size_t)parts_count * (size_t)i;
        size_t to = i == parts_count - 1 ? bytes : bytes / (size_t)parts_count * (size_t)(i + 1);
        parts[i] = (struct iovec){pattern + from, to - from};
    }
    CHECK_EQ(poller->ops->stream_send(self->stream, parts, parts_count), 0);
    memset(parts, 0xff, (size_t)parts_count * sizeof *parts); /* the array is not to be kept */
    free(parts);
    CHECK_EQ(send_bytes(self, "x", 1), -EBUSY);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0); /* after what is in flight */
    double until = now_s() + 30;
    while (self->sends_over == 0) {
        turn(poller, 100);
        CHECK(now_s() < until);
    }
    CHECK_EQ(self->sent, bytes);
    CHECK_EQ(self->send_error, 0);
    if (kind == ST_SOCKET)
        CHECK_EQ(send_bytes(self, "x", 1), -EPIPE);
    if (kind != ST_SOCKET)
        close_stream(self);
    pthread_join(thread, NULL); /* the end of a socket came by the shutdown */
    if (kind == ST_SOCKET)
        close_stream(self);
    CHECK_EQ(reader.bytes, bytes);
    CHECK_EQ(reader.hash, hash_bytes(0, pattern, bytes));
    close(peer);
    free(pattern);
    poller->ops->free(poller);
}

static void test_send_10_mb_tiny_buffer(void) {
    int fds[2], tiny = 1;
    segment_bytes = 1400; /* several in the buffer, or it is the delay of acknowledgements that one measures */
    tcp_pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &tiny, sizeof tiny);
    send_large(fds[0], fds[1], ST_SOCKET, 10 << 20, 3);
}

static void test_send_5000_parts(void) {
    int fds[2];
    tcp_pair(fds);
    send_large(fds[0], fds[1], ST_SOCKET, 5 << 20, 5000);
}

static void test_send_unix(void) {
    int fds[2];
    unix_pair(fds);
    send_large(fds[0], fds[1], ST_SOCKET, 3 << 20, 2);
}

static void test_send_pipe(void) {
    int fds[2];
    CHECK(pipe2(fds, O_CLOEXEC) == 0);
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    send_large(fds[1], fds[0], ST_PIPE, 2 << 20, 2000);
}

static void test_send_to_nobody(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    enum { BYTES = 20 << 20 };
    char *pattern = calloc(1, BYTES);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    CHECK_EQ(send_bytes(self, pattern, BYTES), 0);
    for (int i = 0; i < 20; i++)
        turn(poller, 10);
    double begin = now_s(); /* nobody reads: nothing to do, and nothing spins */
    CHECK_EQ(turn(poller, 100), 0);
    CHECK(now_s() - begin > 0.09);
    struct linger abort_it = {1, 0};
    setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
    close(fds[1]);
    TURN_UNTIL(poller, self->sends_over);
    CHECK(self->send_error == -ECONNRESET || self->send_error == -EPIPE);
    CHECK(send_bytes(self, "x", 1) <= 0);
    close_stream(self);
    free(pattern);
    poller->ops->free(poller);
}

/* The end is asked for again when what was in flight has left; by then the peer may be gone. */
static void test_shutdown_twice(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0);
    struct linger abort_it = {1, 0};
    setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
    close(fds[1]);
    for (double until = now_s() + 10; shutdown(fds[0], SHUT_WR) == 0 && now_s() < until;)
        turn(poller, 1);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0);
    close_stream(self);
    poller->ops->free(poller);
}

/* More parts than one call takes, and few bytes: all of them leave, without an event that says there is room. */
static void test_send_2000_small_parts(void) {
    enum { PARTS = 2000 };
    st_poller *poller = new_poller();
    int fds[2];
    static char data[PARTS], got[PARTS];
    static struct iovec parts[PARTS];
    fill_pattern(data, sizeof data, 4);
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    turn(poller, 0);
    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct iovec){data + i, 1};
    CHECK_EQ(poller->ops->stream_send(self->stream, parts, PARTS), 0);
    TURN_UNTIL(poller, self->sends_over == 1);
    read_exactly(fds[1], got, sizeof got);
    CHECK(memcmp(data, got, sizeof got) == 0);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

/* The end of file is told once, whatever is asked for afterwards and whatever else happens to the socket. */
static void test_the_end_is_told_once(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    shutdown(fds[1], SHUT_WR);
    TURN_UNTIL(poller, self->ended == 1);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 1);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0); /* hung up on both sides: one more event */
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ended, 1);
    CHECK_EQ(self->bytes, 0);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

/* A send waits for room while reading stops and begins again: it waits once, and its stream can be closed. */
static void test_reading_beside_a_blocked_send(void) {
    st_poller *poller = new_poller();
    enum { BYTES = 8 << 20 };
    char *data = calloc(1, BYTES);
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    CHECK_EQ(send_bytes(self, data, BYTES), 0);
    for (int i = 0; i < 10; i++) {
        poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        turn(poller, 0);
        poller->ops->stream_read_stop(self->stream);
        turn(poller, 0);
        CHECK(count(poller).in_flight <= 2);
    }
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    size_t n = 0;
    for (double until = now_s() + 10; n < BYTES && now_s() < until;) {
        ssize_t more = recv(fds[1], data, BYTES, MSG_DONTWAIT);
        n += more > 0 ? (size_t)more : 0;
        turn(poller, 1);
    }
    CHECK_EQ(n, BYTES);
    CHECK_EQ(self->sends_over, 1);
    close_stream(self);
    CHECK_EQ(count(poller).in_flight, 0);
    close(fds[1]);
    free(data);
    poller->ops->free(poller);
}

/* The memory of a send is free when the stream is closed: freed here, so that a late access is seen. */
static void test_close_during_send_and_receive(void) {
    st_poller *poller = new_poller();
    int before = open_descriptors();
    for (int i = 0; i < 50; i++) {
        int fds[2];
        tcp_pair(fds);
        char *pattern = calloc(1, 8 << 20);
        owner *self = open_stream(poller, fds[0], ST_SOCKET);
        poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        CHECK_EQ(send_bytes(self, pattern, 8 << 20), 0);
        if (i % 2)
            turn(poller, 0);
        CHECK(write(fds[1], "unread", 6) == 6);
        poller->ops->stream_close(self->stream, 0);
        TURN_UNTIL(poller, self->closed);
        CHECK_EQ(self->sends_over, 0);
        free(pattern);
        close(fds[1]);
        free_owner(self);
    }
    CHECK(open_descriptors() <= before + 1);
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

/* Nor is anything of a send left when its poller goes first. */
static void test_freed_during_a_send_of_many_parts(void) {
    enum { PARTS = 8 };
    static char data[PARTS][200000];
    struct iovec parts[PARTS];
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct iovec){data[i], sizeof data[i]};
    CHECK_EQ(poller->ops->stream_send(self->stream, parts, PARTS), 0);
    poller->ops->free(poller);
    CHECK_EQ(self->closed, 1);
    free_owner(self);
    close(fds[1]);
}

static void close_and_keep(owner *self, ssize_t n, size_t rest) {
    CHECK(n > 0);
    if (rest == 0)
        self->poller->ops->stream_close(self->stream, 1);
}

/* Who closes when the last bytes have left, and keeps the descriptor, keeps it as it is: the end that was asked for is off. */
static void test_closed_before_its_shutdown(void) {
    st_poller *poller = new_poller();
    int fds[2], small = 4096;
    static char data[200000], got[sizeof data];
    unix_pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->on_sent = close_and_keep;
    CHECK_EQ(send_bytes(self, data, sizeof data), 0);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0);
    size_t n = 0;
    for (double until = now_s() + 10; !self->closed && now_s() < until;) {
        turn(poller, 1);
        ssize_t more = recv(fds[1], got + n, sizeof got - n, MSG_DONTWAIT);
        n += more > 0 ? (size_t)more : 0;
    }
    CHECK_EQ(self->closed, 1);
    CHECK(write(fds[0], "more", 4) == 4);
    read_exactly(fds[1], got, sizeof got - n + 4);
    free_owner(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(send_10_mb_tiny_buffer),
        TEST(send_5000_parts),
        TEST(send_unix),
        TEST(send_pipe),
        TEST(send_to_nobody),
        TEST(close_during_send_and_receive),
        TEST(freed_during_a_send_of_many_parts),
        TEST(closed_before_its_shutdown),
        TEST(shutdown_twice),
        TEST(send_2000_small_parts),
        TEST(the_end_is_told_once),
        TEST(reading_beside_a_blocked_send),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
