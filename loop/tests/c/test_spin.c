/* Looking before sleeping, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <unistd.h>

#include "harness.h"

enum { LATE_US = 5000, SPIN_MS = 200, SLOW_MS = 60, NS_PER_MS = 1000000 };

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

static void read_slowly(owner *self, unsigned events) {
    usleep(SLOW_MS * 1000);
    read_all(self, events);
}

static long times_slept(void) {
    struct rusage usage;
    CHECK_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
    return usage.ru_nvcsw;
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

static void test_looking_is_part_of_the_timeout(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    poller->spin_ns = 10000LL * NS_PER_MS;
    long before = times_slept();
    turn(poller, 5);
    CHECK_EQ(times_slept() - before, 0); /* the time was over when it had looked */
    poller->spin_ns = 1 * NS_PER_MS;
    turn(poller, 5);
    CHECK(times_slept() > before);
    poller->ops->free(poller);
}

static void test_what_is_timed_is_the_wait(void) {
    st_poller *poller = new_poller();
    int fds[2];
    owner *self = watched_pipe(poller, fds);
    self->on_ready = read_slowly;
    turn(poller, 5);
    CHECK_EQ(poller->waited_ns, 0); /* nobody asked */
    poller->times_waits = 1;
    turn(poller, 5);
    CHECK(poller->waited_ns >= 5LL * NS_PER_MS);
    turn(poller, 0);
    CHECK_EQ(poller->waited_ns, 0);
    poller->spin_ns = 2 * NS_PER_MS;
    turn(poller, 5);
    CHECK(poller->waited_ns >= 5LL * NS_PER_MS); /* looking is waiting too */
    for (poller->spin_ns = 0; poller->spin_ns <= NS_PER_MS; poller->spin_ns += NS_PER_MS) {
        CHECK(write(fds[1], "x", 1) == 1);
        int calls = self->ready_calls;
        turn(poller, 1000);
        CHECK_EQ(self->ready_calls, calls + 1);
        CHECK(poller->waited_ns < SLOW_MS * (int64_t)NS_PER_MS);
    }
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
        TEST(looking_is_part_of_the_timeout),
        TEST(what_is_timed_is_the_wait),
        TEST(a_wake_is_found),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
