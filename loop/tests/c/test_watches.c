/* Readiness of descriptors, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

static void read_one(owner *self, unsigned events) {
    char byte;
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
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
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
    poller->ops->free(poller);
}

/* The owner closes its descriptor first and the number comes back as something else: no stale event. */
static void test_number_used_again(void) {
    st_poller *poller = new_poller();
    for (int i = 0; i < 100; i++) {
        int fds[2], other[2];
        unix_pair(fds);
        owner *self = open_watch(poller, fds[0], ST_READABLE);
        if (i % 2)
            turn(poller, 0);
        poller->ops->watch_set(self->watch, 0);
        int number = fds[0];
        close(fds[0]);
        unix_pair(other);
        CHECK_EQ(other[0], number);
        owner *next = open_watch(poller, other[0], ST_READABLE);
        CHECK(write(fds[1], "old", 3) < 0 || true);
        close(fds[1]);
        turn(poller, 0);
        turn(poller, 0);
        CHECK_EQ(self->ready_calls + next->ready_calls, 0);
        CHECK(write(other[1], "new", 3) == 3);
        TURN_UNTIL(poller, next->ready_calls > 0);
        CHECK_EQ(self->ready_calls, 0);
        close_watch(self);
        close_watch(next);
        close(other[0]);
        close(other[1]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
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

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(level_triggered),
        TEST(once),
        TEST(directions),
        TEST(not_pollable),
        TEST(number_used_again),
        TEST(taken_back_without_a_turn),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
