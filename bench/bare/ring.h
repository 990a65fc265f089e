/* An io_uring on the raw system calls, as the reference servers need it: one thread submits and waits by one
 * io_uring_enter a turn. */
#ifndef RING_H
#define RING_H
#include <errno.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    ENTRIES = 4096,
    COMPLETIONS = 16384,
    TAGS = 4, /* user_data is the owner's address, and in its low bits a number below this */
};

static int ring_fd;
static unsigned *sq_tail, *sq_head, sq_mask, *cq_head, *cq_tail, cq_mask, queued;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Submit what is queued, and wait for `wait` completions. */
static void enter(unsigned wait) {
    long submitted = syscall(SYS_io_uring_enter, ring_fd, queued, wait,
                             IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, 0);
    if (submitted >= 0)
        queued -= (unsigned)submitted;
    else if (errno != EINTR && errno != EBUSY && errno != EAGAIN)
        die("io_uring: io_uring_enter");
}

static struct io_uring_sqe *new_sqe(int op, int fd, void *owner, unsigned tag) {
    while (*sq_tail - __atomic_load_n(sq_head, __ATOMIC_ACQUIRE) > sq_mask) enter(0);
    struct io_uring_sqe *sqe = &sqes[*sq_tail & sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = (uint8_t)op;
    sqe->fd = fd;
    sqe->user_data = (uintptr_t)owner | tag;
    return sqe;
}

static void push_sqe(void) {
    __atomic_store_n(sq_tail, *sq_tail + 1, __ATOMIC_RELEASE);
    queued++;
}

/* Set up the ring; returns its descriptor. */
static int map_ring(void) {
    struct io_uring_params p = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE,
        .cq_entries = COMPLETIONS};
    ring_fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
    if (ring_fd < 0) die("io_uring: io_uring_setup (Linux 6.1 or later, and allowed)");
    size_t size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    size_t sq_size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    char *ring = mmap(NULL, size > sq_size ? size : sq_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd,
                      IORING_OFF_SQ_RING);
    sqes = mmap(NULL, p.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd,
                IORING_OFF_SQES);
    if (ring == MAP_FAILED || sqes == MAP_FAILED) die("io_uring: mmap");
    sq_head = (unsigned *)(ring + p.sq_off.head);
    sq_tail = (unsigned *)(ring + p.sq_off.tail);
    cq_head = (unsigned *)(ring + p.cq_off.head);
    cq_tail = (unsigned *)(ring + p.cq_off.tail);
    sq_mask = p.sq_entries - 1;
    cq_mask = p.cq_entries - 1;
    cqes = (struct io_uring_cqe *)(ring + p.cq_off.cqes);
    unsigned *array = (unsigned *)(ring + p.sq_off.array);
    for (unsigned i = 0; i < p.sq_entries; i++) array[i] = i;
    struct io_uring_rsrc_update own = {.offset = -1U, .data = (uint64_t)ring_fd};
    if (syscall(SYS_io_uring_register, ring_fd, IORING_REGISTER_RING_FDS, &own, 1) != 1) die("io_uring: register ring");
    int real = ring_fd;
    ring_fd = (int)own.offset; /* from here on enter() names the ring by its registered index */
    return real;
}

/* What a server does with one completion. */
static void on_completion(void *owner, unsigned tag, const struct io_uring_cqe *cqe);

/* Hand over everything that is complete. */
static void reap(void) {
    unsigned head = *cq_head, tail = __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE);
    for (; head != tail; head++) {
        const struct io_uring_cqe *cqe = &cqes[head & cq_mask];
        on_completion((void *)(uintptr_t)(cqe->user_data & ~(uint64_t)(TAGS - 1)), cqe->user_data & (TAGS - 1), cqe);
    }
    __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
}

#endif
