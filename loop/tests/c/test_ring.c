/* One io_uring by itself: what its calls answer, and what they give back when the kernel refuses. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "st_ring.h"

static void filtered(struct sock_filter *program, size_t length) {
    struct sock_fprog filter = {.len = (unsigned short)length, .filter = program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

/* From here on, in this thread, the call fails; with bytes > 0 only where that is its second argument. */
static void answer_with(long call, int error, size_t bytes) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | (bytes > 0 ? BPF_JEQ : BPF_JGE) | BPF_K, (unsigned)bytes, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((unsigned)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    filtered(program, sizeof program / sizeof program[0]);
}

static void open_ring(st_ring *ring) {
    CHECK_EQ(st_ring_open(ring, ST_RING_ONE_THREAD, 8, 16), 0);
    CHECK_EQ(st_ring_enable(ring), 0);
}

static void queue_nop(st_ring *ring) {
    st_ring_sqe(ring)->opcode = ST_OP_NOP;
    CHECK_EQ(st_ring_queued(ring), 1);
}

/* A poll that is not over until somebody writes there. */
static void queue_poll(st_ring *ring, int fd) {
    st_uring_sqe *sqe = st_ring_sqe(ring);
    sqe->opcode = ST_OP_POLL_ADD;
    sqe->fd = fd;
    sqe->op_flags = POLLIN;
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    sqe->op_flags = (uint32_t)POLLIN << 16;
#endif
}

/* 0 is an answer of its own: neither how many were submitted, nor an interruption where nobody waited. */
static void test_what_calls_answer(void) {
    st_ring ring;
    int event = eventfd(0, EFD_CLOEXEC);
    open_ring(&ring);
    queue_nop(&ring);
    CHECK_EQ(st_ring_submit(&ring), 0);
    CHECK_EQ(st_ring_fetch(&ring), 0);
    CHECK_EQ(st_ring_ready(&ring), 1);
    st_ring_consume(&ring, 1);
    queue_poll(&ring, event);
    CHECK_EQ(st_ring_enter(&ring, 0, -1, 0), 0);
    queue_poll(&ring, event);
    CHECK_EQ(st_ring_enter(&ring, 1, 0, 0), 0);
    queue_poll(&ring, event);
    CHECK_EQ(st_ring_enter(&ring, 1, 1000000, 0), -EINTR); /* the time, or a signal: it can not be told */
    CHECK_EQ(st_ring_ready(&ring), 0);
    st_ring_close(&ring);
    close(event);
}

static void test_refusals_are_told(void) {
    st_ring ring;
    open_ring(&ring);
    queue_nop(&ring);
    answer_with(ST_NR_IO_URING_ENTER, EBUSY, 0);
    CHECK_EQ(st_ring_submit(&ring), -EBUSY);
    CHECK_EQ(st_ring_fetch(&ring), -EBUSY);
    CHECK_EQ(st_ring_enter(&ring, 0, 0, 0), -EBUSY);
    CHECK_EQ(st_ring_enter(&ring, 1, 1000000, 0), -EBUSY);
    CHECK_EQ(st_ring_spin(&ring, 1000000, -1), -EBUSY);
    CHECK_EQ(st_ring_queued(&ring), 1); /* and what was refused is still there */
    st_ring_close(&ring);
}

/* Where the kernel has no minimum it is not asked for one, and all that is waited for counts. */
static void test_no_minimum_where_there_is_none(void) {
    st_ring ring;
    st_ring_missing_features = ST_FEAT_MIN_TIMEOUT;
    open_ring(&ring);
    queue_nop(&ring);
    double begin = now_s();
    CHECK_EQ(st_ring_enter(&ring, 2, 60000000, 1000), 0);
    CHECK(now_s() - begin > 0.05);
    CHECK_EQ(st_ring_ready(&ring), 1);
    st_ring_close(&ring);
}

static void *write_later(void *event) {
    usleep(20000);
    CHECK(write(*(int *)event, &(uint64_t){1}, 8) == 8);
    return NULL;
}

/* A look ends with what is there, and with what only has to be fetched. */
static void test_a_look_ends_early(void) {
    st_ring ring;
    pthread_t thread;
    int event = eventfd(0, EFD_CLOEXEC);
    open_ring(&ring);
    queue_nop(&ring);
    double begin = now_s();
    CHECK_EQ(st_ring_spin(&ring, 5000000000, -1), 1);
    CHECK_EQ(st_ring_ready(&ring), 1);
    st_ring_consume(&ring, 1);
    queue_poll(&ring, event);
    CHECK_EQ(pthread_create(&thread, NULL, write_later, &event), 0);
    CHECK_EQ(st_ring_spin(&ring, 5000000000, -1), 1);
    CHECK(now_s() - begin < 4);
    pthread_join(thread, NULL);
    begin = now_s();
    CHECK_EQ(st_ring_fetch(&ring), 0);
    st_ring_consume(&ring, st_ring_ready(&ring));
    CHECK_EQ(st_ring_spin(&ring, 10000000, -1), 0);
    CHECK(now_s() - begin >= 0.01);
    st_ring_close(&ring);
    close(event);
}

static long pages_mapped(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    CHECK(file != NULL && fscanf(file, "%ld", &pages) == 1);
    fclose(file);
    return pages;
}

enum { BUFFERS = 32768 /* 128 pages of slots */, BYTES = 512, PUBLISHED = 64 };

static void test_closed_is_closed(void) {
    st_ring ring;
    st_buffer_ring buffers;
    long before = pages_mapped();
    for (int i = 0; i < 20; i++) {
        open_ring(&ring);
        CHECK_EQ(st_buffer_ring_map(&buffers, 0, BUFFERS, BYTES, PUBLISHED), 0);
        st_buffer_ring_unmap(&buffers);
        st_ring_close(&ring);
    }
    CHECK(pages_mapped() < before + 20);
    /* Closed once more, it takes nothing of whoever came in its place. */
    open_ring(&ring);
    void *place = ring.ring_map, *sqes = ring.sqes_map;
    st_ring_close(&ring);
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    CHECK(mmap(place, 1, PROT_READ, flags, -1, 0) == place && mmap(sqes, 1, PROT_READ, flags, -1, 0) == sqes);
    st_ring_close(&ring);
    unsigned char resident;
    CHECK(mincore(place, 1, &resident) == 0 && mincore(sqes, 1, &resident) == 0);
}

/* Buffers go into circulation by and by; in a new ring all of these are free again. */
static void test_buffers(void) {
    st_ring ring;
    st_buffer_ring buffers;
    memset(&buffers, 0xff, sizeof buffers);
    CHECK_EQ(st_buffer_ring_map(&buffers, 7, BUFFERS, BYTES, PUBLISHED), 0);
    CHECK(buffers.available == 0 && buffers.tail == 0 && buffers.group == 7 && buffers.published == PUBLISHED);
    for (int round = 0; round < 2; round++) {
        CHECK_EQ(st_ring_open(&ring, ST_RING_ONE_THREAD, 8, 16), 0);
        CHECK_EQ(st_buffer_ring_register(&buffers, &ring), 0);
        CHECK_EQ(buffers.available, buffers.published);
        unsigned published = PUBLISHED << round;
        CHECK_EQ(st_buffer_ring_grow(&buffers), published);
        CHECK(buffers.published == 2 * published && buffers.available == buffers.published);
        CHECK_EQ(buffers.tail, buffers.available);
        for (unsigned id = 0; id < buffers.published; id++)
            CHECK(buffers.slots[id].id == id && buffers.slots[id].address == (uintptr_t)st_buffer_ring_at(&buffers, id));
        st_ring_close(&ring);
    }
    while (st_buffer_ring_grow(&buffers) > 0)
        CHECK(buffers.published <= BUFFERS);
    CHECK_EQ(buffers.published, BUFFERS);
    CHECK(st_buffer_ring_register(&buffers, &ring) < 0); /* it is closed */
    CHECK_EQ(buffers.available, 0);
    st_buffer_ring_unmap(&buffers);
}

/* Without memory for one of the two nothing of the other is kept. */
static void no_memory(long call, size_t bytes) {
    st_buffer_ring buffers;
    long before = pages_mapped();
    answer_with(call, ENOMEM, bytes);
    CHECK_EQ(st_buffer_ring_map(&buffers, 0, BUFFERS, BYTES, PUBLISHED), -ENOMEM);
    CHECK(pages_mapped() < before + 64);
    CHECK(buffers.slots == NULL && buffers.memory == NULL); /* who unmaps them once more takes nobody's place */
    _exit(0); /* a sanitizer needs these calls too */
}

static void test_no_memory_for_the_slots(void) { no_memory(SYS_mmap, BUFFERS * sizeof(st_uring_buffer)); }
static void test_no_memory_for_the_buffers(void) { no_memory(SYS_mmap, (size_t)BUFFERS * BYTES); }
static void test_slots_that_a_fork_would_copy(void) { no_memory(SYS_madvise, BUFFERS * sizeof(st_uring_buffer)); }
static void test_buffers_that_a_fork_would_copy(void) { no_memory(SYS_madvise, (size_t)BUFFERS * BYTES); }

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(what_calls_answer),
        TEST(refusals_are_told),
        TEST(no_minimum_where_there_is_none),
        TEST(a_look_ends_early),
        TEST(closed_is_closed),
        TEST(buffers),
        TEST(no_memory_for_the_slots),
        TEST(no_memory_for_the_buffers),
        TEST(slots_that_a_fork_would_copy),
        TEST(buffers_that_a_fork_would_copy),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
