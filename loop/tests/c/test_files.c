/* Files on io_uring: what is acknowledged is whole and synced, whatever goes wrong on the way. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "st_abi_uring.h"
#include "st_uring_file.h"

enum { BYTES = 300000 };

static int scratch_file(void) {
    int fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    return fd;
}

static char *pattern(uint64_t seed) {
    char *data = malloc(BYTES);
    fill_pattern(data, BYTES, seed);
    return data;
}

static int64_t write_file(st_poller *poller, int fd, char *data, size_t n, int64_t offset, int flags) {
    owner *self = new_owner(poller);
    struct iovec parts[3] = {{data, n / 3}, {data + n / 3, n / 3}, {data + n / 3 * 2, n - n / 3 * 2}};
    CHECK_EQ(poller->ops->file_write(poller, fd, parts, 3, offset, flags, self), 0);
    memset(parts, 0xff, sizeof parts);
    CHECK_EQ(self->files_done, 0);
    TURN_UNTIL(poller, self->files_done);
    CHECK_EQ(self->files_done, 1);
    int64_t result = self->file_result;
    free_owner(self);
    return result;
}

static void check_content(int fd, const char *data, size_t n, off_t offset) {
    char *got = malloc(n);
    CHECK(pread(fd, got, n, offset) == (ssize_t)n);
    CHECK(memcmp(got, data, n) == 0);
    free(got);
}

static void test_write_sync_read(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file();
    char *data = pattern(1), *got = calloc(1, BYTES);
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, 0), BYTES);
    CHECK_EQ(write_file(poller, fd, data, 1000, BYTES, ST_FILE_SYNC), 1000);
    check_content(fd, data, BYTES, 0);
    check_content(fd, data, 1000, BYTES);
    owner *self = new_owner(poller);
    struct iovec part = {got, BYTES};
    CHECK_EQ(poller->ops->file_read(poller, fd, &part, 1, 1000, self), 0);
    TURN_UNTIL(poller, self->files_done);
    CHECK_EQ(self->file_result, BYTES);
    CHECK(memcmp(got, data + 1000, BYTES - 1000) == 0 && memcmp(got + BYTES - 1000, data, 1000) == 0);
    CHECK_EQ(poller->ops->file_read(poller, fd, &part, 1, BYTES, self), 0); /* short at the end of the file */
    TURN_UNTIL(poller, self->files_done == 2);
    CHECK_EQ(self->file_result, 1000);
    CHECK_EQ(poller->ops->file_read(poller, fd, &part, 1, 10 * BYTES, self), 0);
    TURN_UNTIL(poller, self->files_done == 3);
    CHECK_EQ(self->file_result, 0);
    CHECK_EQ(poller->ops->file_sync(poller, fd, 1, self), 0);
    TURN_UNTIL(poller, self->files_done == 4);
    CHECK_EQ(self->file_result, 0);
    CHECK_EQ(poller->ops->file_sync(poller, 9999, 0, self), 0);
    TURN_UNTIL(poller, self->files_done == 5);
    CHECK_EQ(self->file_result, -EBADF);
    CHECK_EQ(write_file(poller, 9999, data, 1000, 0, ST_FILE_SYNC), -EBADF);
    CHECK_EQ(poller->ops->file_read(poller, fd, &part, 1, -1, self), -EINVAL);
    CHECK_EQ(poller->ops->file_sync(poller, fd, 0, self), 0);
    int told = 0;
    for (double until = now_s() + 10; self->files_done == 5 && now_s() < until;)
        told += turn(poller, 50);
    CHECK(told > 0); /* a turn counts what it tells */
    turn(poller, 0);
    bool slept = false; /* with nothing under way a turn sleeps as ever; the kernel's word of the last may come late, once */
    for (int i = 0; i < 2 && !slept; i++) {
        double begin = now_s();
        turn(poller, 50);
        slept = now_s() - begin > 0.04;
    }
    CHECK(slept);
    free_owner(self);
    free(data);
    free(got);
    close(fd);
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

static int writes, syncs, shorten, sync_failures, sync_error, write_failures, write_error;

static int32_t fault(int operation, int32_t result) {
    if (operation == ST_OP_FSYNC) {
        syncs++;
        if (sync_failures > 0) {
            sync_failures--;
            return sync_error;
        }
        return result;
    }
    writes++;
    if (write_failures > 0) {
        write_failures--;
        return write_error;
    }
    if (shorten > 0 && result > 1) {
        shorten--;
        return result / 2;
    }
    return result;
}

static void reset_faults(void) {
    writes = syncs = shorten = sync_failures = sync_error = write_failures = write_error = 0;
    st_uring_file_fault = fault;
}

/* The sync that went with a short write says nothing about the rest, even when it returned 0. */
static void test_short_writes(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file();
    char *data = pattern(2);
    for (int times = 1; times <= 5; times++) {
        reset_faults();
        shorten = times;
        CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), BYTES);
        CHECK_EQ(writes, times + 1);
        CHECK_EQ(syncs, times + 1);
        check_content(fd, data, BYTES, 0);
        reset_faults();
        shorten = times;
        CHECK_EQ(write_file(poller, fd, data, BYTES, 0, 0), BYTES);
        CHECK_EQ(writes, times + 1);
        CHECK_EQ(syncs, 0);
    }
    free(data);
    close(fd);
    poller->ops->free(poller);
}

/* Short reads before the end of the file are gone on with, so that they do not look like it. */
static void test_short_reads(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file();
    char *data = pattern(8), *got = malloc(BYTES);
    reset_faults();
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, 0), BYTES);
    for (int times = 0; times <= 5; times++) {
        for (int64_t offset = 0; offset <= 100; offset += 100) {
            owner *self = new_owner(poller);
            struct iovec parts[3] = {{got, 10}, {got + 10, 0}, {got + 10, BYTES - 10}};
            memset(got, 0, BYTES);
            reset_faults();
            shorten = times;
            CHECK_EQ(poller->ops->file_read(poller, fd, parts, 3, offset, self), 0);
            TURN_UNTIL(poller, self->files_done);
            CHECK_EQ(self->file_result, BYTES - offset);
            CHECK(memcmp(got, data + offset, (size_t)(BYTES - offset)) == 0);
            CHECK_EQ(writes, times + 1 + (offset > 0)); /* one more asks whether it was the end */
            free_owner(self);
        }
    }
    free(data);
    free(got);
    close(fd);
    poller->ops->free(poller);
}

static void test_failing_sync(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file();
    char *data = pattern(3);
    reset_faults();
    sync_failures = 1;
    sync_error = -EIO;
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), -EIO);
    CHECK_EQ(syncs, 1); /* not tried again: the kernel has forgotten what it could not write */
    reset_faults();
    shorten = 1;
    sync_failures = 2;
    sync_error = -EIO;
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), -EIO);
    /* Canceled is not failed: written and synced once more. */
    reset_faults();
    sync_failures = 2;
    sync_error = -ECANCELED;
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), BYTES);
    CHECK(writes == 3 && syncs == 3);
    reset_faults();
    sync_failures = 1000;
    sync_error = -ECANCELED;
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), -ECANCELED); /* but not for ever */
    reset_faults();
    write_failures = 1;
    write_error = -ENOSPC;
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), -ENOSPC);
    reset_faults();
    write_failures = 1000;
    write_error = -EINTR;
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), -EINTR);
    CHECK(writes > 1 && writes < 100);
    const int passing[] = {-EINTR, -EAGAIN, -ECANCELED};
    for (int i = 0; i < 3; i++) {
        reset_faults();
        write_failures = sync_failures = 2;
        write_error = sync_error = passing[i];
        CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), BYTES);
        CHECK(writes >= 3 && writes <= 5 && syncs == writes);
        reset_faults();
        write_failures = 2;
        write_error = passing[i];
        owner *self = new_owner(poller);
        struct iovec part = {data, BYTES};
        CHECK_EQ(poller->ops->file_read(poller, fd, &part, 1, 0, self), 0);
        TURN_UNTIL(poller, self->files_done);
        CHECK(self->file_result == BYTES && writes == 3);
        free_owner(self);
    }
    free(data);
    close(fd);
    poller->ops->free(poller);
}

static int canceled_syncs;

static int32_t note_canceled_sync(int operation, int32_t result) {
    canceled_syncs += operation == ST_OP_FSYNC && result == -ECANCELED;
    return result;
}

/* A real one: a write that crosses the size limit of the process is short, and its rest fails. */
static void test_really_short_write(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file();
    char *data = pattern(4);
    st_uring_file_fault = note_canceled_sync;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit limit = {200000, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_EQ(write_file(poller, fd, data, BYTES, 0, ST_FILE_SYNC), -EFBIG);
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && status.st_size == 200000);
    CHECK_EQ(canceled_syncs, 2); /* with the short write and with the failed one: the link held them back */
    CHECK_EQ(write_file(poller, fd, data, 200000, 0, ST_FILE_SYNC), 200000);
    free(data);
    close(fd);
    poller->ops->free(poller);
}

/* More chains at once than the ring has entries, while a stream is served beside them. */
static void test_many_at_once(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file(), fds[2];
    enum { MANY = 500, EACH = 600 };
    char *data = pattern(5);
    owner *all[MANY];
    tcp_pair(fds);
    owner *stream = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(stream->stream, ST_READ_COPY);
    for (int i = 0; i < MANY; i++) {
        struct iovec part = {data + i * EACH, EACH};
        all[i] = new_owner(poller);
        CHECK_EQ(poller->ops->file_write(poller, fd, &part, 1, i * EACH, i % 2 ? ST_FILE_SYNC : 0, all[i]), 0);
    }
    CHECK(write(fds[1], "meanwhile", 9) == 9);
    for (int i = 0; i < MANY; i++) {
        TURN_UNTIL(poller, all[i]->files_done);
        CHECK_EQ(all[i]->file_result, EACH);
        free_owner(all[i]);
    }
    TURN_UNTIL(poller, stream->bytes == 9);
    check_content(fd, data, (size_t)MANY * EACH, 0);
    close_stream(stream);
    close(fds[1]);
    free(data);
    close(fd);
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

typedef struct elsewhere {
    st_poller *poller;
    owner *all[10];
} elsewhere;

static void *finish_elsewhere(void *argument) {
    elsewhere *self = argument;
    for (int i = 0; i < 10; i++)
        TURN_UNTIL(self->poller, self->all[i]->files_done);
    return NULL;
}

/* Submitted in one thread, finished in another; freed with writes in flight: memory is free only after the kernel is done. */
static void test_threads_and_free(void) {
    for (int round = 0; round < 10; round++) {
        elsewhere self = {.poller = new_poller()};
        int fd = scratch_file();
        char *data = pattern(6);
        struct iovec part = {data, BYTES};
        for (int i = 0; i < 10; i++) {
            self.all[i] = new_owner(self.poller);
            CHECK_EQ(self.poller->ops->file_write(self.poller, fd, &part, 1, i * BYTES, ST_FILE_SYNC, self.all[i]), 0);
        }
        turn(self.poller, 0);
        if (round % 2) {
            pthread_t thread;
            pthread_create(&thread, NULL, finish_elsewhere, &self);
            pthread_join(thread, NULL);
        }
        self.poller->ops->free(self.poller);
        free(data);
        for (int i = 0; i < 10; i++) {
            CHECK_EQ(self.all[i]->files_done, 1);
            CHECK(self.all[i]->file_result == BYTES || (round % 2 == 0 && self.all[i]->file_result == -ECANCELED));
            free_owner(self.all[i]);
        }
        close(fd);
    }
}

static void test_fork(void) {
    st_poller *poller = new_poller();
    int fd = scratch_file();
    char *data = pattern(7);
    struct iovec part = {data, BYTES};
    owner *self = new_owner(poller);
    CHECK_EQ(poller->ops->file_write(poller, fd, &part, 1, 0, ST_FILE_SYNC, self), 0);
    turn(poller, 0);
    pid_t child = fork();
    if (child == 0) {
        int open = open_descriptors();
        poller->ops->after_fork(poller);
        CHECK_EQ(open_descriptors(), open - 3); /* two rings and what wakes them */
        CHECK_EQ(poller->ops->file_sync(poller, fd, 0, self), -EBADF);
        int before = self->files_done;
        poller->ops->free(poller);
        CHECK(self->files_done == 1 && (before == 1 || self->file_result == -ECANCELED));
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    TURN_UNTIL(poller, self->files_done);
    CHECK_EQ(self->file_result, BYTES);
    free_owner(self);
    free(data);
    close(fd);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(write_sync_read),   TEST(short_writes), TEST(short_reads), TEST(failing_sync),     TEST(really_short_write),
        TEST(many_at_once),      TEST(threads_and_free), TEST(fork),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
