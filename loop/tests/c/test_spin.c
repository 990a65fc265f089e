/* Looking before sleeping, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "harness.h"

enum { LATE_US = 5000, SPIN_MS = 200, NS_PER_MS = 1000000 };

static void *write_late(void *fd) {
    usleep(LATE_US);
    CHECK(write((int)(intptr_t)fd, "x", 1) == 1);
    return NULL;
}

static void read_all(owner *self, unsigned events) {
    char bytes[16];
    (void)events;
    CHECK(read((int)(intptr_t)self->extra, bytes, sizeof bytes) > 0);
}

/* A watched pipe whose first wait, in which the watch itself is submitted, is over. */
static owner *watched_pipe(st_poller *poller, int fds[2]) {
    CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
    owner *self = open_watch(poller, fds[0], ST_READABLE);
    self->extra = (void *)(intptr_t)fds[0];
    self->on_ready = read_all;
    turn(poller, 0);
    return self;
}

static void test_what_comes_while_looking_is_found(void) {
    st_poller *poller = new_poller();
    int fds[2];
    owner *self = watched_pipe(poller, fds);
    poller->spin_ns = (int64_t)SPIN_MS * NS_PER_MS;
    pthread_t thread;
    double cpu_before = cpu_s(), start = now_s();
    CHECK(pthread_create(&thread, NULL, write_late, (void *)(intptr_t)fds[1]) == 0);
    TURN_UNTIL(poller, self->ready_calls == 1);
    CHECK(now_s() - start < 5);
    CHECK(cpu_s() - cpu_before > LATE_US * 1e-6 / 4); /* it looked; a sleeper uses next to nothing */
    CHECK_EQ(blocks, 0);
    pthread_join(thread, NULL);
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void test_looking_ends_with_the_timeout_and_with_its_own_limit(void) {
    st_poller *poller = new_poller();
    int fds[2];
    owner *self = watched_pipe(poller, fds);
    poller->spin_ns = 10000LL * NS_PER_MS;
    double start = now_s();
    turn(poller, 20);
    CHECK(now_s() - start < 5);
    poller->spin_ns = 1 * NS_PER_MS;
    double cpu_before = cpu_s();
    start = now_s();
    turn(poller, 400);
    CHECK(now_s() - start > 0.3);
    CHECK(cpu_s() - cpu_before < 0.2); /* one millisecond of looking, and then sleep */
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void test_a_wake_is_found(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    poller->spin_ns = 10000LL * NS_PER_MS;
    double start = now_s();
    CHECK_EQ(poller->ops->wake(poller), 0);
    turn(poller, 9000);
    CHECK(now_s() - start < 5);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(what_comes_while_looking_is_found),
        TEST(looking_ends_with_the_timeout_and_with_its_own_limit),
        TEST(a_wake_is_found),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
