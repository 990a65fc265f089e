/* Receiving, and the life of streams, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "echo.h"
#include "harness.h"

static void test_echo(void) {
    st_poller *poller = new_poller();
    int port, fd, before = open_descriptors();
    owner *server = echo_server(poller, &port, &fd);
    char message[1000], answer[1000];
    int client = connect_tcp(port);
    for (int round = 0; round < 100; round++) {
        fill_pattern(message, sizeof message, (uint64_t)round);
        CHECK(write(client, message, sizeof message) == sizeof message);
        int ready = 0;
        for (double until = now_s() + 10; ready < (int)sizeof answer && now_s() < until; ioctl(client, FIONREAD, &ready))
            turn(poller, 1); /* not longer: an answer that has left ends no wait */
        read_exactly(client, answer, sizeof answer);
        CHECK(memcmp(message, answer, sizeof answer) == 0);
    }
    close(client);
    TURN_UNTIL(poller, echo_connections == 0);
    stop_server(server, fd);
    turn(poller, 0);
    CHECK(open_descriptors() <= before + 1); /* the ring */
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

static void test_many_clients(void) {
    st_poller *poller = new_poller();
    st_poller_statistics counted = serve(poller, 100, 20, 512);
    CHECK_EQ(counted.accepts, 100);
    CHECK(counted.receives >= 2000);
    poller->ops->free(poller);
}

static void test_large_messages(void) {
    st_poller *poller = new_poller();
    serve(poller, 4, 10, 300000);
    poller->ops->free(poller);
}

/* What the clock says when nothing happens, and that waiting costs no time of the processor. */
static void test_timeout(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    double begin = now_s(), cpu = cpu_s();
    CHECK_EQ(turn(poller, 100), 0);
    CHECK(now_s() - begin > 0.095 && now_s() - begin < 1);
    CHECK(cpu_s() - cpu < 0.02);
    begin = now_s();
    for (int i = 0; i < 100; i++)
        CHECK_EQ(turn(poller, 0), 0);
    CHECK(now_s() - begin < 0.5);
    CHECK(poller->ops->turn(poller, 300000, 1, 0) == 0); /* 0.3 ms */
    poller->ops->free(poller);
}

static void test_read_stop_keeps_bytes(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 0);
    /* It is armed now. Bytes that come while nobody may be told of them: */
    poller->ops->stream_read_stop(self->stream);
    CHECK(write(fds[1], "while stopped", 13) == 13);
    for (int i = 0; i < 5; i++)
        turn(poller, 10);
    CHECK_EQ(self->data_calls, 0);
    CHECK(write(fds[1], " and more", 9) == 9);
    close(fds[1]);
    for (int i = 0; i < 5; i++)
        turn(poller, 10);
    CHECK_EQ(self->data_calls + self->ended, 0);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    CHECK_EQ(self->data_calls, 0); /* never from inside */
    TURN_UNTIL(poller, self->ended);
    CHECK_EQ(self->bytes, 22);
    CHECK(memcmp(self->data, "while stopped and more", 22) == 0);
    CHECK_EQ(self->end_result, 0);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ended, 1);
    close_stream(self);
    poller->ops->free(poller);
}

static void stop_reading(owner *self, char *data, ssize_t n) {
    (void)data;
    if (n > 0)
        self->poller->ops->stream_read_stop(self->stream);
}

/* A reader that stops with every chunk and starts again gets every byte, in order. */
static void test_stop_and_go(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    enum { BYTES = 400000 };
    char *pattern = malloc(BYTES);
    fill_pattern(pattern, BYTES, 7);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->on_data = stop_reading;
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    size_t written = 0;
    int calls = 0;
    double until = now_s() + 20;
    while (self->bytes < BYTES) {
        if (written < BYTES) {
            ssize_t n = write(fds[1], pattern + written, BYTES - written);
            written += n > 0 ? (size_t)n : 0;
        }
        if (calls++ % 3 == 0)
            poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        int before = self->data_calls;
        turn(poller, 1);
        CHECK(self->data_calls <= before + 1);
        CHECK(now_s() < until);
    }
    CHECK(memcmp(self->data, pattern, BYTES) == 0);
    close(fds[1]);
    close_stream(self);
    free(pattern);
    poller->ops->free(poller);
}

static void check_into(owner *self, char *data, ssize_t n) {
    if (n > 0)
        CHECK(data == self->into && n <= (ssize_t)self->into_bytes);
}

static void test_read_into(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    enum { BYTES = 500000 };
    char *pattern = malloc(BYTES), into[1000];
    fill_pattern(pattern, BYTES, 9);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->into = into;
    self->into_bytes = sizeof into;
    self->on_data = check_into;
    poller->ops->stream_read_start(self->stream, ST_READ_INTO);
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    size_t written = 0;
    double until = now_s() + 20;
    while (self->bytes < BYTES) {
        if (written < BYTES) {
            ssize_t n = write(fds[1], pattern + written, BYTES - written);
            written += n > 0 ? (size_t)n : 0;
        }
        turn(poller, 1);
        CHECK(now_s() < until);
    }
    CHECK(memcmp(self->data, pattern, BYTES) == 0);
    CHECK(self->buffer_calls >= self->data_calls);
    /* Refusing a buffer stops reading; what has come already is not lost. */
    self->refuse_buffer = 1;
    CHECK(write(fds[1], "refused", 7) == 7);
    int asked = self->buffer_calls;
    TURN_UNTIL(poller, self->buffer_calls > asked);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->buffer_calls, asked + 1);
    self->refuse_buffer = 0;
    if (strcmp(poller_name, "io_uring") == 0) {
        self->into_bytes = 0; /* no room is a refusal too, and no end of file */
        poller->ops->stream_read_start(self->stream, ST_READ_INTO);
        turn(poller, 5);
        CHECK(self->ended == 0 && self->bytes == BYTES);
        self->into_bytes = sizeof into;
    }
    poller->ops->stream_read_start(self->stream, ST_READ_INTO);
    TURN_UNTIL(poller, self->bytes == BYTES + 7);
    CHECK(memcmp(self->data + BYTES, "refused", 7) == 0);
    close(fds[1]);
    TURN_UNTIL(poller, self->ended);
    close_stream(self);
    free(pattern);
    poller->ops->free(poller);
}

static void test_peer_sees_the_close_of_an_idle_stream(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 10);
    double begin = now_s();
    poller->ops->stream_close(self->stream, 0);
    TURN_UNTIL(poller, self->closed);
    struct pollfd end = {.fd = fds[1], .events = POLLIN};
    CHECK(poll(&end, 1, 100) == 1);
    char byte;
    CHECK(read(fds[1], &byte, 1) == 0);
    CHECK(now_s() - begin < 0.1);
    close(fds[1]);
    free_owner(self);
    poller->ops->free(poller);
}

static void start_the_other(owner *self, char *data, ssize_t n) {
    (void)data;
    owner *other = self->extra;
    if (n <= 0 || other == NULL)
        return;
    other->refuse_buffer = 0;
    other->poller->ops->stream_read_start(other->stream, ST_READ_INTO);
}

static void refuse_the_next(owner *self, char *data, ssize_t n) {
    (void)data, (void)n;
    self->refuse_buffer = self->extra == NULL;
}

/* In one turn: bytes that were kept are handed out in part, reading stops, another stream starts it again, and new bytes
 * arrive. The kept ones still come first. */
static void test_kept_bytes_come_first(void) {
    st_poller *poller = new_poller();
    int fds[2], other_fds[2];
    tcp_pair(fds);
    tcp_pair(other_fds);
    char into[4];
    owner *self = open_stream(poller, fds[0], ST_SOCKET), *other = open_stream(poller, other_fds[0], ST_SOCKET);
    self->into = into;
    self->into_bytes = sizeof into;
    self->on_data = refuse_the_next;
    poller->ops->stream_read_start(self->stream, ST_READ_INTO);
    poller->ops->stream_read_start(other->stream, ST_READ_COPY);
    turn(poller, 0);
    CHECK(write(fds[1], "0123456789", 10) == 10);
    TURN_UNTIL(poller, self->refuse_buffer);
    CHECK_EQ(self->bytes, 4);
    self->refuse_buffer = 0;
    poller->ops->stream_read_start(self->stream, ST_READ_INTO);
    other->extra = self;
    other->on_data = start_the_other;
    CHECK(write(other_fds[1], "go", 2) == 2);
    CHECK(write(fds[1], "abcdef", 6) == 6);
    turn(poller, 10);
    self->extra = self; /* refuses no more */
    self->refuse_buffer = 0;
    poller->ops->stream_read_start(self->stream, ST_READ_INTO);
    TURN_UNTIL(poller, self->bytes == 16);
    CHECK(memcmp(self->data, "0123456789abcdef", 16) == 0);
    close_stream(self);
    close_stream(other);
    close(fds[1]);
    close(other_fds[1]);
    poller->ops->free(poller);
}

/* The loop may stop right after the close, and run again much later. */
static void test_peer_sees_the_close_without_a_turn(void) {
    st_poller *poller = new_poller();
    for (int state = 0; state < 3; state++) {
        int fds[2];
        tcp_pair(fds);
        owner *self = open_stream(poller, fds[0], ST_SOCKET);
        poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        for (int i = 0; i < state; i++)
            turn(poller, 0);
        poller->ops->stream_close(self->stream, 0);
        struct pollfd end = {.fd = fds[1], .events = POLLIN};
        char byte;
        CHECK(poll(&end, 1, 1000) == 1 && read(fds[1], &byte, 1) == 0);
        TURN_UNTIL(poller, self->closed);
        close(fds[1]);
        free_owner(self);
    }
    poller->ops->free(poller);
}

/* An abort stays one: with SO_LINGER 0 the peer is told of a reset, not of an orderly end. */
static void test_abort_resets(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 0);
    struct linger abort_it = {1, 0};
    setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &abort_it, sizeof abort_it);
    poller->ops->stream_close(self->stream, 0);
    TURN_UNTIL(poller, self->closed);
    char byte;
    CHECK(read(fds[1], &byte, 1) == -1 && errno == ECONNRESET);
    close(fds[1]);
    free_owner(self);
    poller->ops->free(poller);
}

static void close_itself(owner *self, char *data, ssize_t n) {
    (void)data, (void)n;
    self->poller->ops->stream_close(self->stream, 0);
    CHECK_EQ(self->closed, 0); /* not from inside */
}

static void test_close_from_its_own_callback(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->on_data = close_itself;
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    CHECK(write(fds[1], "a", 1) == 1);
    TURN_UNTIL(poller, self->data_calls);
    CHECK(write(fds[1], "b", 1) == 1 || errno == EPIPE || errno == ECONNRESET);
    TURN_UNTIL(poller, self->closed);
    CHECK_EQ(self->data_calls, 1);
    close(fds[1]);
    free_owner(self);
    poller->ops->free(poller);
}

static void test_keep_fd(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 5);
    poller->ops->stream_read_stop(self->stream);
    turn(poller, 5);
    poller->ops->stream_close(self->stream, 1);
    TURN_UNTIL(poller, self->closed);
    CHECK(write(fds[1], "goes on", 7) == 7);
    char buffer[8];
    struct pollfd readable = {.fd = fds[0], .events = POLLIN};
    CHECK(poll(&readable, 1, 1000) == 1);
    CHECK(read(fds[0], buffer, sizeof buffer) == 7);
    CHECK(write(fds[0], "back", 4) == 4);
    read_exactly(fds[1], buffer, 4);
    close(fds[0]);
    close(fds[1]);
    free_owner(self);
    poller->ops->free(poller);
}

static void test_end_of_file_on_unix_sockets(void) {
    st_poller *poller = new_poller();
    for (int i = 0; i < 500; i++) {
        int fds[2];
        unix_pair(fds);
        owner *self = open_stream(poller, fds[0], ST_SOCKET);
        poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        if (i % 3)
            turn(poller, 0);
        CHECK(write(fds[1], "last words", 10) == 10);
        if (i % 2)
            turn(poller, 0);
        close(fds[1]);
        TURN_UNTIL(poller, self->ended);
        CHECK_EQ(self->bytes, 10);
        CHECK_EQ(self->end_result, 0);
        close_stream(self);
    }
    poller->ops->free(poller);
}

static void read_all(int ours, int peer, int kind, int mode) {
    st_poller *poller = new_poller();
    enum { BYTES = 200000 };
    char *pattern = malloc(BYTES), into[5000];
    fill_pattern(pattern, BYTES, 3);
    owner *self = open_stream(poller, ours, kind);
    self->into = into;
    self->into_bytes = sizeof into;
    poller->ops->stream_read_start(self->stream, mode);
    fcntl(peer, F_SETFL, O_NONBLOCK);
    size_t written = 0;
    double until = now_s() + 10;
    while (self->bytes < BYTES) {
        ssize_t n = write(peer, pattern + written, BYTES - written);
        written += n > 0 ? (size_t)n : 0;
        turn(poller, 10);
        CHECK(now_s() < until);
    }
    close(peer);
    TURN_UNTIL(poller, self->ended);
    CHECK_EQ(self->end_result, 0);
    CHECK_EQ(self->bytes, BYTES);
    CHECK(memcmp(self->data, pattern, BYTES) == 0);
    close_stream(self);
    free(pattern);
    poller->ops->free(poller);
}

static void test_read_pipe(void) {
    for (int mode = ST_READ_COPY; mode <= ST_READ_INTO; mode++) {
        int fds[2];
        CHECK(pipe2(fds, O_CLOEXEC) == 0);
        fcntl(fds[0], F_SETFL, O_NONBLOCK);
        read_all(fds[0], fds[1], ST_PIPE, mode);
    }
}

static void test_read_unix(void) {
    for (int mode = ST_READ_COPY; mode <= ST_READ_INTO; mode++) {
        int fds[2];
        unix_pair(fds);
        read_all(fds[0], fds[1], ST_SOCKET, mode);
    }
}

static void test_terminal(void) {
    st_poller *poller = new_poller();
    int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    int terminal = open(ptsname(master), O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    CHECK(terminal >= 0);
    owner *self = open_stream(poller, terminal, ST_PIPE);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 5);
    CHECK(write(master, "typed\n", 6) == 6);
    TURN_UNTIL(poller, self->bytes == 6);
    CHECK(memcmp(self->data, "typed\n", 6) == 0);
    CHECK_EQ(send_bytes(self, "shown", 5), 5);
    close_stream(self);
    close(master);
    poller->ops->free(poller);
}

static void test_bad_descriptors(void) {
    st_poller *poller = new_poller();
    owner *self = new_owner(poller);
    int error = 0;
    CHECK(poller->ops->stream_open(poller, 9999, ST_SOCKET, self, &error) == NULL);
    CHECK_EQ(error, -EBADF);
    free_owner(self);
    poller->ops->free(poller);
}

/* What is left from a turn, bytes or an end to be told, is no reason to sleep: 60 s is never. */
static void test_nothing_left_behind_sleeps(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    char *much = calloc(1, 1 << 20);
    size_t sent = 0;
    ssize_t n;
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    while (sent < 4 << 20 && (n = send(fds[1], much, 1 << 20, MSG_DONTWAIT)) > 0)
        sent += (size_t)n;
    CHECK(sent > 300000); /* more than one receive takes */
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    while (self->bytes < sent)
        CHECK(poller->ops->turn(poller, 60000000000, 1, 0) > 0);
    poller->ops->stream_close(self->stream, 0);
    while (!self->closed)
        CHECK(poller->ops->turn(poller, 60000000000, 1, 0) > 0);
    free_owner(self);
    close(fds[1]);
    free(much);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(timeout),
        TEST(echo),
        TEST(many_clients),
        TEST(large_messages),
        TEST(read_stop_keeps_bytes),
        TEST(stop_and_go),
        TEST(read_into),
        TEST(kept_bytes_come_first),
        TEST(peer_sees_the_close_of_an_idle_stream),
        TEST(peer_sees_the_close_without_a_turn),
        TEST(abort_resets),
        TEST(close_from_its_own_callback),
        TEST(keep_fd),
        TEST(end_of_file_on_unix_sockets),
        TEST(read_pipe),
        TEST(read_unix),
        TEST(terminal),
        TEST(bad_descriptors),
        TEST(nothing_left_behind_sleeps),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
