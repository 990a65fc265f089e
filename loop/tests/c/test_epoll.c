/* Inside the epoll poller: its tables, its waits, and kernels that know less. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "st_epoll.h"

static void answer_with(long call, int error) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((unsigned)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof program[0], .filter = program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

static void *wake_later(void *argument) {
    st_poller *poller = argument;
    usleep(30000);
    CHECK_EQ(poller->ops->wake(poller), 0);
    return NULL;
}

/* How long a turn with this limit slept that was woken after 30 ms. */
static double slept_s(st_poller *poller, int64_t timeout_ns) {
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, wake_later, poller), 0);
    double begin = now_s();
    CHECK_EQ(poller->ops->turn(poller, timeout_ns, 1, 0), 0);
    double result = now_s() - begin;
    pthread_join(thread, NULL);
    return result;
}

/* Where the finer wait is missing, or forbidden, milliseconds do; that is found out once. */
static void waits_in_milliseconds(int error) {
    answer_with(SYS_epoll_pwait2, error);
    st_poller *poller = new_poller();
    turn(poller, 0);
    CHECK(!((st_epoll *)poller)->no_pwait2);
    double begin = now_s();
    turn(poller, 20);
    CHECK(now_s() - begin > 0.015);
    CHECK(((st_epoll *)poller)->no_pwait2);
    const int64_t timeouts_ns[] = {-1, 1000000000, 4294967296 * 1000000 /* 0 to 32 bits */};
    for (int i = 0; i < 3; i++) {
        double slept = slept_s(poller, timeouts_ns[i]);
        CHECK(slept > 0.02 && slept < 0.9);
    }
    poller->ops->free(poller);
}

static void test_a_wait_that_is_missing(void) { waits_in_milliseconds(ENOSYS); }
static void test_a_wait_that_is_forbidden(void) { waits_in_milliseconds(EPERM); }

/* What some other call left in errno says nothing about a wait that succeeded. */
static void test_an_old_errno(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE | ST_ONCE);
    turn(poller, 0);
    turn(poller, 0);
    errno = ENOSYS;
    turn(poller, 1);
    CHECK(!((st_epoll *)poller)->no_pwait2);
    CHECK(write(fds[1], "x", 1) == 1);
    errno = ENOSYS;
    CHECK_EQ(turn(poller, 1000), 1); /* an edge: looked for once more it would be gone */
    CHECK(self->ready_calls == 1 && !((st_epoll *)poller)->no_pwait2);
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

/* A turn is one wait, unless it was told to look first and may sleep; the end of a stream is its close(2). */
static void test_one_call_each(void) {
    st_poller *poller = new_poller();
    for (int i = 0; i < 2; i++) {
        uint64_t waits = count(poller).waits, system_calls = count(poller).system_calls;
        turn(poller, i == 0 ? 1 : 0);
        CHECK(count(poller).waits == waits + 1 && count(poller).system_calls == system_calls + 1);
        poller->spin_ns = 1000000;
    }
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    uint64_t system_calls = count(poller).system_calls;
    poller->ops->stream_close(self->stream, 0);
    CHECK_EQ(count(poller).system_calls, system_calls + 1);
    TURN_UNTIL(poller, self->closed);
    free_owner(self);
    close(fds[1]);
    poller->ops->free(poller);
}

enum { MANY = 200 };

/* Objects come and go in every order: each keeps its place as long as it lives, and places are used again. */
static void test_places_are_used_again(void) {
    st_poller *poller = new_poller();
    st_epoll *inside = (st_epoll *)poller;
    static int fds[MANY][2];
    static owner *all[MANY];
    uint64_t state = 1;
    for (int i = 0; i < MANY; i++)
        unix_pair(fds[i]);
    for (int round = 0; round < 20 * MANY; round++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        int i = (int)(state >> 33) % MANY;
        if (all[i] == NULL) {
            all[i] = open_watch(poller, fds[i][0], ST_READABLE);
        } else {
            close_watch(all[i]);
            all[i] = NULL;
        }
    }
    CHECK(inside->slot_count <= 2 * MANY);
    for (int i = 0; i < MANY; i++) {
        if (all[i] == NULL)
            all[i] = open_watch(poller, fds[i][0], ST_READABLE);
        CHECK(write(fds[i][1], "x", 1) == 1);
    }
    turn(poller, 0);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(all[i]->ready_calls, 1);
    poller->ops->free(poller);
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(all[i]->closed, 1);
        free_owner(all[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
}

/* Whatever can not be had, the rest is given back. */
static void test_out_of_descriptors(void) {
    int fds[2], lowest = dup(0);
    st_poller *poller = new_poller();
    fds[0] = ((st_epoll *)poller)->epoll_fd;
    fds[1] = ((st_epoll *)poller)->wake_fd;
    for (int i = 0; i < 2; i++)
        CHECK(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
    poller->ops->free(poller);
    CHECK(close(lowest) == 0);
    struct rlimit limit, few;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int left = 0; left < 2; left++) {
        few = limit;
        few.rlim_cur = (rlim_t)(lowest + left);
        CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
        int made = 0;
        errno = 0;
        CHECK(st_epoll_new(test_sink(), &made) == NULL);
        CHECK_EQ(made, -EMFILE);
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        int next = dup(0);
        CHECK_EQ(next, lowest);
        CHECK(close(next) == 0);
    }
}

static void none_without(long call, int error) {
    int made = 0, before = open_descriptors();
    answer_with(call, error);
    CHECK(st_epoll_new(test_sink(), &made) == NULL);
    CHECK_EQ(made, -error);
    CHECK_EQ(open_descriptors(), before);
}

static void test_epoll_is_refused(void) { none_without(SYS_epoll_create1, ENOMEM); }
static void test_registration_is_refused(void) { none_without(SYS_epoll_ctl, ENOSPC); }

enum { OTHERS = 3 };
static owner *relayed_to;

static void relay(owner *self, char *data, ssize_t n) {
    (void)self, (void)data, (void)n;
    CHECK_EQ(send_bytes(relayed_to, "first ", 6), 0);
}

static void answer(owner *self, char *data, ssize_t n) {
    (void)data, (void)n;
    CHECK_EQ(send_bytes(self, "second ", 7), 0);
}

static void answer_and_close(owner *self, ssize_t n, size_t rest) {
    (void)n, (void)rest;
    if (self->sends_over == 2)
        CHECK_EQ(send_bytes(self, "third", 5), 0);
    if (self->sends_over == 3)
        self->poller->ops->stream_close(self->stream, 0);
}

/* What is held for a stream leaves earlier when that becomes writable meanwhile, and more can be held then. The stream waits
 * once for all of it, or its second place would outlive it. */
static void test_held_again_in_one_turn(void) {
    st_poller *poller = new_poller();
    owner *all[OTHERS + 1];
    int fds[OTHERS + 1][2];
    char got[18];
    poller->ops->begin(poller);
    for (int i = 0; i <= OTHERS; i++) {
        unix_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
    }
    turn(poller, 0); /* that they are writable is known */
    relayed_to = all[OTHERS];
    all[0]->on_data = relay;
    relayed_to->on_data = answer;
    relayed_to->on_sent = answer_and_close;
    for (int i = 0; i <= OTHERS; i++)
        CHECK(write(fds[i][1], "question", 8) == 8); /* events come in this order */
    TURN_UNTIL(poller, relayed_to->closed);
    CHECK_EQ(relayed_to->sends_over, 3);
    turn(poller, 0);
    read_exactly(fds[OTHERS][1], got, sizeof got);
    CHECK(memcmp(got, "first second third", sizeof got) == 0);
    free_owner(relayed_to);
    for (int i = 0; i < OTHERS; i++)
        close_stream(all[i]);
    for (int i = 0; i <= OTHERS; i++)
        close(fds[i][1]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(a_wait_that_is_missing), TEST(a_wait_that_is_forbidden), TEST(an_old_errno),
        TEST(one_call_each),          TEST(places_are_used_again),     TEST(out_of_descriptors),
        TEST(epoll_is_refused),       TEST(registration_is_refused),
        TEST(held_again_in_one_turn),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
