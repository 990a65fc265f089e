/* Readiness of descriptors, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

static int turns;

static void read_one(owner *self, unsigned events) {
    char byte;
    CHECK(waited > turns); /* before anything of the turn is told */
    turns = waited;
    CHECK(events & ST_READABLE);
    CHECK(read((int)(intptr_t)self->extra, &byte, 1) == 1);
}

static void test_level_triggered(void) {
    st_poller *poller = new_poller();
    int fds[2];
    CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
    owner *self = open_watch(poller, fds[0], ST_READABLE);
    self->extra = (void *)(intptr_t)fds[0];
    self->on_ready = read_one;
    CHECK(write(fds[1], "0123456789", 10) == 10);
    TURN_UNTIL(poller, self->ready_calls == 10);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 10); /* each byte once, and nothing after the last */
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void test_once(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE | ST_ONCE);
    CHECK(write(fds[1], "ab", 2) == 2);
    TURN_UNTIL(poller, self->ready_calls == 1);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 1);
    char bytes[2];
    read_exactly(fds[0], bytes, 2);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE); /* asked for after it was drained */
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 1);
    CHECK(write(fds[1], "c", 1) == 1);
    TURN_UNTIL(poller, self->ready_calls == 2);
    /* More comes while nobody asks, and is read: that may be told of once, late. */
    CHECK(write(fds[1], "d", 1) == 1);
    turn(poller, 0);
    read_exactly(fds[0], bytes, 2);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE);
    turn(poller, 5);
    int calls = self->ready_calls;
    CHECK(calls <= 3);
    for (int i = 0; i < 3; i++) {
        poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE);
        turn(poller, 5);
    }
    CHECK_EQ(self->ready_calls, calls);
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void close_that_stream(owner *self, char *data, ssize_t n) {
    (void)data, (void)n;
    owner *other = self->extra;
    if (other != NULL && other->bytes > 0) {
        self->extra = NULL;
        other->poller->ops->stream_close(other->stream, 0);
    }
}

/* A stream with more to read in the next turn is closed by another one's callback: it is not freed before its place in the
 * queue is. */
static void test_closed_with_more_to_read(void) {
    st_poller *poller = new_poller();
    int fds[2][2];
    char into[10], many[1000] = {0};
    owner *all[2];
    for (int i = 0; i < 2; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->into = into;
        all[i]->into_bytes = sizeof into;
        all[i]->on_data = close_that_stream;
        poller->ops->stream_read_start(all[i]->stream, ST_READ_INTO);
    }
    turn(poller, 0);
    all[1]->extra = all[0];
    for (int i = 0; i < 2; i++)
        CHECK(write(fds[i][1], many, sizeof many) == sizeof many);
    TURN_UNTIL(poller, all[0]->closed);
    TURN_UNTIL(poller, all[1]->bytes == sizeof many);
    close_stream(all[1]);
    free_owner(all[0]);
    for (int i = 0; i < 2; i++)
        close(fds[i][1]);
    poller->ops->free(poller);
}

static owner *first_of_two;
static bool close_first;

static void ask_for_the_first(owner *self, unsigned events) {
    (void)events;
    char byte;
    CHECK(read((int)(intptr_t)self->extra, &byte, 1) == 1);
    if (close_first)
        self->poller->ops->watch_close(first_of_two->watch);
    else
        self->poller->ops->watch_set(first_of_two->watch, ST_ONCE | ST_READABLE);
}

static void close_itself(owner *self, unsigned events) {
    CHECK_EQ(events, ST_READABLE);
    self->poller->ops->watch_close(self->watch);
    self->poller->ops->watch_close(self->watch); /* once is enough */
}

/* What was ready before it was asked for, and is asked for twice before it is told, is told once and can be closed; closed
 * before it is told, it is not told at all. */
static void test_asked_for_twice(void) {
    for (int closes = 0; closes < 2; closes++) {
        st_poller *poller = new_poller();
        int fds[2][2];
        owner *all[2];
        for (int i = 0; i < 2; i++) {
            unix_pair(fds[i]);
            all[i] = open_watch(poller, fds[i][0], i == 0 ? ST_ONCE : ST_READABLE);
            all[i]->extra = (void *)(intptr_t)fds[i][0];
        }
        turn(poller, 0);
        CHECK(write(fds[0][1], "x", 1) == 1);
        turn(poller, 0);
        turn(poller, 0);
        first_of_two = all[0];
        close_first = closes;
        all[0]->on_ready = close_itself;
        all[1]->on_ready = ask_for_the_first;
        CHECK(write(fds[1][1], "x", 1) == 1);
        poller->ops->watch_set(all[0]->watch, ST_ONCE | ST_READABLE);
        TURN_UNTIL(poller, all[0]->closed && all[1]->ready_calls == 1);
        if (!closes)
            CHECK_EQ(all[0]->ready_calls, 1);
        else if (strcmp(poller_name, "epoll") == 0) /* which tells of new events first */
            CHECK_EQ(all[0]->ready_calls, 0);
        for (int i = 0; i < 3; i++)
            turn(poller, 1);
        CHECK_EQ(all[0]->closed, 1);
        close_watch(all[1]);
        free_owner(all[0]);
        for (int i = 0; i < 2; i++) {
            close(fds[i][0]);
            close(fds[i][1]);
        }
        poller->ops->free(poller);
    }
}

static void test_directions(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 0);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_WRITABLE);
    TURN_UNTIL(poller, self->ready_calls > 0);
    CHECK_EQ(self->ready_events, ST_WRITABLE);
    poller->ops->watch_set(self->watch, ST_READABLE);
    self->ready_events = 0;
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_events, 0);
    CHECK(write(fds[1], "x", 1) == 1);
    TURN_UNTIL(poller, self->ready_events == ST_READABLE);
    poller->ops->watch_set(self->watch, 0);
    int calls = self->ready_calls;
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, calls);
    /* Taken back before it counted: no trace. */
    poller->ops->watch_set(self->watch, ST_READABLE);
    poller->ops->watch_set(self->watch, 0);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, calls);
    /* Taken back when it counted, and again: each time it can be. */
    for (int i = 0; i < 3; i++) {
        poller->ops->watch_set(self->watch, i % 2 ? 0 : ST_READABLE);
        turn(poller, 0);
    }
    owner *again = open_watch(poller, fds[1], ST_READABLE);
    for (int i = 0; i < 3; i++) {
        turn(poller, 0);
        poller->ops->watch_set(again->watch, i % 2 ? ST_READABLE : 0);
    }
    poller->ops->watch_set(again->watch, ST_READABLE);
    turn(poller, 0);
    close_watch(again);
    /* A hang-up makes it ready for whatever is asked. */
    char byte;
    read_exactly(fds[0], &byte, 1);
    close(fds[1]);
    self->ready_events = 0;
    poller->ops->watch_set(self->watch, ST_READABLE | ST_WRITABLE);
    TURN_UNTIL(poller, self->ready_events == (ST_READABLE | ST_WRITABLE));
    close_watch(self);
    close(fds[0]);
    poller->ops->free(poller);
}

static void test_not_pollable(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    int before = open_descriptors();
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC), folder = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int file = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), event = eventfd(0, EFD_CLOEXEC);
    int refused[] = {null, folder, file}, errors[] = {-EPERM, -EPERM, -EPERM};
    for (int i = 0; i < 4; i++) {
        int error = 0, fd = i < 3 ? refused[i] : 9999;
        owner *self = new_owner(poller);
        st_watch *watch = poller->ops->watch_open(poller, fd, self, &error);
        if (watch != NULL) {
            error = poller->ops->watch_set(watch, ST_READABLE);
            poller->ops->watch_close(watch);
            TURN_UNTIL(poller, self->closed);
        }
        CHECK_EQ(error, i < 3 ? errors[i] : -EBADF);
        free_owner(self);
    }
    close_watch(open_watch(poller, event, ST_READABLE));
    close(null);
    close(folder);
    close(file);
    close(event);
    CHECK_EQ(open_descriptors(), before);
    poller->ops->free(poller);
}

/* Its owner takes back what it asked for and closes its socket; the loop does not turn for a long time. The peer sees
 * the end of the connection all the same. */
static void test_taken_back_without_a_turn(void) {
    st_poller *poller = new_poller();
    for (int by_close = 0; by_close < 2; by_close++) {
        int fds[2];
        tcp_pair(fds);
        owner *self = open_watch(poller, fds[0], ST_READABLE | ST_WRITABLE | ST_ONCE);
        turn(poller, 0);
        turn(poller, 0);
        if (by_close)
            poller->ops->watch_close(self->watch);
        else
            poller->ops->watch_set(self->watch, 0);
        close(fds[0]);
        struct pollfd end = {.fd = fds[1], .events = POLLIN};
        CHECK(poll(&end, 1, 1000) == 1);
        if (!by_close)
            poller->ops->watch_close(self->watch);
        TURN_UNTIL(poller, self->closed);
        free_owner(self);
        close(fds[1]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

static owner *pair_of_watches[2];

static void close_the_other(owner *self, unsigned events) {
    (void)events;
    owner *other = pair_of_watches[self == pair_of_watches[0]];
    CHECK_EQ(other->ready_calls, 0);
    self->poller->ops->watch_close(other->watch);
}

/* What is closed by a callback is not called in the same turn, though its event was fetched with the others. */
static void test_closed_in_the_turn_of_its_event(void) {
    st_poller *poller = new_poller();
    int fds[2][2];
    for (int i = 0; i < 2; i++) {
        unix_pair(fds[i]);
        CHECK(write(fds[i][1], "x", 1) == 1);
        pair_of_watches[i] = open_watch(poller, fds[i][0], ST_READABLE);
        pair_of_watches[i]->on_ready = close_the_other;
    }
    TURN_UNTIL(poller, pair_of_watches[0]->closed + pair_of_watches[1]->closed == 1);
    CHECK_EQ(pair_of_watches[0]->ready_calls == 0 || pair_of_watches[1]->ready_calls == 0, 1);
    owner *left = pair_of_watches[pair_of_watches[0]->closed];
    free_owner(pair_of_watches[left == pair_of_watches[0]]);
    left->on_ready = NULL;
    close_watch(left);
    for (int i = 0; i < 2; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static void send_to_nobody(int fd, struct sockaddr *nobody, socklen_t bytes) {
    CHECK(connect(fd, nobody, bytes) == 0);
    CHECK(send(fd, "x", 1, 0) == 1);
}

/* An error is over once it was read. Who then waits for bytes sleeps until there are some. */
static void test_an_error_passes(void) {
    st_poller *poller = new_poller();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    char byte;
    int gone = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(bind(gone, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(getsockname(gone, (struct sockaddr *)&address, &bytes) == 0);
    close(gone);
    owner *self = open_watch(poller, fd, ST_READABLE | ST_ONCE);
    turn(poller, 0);
    send_to_nobody(fd, (struct sockaddr *)&address, bytes);
    TURN_UNTIL(poller, self->ready_calls == 1);
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == ECONNREFUSED);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE), 0);
        turn(poller, 5);
    }
    CHECK_EQ(self->ready_calls, 1);
    send_to_nobody(fd, (struct sockaddr *)&address, bytes);
    TURN_UNTIL(poller, self->ready_calls == 2);
    close_watch(self);
    close(fd);
    poller->ops->free(poller);
}

/* A hang-up stays, and is told to everybody who asks. */
static void test_a_hang_up_stays(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE | ST_ONCE);
    turn(poller, 0);
    close(fds[1]);
    for (int asked = 1; asked <= 5; asked++) {
        TURN_UNTIL(poller, self->ready_calls == asked);
        CHECK_EQ(poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE), 0);
    }
    close_watch(self);
    close(fds[0]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(level_triggered),
        TEST(once),
        TEST(closed_with_more_to_read),
        TEST(asked_for_twice),
        TEST(directions),
        TEST(not_pollable),
        TEST(taken_back_without_a_turn),
        TEST(closed_in_the_turn_of_its_event),
        TEST(an_error_passes),
        TEST(a_hang_up_stays),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
