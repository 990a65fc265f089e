/* One descriptor for several objects, one number for several descriptors: the same for every poller, which argv[1] names. */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

/* Two watches of one descriptor, and a third of its number's next owner. What is closed leaves nothing and wakes nobody. */
static void test_one_number_for_several(void) {
    st_poller *poller = new_poller();
    int fds[2], next[2];
    unix_pair(fds);
    turn(poller, 0);
    int before = open_descriptors();
    owner *first = open_watch(poller, fds[0], ST_READABLE), *second = open_watch(poller, fds[0], ST_READABLE);
    CHECK(write(fds[1], "x", 1) == 1);
    TURN_UNTIL(poller, first->ready_calls > 0 && second->ready_calls > 0);
    close_watch(second);
    close_watch(first);
    double begin = now_s();
    turn(poller, 50);
    CHECK(now_s() - begin > 0.04);
    CHECK_EQ(open_descriptors(), before);
    first = open_watch(poller, fds[0], ST_READABLE);
    second = open_watch(poller, fds[0], ST_READABLE); /* on epoll by a duplicate, which goes with what was asked for */
    turn(poller, 0);
    poller->ops->watch_set(second->watch, 0);
    turn(poller, 0);
    CHECK_EQ(open_descriptors(), before);
    int other = dup(fds[0]);
    close_watch(second);
    CHECK(close(other) == 0);
    close_watch(first);
    first = open_watch(poller, fds[0], ST_WRITABLE);
    TURN_UNTIL(poller, first->ready_calls > 0);
    close(fds[0]);
    unix_pair(next);
    CHECK_EQ(next[0], fds[0]);
    second = open_watch(poller, next[0], ST_READABLE);
    turn(poller, 0);
    poller->ops->watch_set(first->watch, ST_READABLE);
    turn(poller, 0);
    CHECK_EQ(second->ready_calls, 0);
    CHECK(write(next[1], "x", 1) == 1);
    TURN_UNTIL(poller, second->ready_calls > 0);
    close_watch(first);
    close_watch(second);
    /* The same, and the first one is closed without having been set again. */
    char byte;
    read_exactly(next[0], &byte, 1);
    first = open_watch(poller, next[0], ST_READABLE);
    turn(poller, 0);
    close(next[0]);
    close(next[1]);
    unix_pair(next);
    second = open_watch(poller, next[0], ST_READABLE);
    turn(poller, 0);
    close_watch(first);
    CHECK(write(next[1], "x", 1) == 1);
    TURN_UNTIL(poller, second->ready_calls > 0);
    close_watch(second);
    close(fds[1]);
    close(next[0]);
    close(next[1]);
    poller->ops->free(poller);
}

/* A stream on a descriptor that a watch has already: its end, or the poller's, leaves nothing behind. */
static void test_a_stream_beside_a_watch(void) {
    for (int by_free = 0; by_free < 2; by_free++) {
        int before = open_descriptors(), fds[2];
        char byte;
        st_poller *poller = new_poller();
        tcp_pair(fds);
        int after = open_descriptors();
        owner *watched = open_watch(poller, fds[0], ST_READABLE);
        owner *self = open_stream(poller, fds[0], ST_SOCKET);
        turn(poller, 0);
        if (by_free) {
            poller->ops->free(poller);
            CHECK(self->closed == 1 && watched->closed == 1);
            free_owner(self);
            free_owner(watched);
        } else {
            poller->ops->watch_set(watched->watch, 0);
            close_stream(self);
            CHECK(open_descriptors() < after + 1); /* a ring is opened by the first turn */
            close_watch(watched);
            poller->ops->free(poller);
        }
        CHECK_EQ(read(fds[1], &byte, 1), 0);
        close(fds[1]);
        CHECK_EQ(open_descriptors(), before);
    }
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

/* A stream that was closed while another descriptor shares its file: what the kernel still has to say of that file is
 * not taken for the object that got its place. */
static void test_late_event_of_a_shared_file(void) {
    st_poller *poller = new_poller();
    int fds[2], quiet[2];
    tcp_pair(fds);
    unix_pair(quiet);
    int shared = dup(fds[0]);
    owner *first = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(first->stream, ST_READ_COPY);
    turn(poller, 0);
    close_stream(first);
    owner *second = open_watch(poller, quiet[0], ST_READABLE);
    turn(poller, 0);
    CHECK(write(fds[1], "late", 4) == 4);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(second->ready_calls, 0);
    close_watch(second);
    close(shared);
    close(fds[1]);
    close(quiet[0]);
    close(quiet[1]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(one_number_for_several),
        TEST(a_stream_beside_a_watch),
        TEST(number_used_again),
        TEST(late_event_of_a_shared_file),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
