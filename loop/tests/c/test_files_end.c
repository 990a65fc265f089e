/* Files on io_uring when something is still under way: a poller that ends, a kernel that refuses, a queue that is full. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "st_abi_uring.h"
#include "st_uring_file.h"

static int scratch_file(void) {
    int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    return fd;
}

/* What has no offsets is refused; what has none and does not say so is no obstacle to the end of the poller. */
static void test_endless_reads(void) {
    st_poller *poller = new_poller();
    int fds[2], event = eventfd(0, EFD_CLOEXEC), fd = scratch_file();
    uint64_t count_;
    struct iovec part = {&count_, sizeof count_};
    owner *self = new_owner(poller), *other = new_owner(poller);
    CHECK(pipe2(fds, O_CLOEXEC) == 0);
    CHECK_EQ(poller->ops->file_read(poller, fds[0], &part, 1, 0, self), -ESPIPE);
    CHECK_EQ(poller->ops->file_write(poller, fds[1], &part, 1, 0, 0, self), -ESPIPE);
    CHECK_EQ(poller->ops->file_read(poller, event, &part, 1, 0, self), 0);
    turn(poller, 0);
    CHECK_EQ(count(poller).in_flight, 1);
    double begin = now_s(); /* it is waited for asleep */
    turn(poller, 50);
    CHECK(now_s() - begin > 0.04);
    CHECK_EQ(poller->ops->file_write(poller, fd, &part, 1, 0, ST_FILE_SYNC, other), 0);
    turn(poller, 0);
    poller->ops->free(poller);
    CHECK_EQ(self->files_done, 1);
    CHECK(self->file_result == -ECANCELED || self->file_result == -EINTR);
    CHECK_EQ(other->file_result, sizeof count_);
    free_owner(self);
    free_owner(other);
    close(fds[0]);
    close(fds[1]);
    close(event);
    close(fd);
}

/* More reads than the ring has entries, and none of them ends by itself. */
static void test_many_endless_reads(void) {
    enum { MANY = 200 };
    int event = eventfd(0, EFD_CLOEXEC), before = open_descriptors();
    static uint64_t values[MANY];
    owner *all[MANY];
    st_poller *poller = new_poller();
    for (int i = 0; i < MANY; i++) {
        struct iovec part = {&values[i], sizeof values[i]};
        all[i] = new_owner(poller);
        CHECK_EQ(poller->ops->file_read(poller, event, &part, 1, 0, all[i]), 0);
    }
    turn(poller, 0);
    st_uring_file_free_waits = 20;
    poller->ops->free(poller);
    CHECK_EQ(open_descriptors(), before);
    for (int i = 0; i < MANY; i++) {
        CHECK(all[i]->files_done == 1 && (all[i]->file_result == -ECANCELED || all[i]->file_result == -EINTR));
        free_owner(all[i]);
    }
    close(event);
}

/* A read that got a part when the poller ends does not go on to wait for the rest. */
static void test_half_read_at_the_end(void) {
    int event = eventfd(0, EFD_CLOEXEC);
    char into[16];
    struct iovec part = {into, sizeof into};
    st_poller *poller = new_poller();
    owner *self = new_owner(poller);
    CHECK_EQ(poller->ops->file_read(poller, event, &part, 1, 0, self), 0);
    turn(poller, 0);
    CHECK(write(event, &(uint64_t){1}, 8) == 8);
    usleep(10000);
    st_uring_file_free_waits = 5;
    poller->ops->free(poller);
    CHECK_EQ(self->files_done, 1);
    CHECK_EQ(self->file_result, -ECANCELED);
    free_owner(self);
    close(event);
}

static int shorten, interrupt;

static int32_t spoil(int operation, int32_t result) {
    if (operation != ST_OP_WRITEV || result <= 1)
        return result;
    if (interrupt > 0 && interrupt--)
        return -EINTR;
    return shorten > 0 && shorten-- ? result / 2 : result;
}

/* Writes are ended, however many rounds that takes. What was never begun is not. */
static void test_writes_at_the_end(void) {
    static char data[1000], got[sizeof data];
    struct iovec part = {data, sizeof data};
    int fd = scratch_file(), before = open_descriptors();
    fill_pattern(data, sizeof data, 1);
    st_poller *poller = new_poller();
    owner *begun = new_owner(poller), *queued = new_owner(poller);
    st_uring_file_fault = spoil;
    interrupt = 2;
    CHECK_EQ(poller->ops->file_write(poller, fd, &part, 1, 0, ST_FILE_SYNC, begun), 0);
    shorten = 3;
    turn(poller, 0);
    CHECK_EQ(poller->ops->file_write(poller, fd, &part, 1, 0, ST_FILE_SYNC, queued), 0);
    st_uring_file_free_waits = 3;
    poller->ops->free(poller);
    CHECK(begun->files_done == 1 && begun->file_result == sizeof data);
    CHECK(interrupt == 0 && shorten == 0);
    CHECK(queued->files_done == 1 && queued->file_result == -ECANCELED);
    CHECK(pread(fd, got, sizeof got, 0) == sizeof got && memcmp(got, data, sizeof data) == 0);
    CHECK_EQ(open_descriptors(), before);
    free_owner(begun);
    free_owner(queued);
    close(fd);
}

/* A device that does not answer: the end comes all the same, and nobody is told that the memory is free. */
static void test_a_device_that_hangs(void) {
    uint64_t most = UINT64_MAX - 1, one = 1;
    int event = eventfd(0, EFD_CLOEXEC);
    struct iovec part = {&one, sizeof one};
    CHECK(write(event, &most, sizeof most) == sizeof most); /* full: to write more waits for a reader */
    st_poller *poller = new_poller();
    owner *self = new_owner(poller);
    CHECK_EQ(poller->ops->file_write(poller, event, &part, 1, 0, 0, self), 0);
    turn(poller, 0);
    st_uring_file_free_waits = 2;
    poller->ops->free(poller);
    CHECK_EQ(self->files_done, 0);
    _exit(0); /* what is left behind is no leak */
}

/* More completions than the queue has room for: those that did not fit are fetched. */
static void test_more_completions_than_room(void) {
    enum { MANY = 400 };
    int event = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    static uint64_t values[MANY];
    owner *all[MANY];
    st_poller *poller = new_poller();
    for (int i = 0; i < MANY; i++) {
        struct iovec part = {&values[i], sizeof values[i]};
        all[i] = new_owner(poller);
        CHECK_EQ(poller->ops->file_read(poller, event, &part, 1, 0, all[i]), 0);
    }
    turn(poller, 0);
    CHECK_EQ(count(poller).in_flight, MANY);
    CHECK(write(event, &(uint64_t){MANY}, 8) == 8);
    for (int i = 0; i < MANY; i++) {
        TURN_UNTIL(poller, all[i]->files_done);
        CHECK(all[i]->file_result == 8 && values[i] == 1);
        free_owner(all[i]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
    close(event);
    poller->ops->free(poller);
}

/* In this thread the kernel takes no submission, unless it is a wait for completions as well. */
static void refuse_submissions(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ST_NR_IO_URING_ENTER, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAGAIN),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof program[0], .filter = program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

enum { REFUSED = 50 }; /* with their syncs more than the ring has entries */

typedef struct refused {
    st_poller *poller;
    int fd, count;
    owner *all[2 * REFUSED];
} refused;

static void write_some(refused *self, int first, int count_) {
    static char bytes[8];
    struct iovec part = {bytes, sizeof bytes};
    for (int i = first; i < first + count_; i++, self->count++) {
        self->all[i] = new_owner(self->poller);
        CHECK_EQ(self->poller->ops->file_write(self->poller, self->fd, &part, 1, 8 * i, ST_FILE_SYNC, self->all[i]), 0);
    }
}

static void *turns_in_vain(void *argument) {
    refused *self = argument;
    refuse_submissions();
    write_some(self, 0, 1);
    for (int i = 0; i < 2; i++) {
        double begin = now_s(); /* nobody sleeps on what could not be submitted */
        turn(self->poller, 5000);
        CHECK(now_s() - begin < 2.5);
    }
    return NULL;
}

static void *many_turns_in_vain(void *argument) {
    refused *self = argument;
    turns_in_vain(self);
    write_some(self, 1, REFUSED - 1);
    turn(self->poller, 0);
    write_some(self, REFUSED, REFUSED);
    turn(self->poller, 0);
    return NULL;
}

static void refused_for_now(void *(*in_vain)(void *)) {
    refused self = {.poller = new_poller(), .fd = scratch_file()};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, in_vain, &self), 0);
    pthread_join(thread, NULL);
    for (int i = 0; i < self.count; i++) {
        TURN_UNTIL(self.poller, self.all[i]->files_done);
        CHECK(self.all[i]->files_done == 1 && self.all[i]->file_result == 8);
        free_owner(self.all[i]);
    }
    close(self.fd);
    self.poller->ops->free(self.poller);
}

static void test_refused_for_now(void) { refused_for_now(turns_in_vain); }
static void test_refused_with_a_full_queue(void) { refused_for_now(many_turns_in_vain); }

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(endless_reads),    TEST(many_endless_reads), TEST(half_read_at_the_end),
        TEST(writes_at_the_end), TEST(a_device_that_hangs), TEST(more_completions_than_room),
        TEST(refused_for_now),  TEST(refused_with_a_full_queue),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
