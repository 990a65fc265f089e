#define _GNU_SOURCE
#include "st_ring.h"
#include "st_clock.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Kernel threads that may run file operations of one ring at the same time. */
enum { IOWQ_WORKERS_MAX = 4 };

enum { NO_LIMIT_S = 24 * 3600 }; /* of a wait that has a minimum, but no limit */

#ifdef ST_TESTING
unsigned st_ring_refused_flags;
unsigned st_ring_missing_features;
#endif

/* The rings are shared memory between this process and its kernel: acquire what the other side published,
 * release what it is to see. */
static inline unsigned load_acquire(const unsigned *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline void store_release(unsigned *word, unsigned value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

static int sys_setup(unsigned entries, st_uring_params *params) {
#ifdef ST_TESTING
    if (params->flags & st_ring_refused_flags)
        return -EINVAL;
#endif
    long fd = syscall(ST_NR_IO_URING_SETUP, entries, params);
#ifdef ST_TESTING
    params->features &= ~st_ring_missing_features;
#endif
    return fd < 0 ? -errno : (int)fd;
}

static int sys_register(st_ring *ring, unsigned operation, void *argument, unsigned count) {
    ring->system_calls++;
    long result = syscall(ST_NR_IO_URING_REGISTER, ring->fd, operation, argument, count);
    return result < 0 ? -errno : (int)result;
}

/* Best first. A kernel says EINVAL to a flag it does not know, so the first rung it takes is the best it
 * has; version strings lie (vendors backport). */
static const unsigned ladder[] = {
    ST_SETUP_SINGLE_ISSUER | ST_SETUP_DEFER_TASKRUN | ST_SETUP_TASKRUN_FLAG | ST_SETUP_NO_SQARRAY,
    ST_SETUP_SINGLE_ISSUER | ST_SETUP_DEFER_TASKRUN | ST_SETUP_TASKRUN_FLAG,
    ST_SETUP_COOP_TASKRUN | ST_SETUP_TASKRUN_FLAG,
};
#define LADDER_RUNGS (sizeof ladder / sizeof ladder[0])

static int setup(int threads, unsigned entries, unsigned cq_entries, st_uring_params *params) {
    int fd = -EINVAL;
    for (size_t rung = 0; rung < LADDER_RUNGS && fd == -EINVAL; rung++) {
        if (threads == ST_RING_ANY_THREAD && (ladder[rung] & ST_SETUP_SINGLE_ISSUER))
            continue;
        memset(params, 0, sizeof *params);
        params->flags = ladder[rung] | ST_SETUP_SUBMIT_ALL | ST_SETUP_CQSIZE | ST_SETUP_CLAMP | ST_SETUP_R_DISABLED;
        params->cq_entries = cq_entries;
        fd = sys_setup(entries, params);
    }
    /* Every rung refused: the kernel is older than 5.19, and what we build on is not there. */
    return fd == -EINVAL ? -ENOSYS : fd;
}

static int map_rings(st_ring *ring, const st_uring_params *params) {
    size_t sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params->cq_off.cqes + params->cq_entries * sizeof(st_uring_cqe);
    ring->ring_map_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    ring->sqes_map_bytes = params->sq_entries * sizeof(st_uring_sqe);
    const int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    ring->ring_map = mmap(NULL, ring->ring_map_bytes, protection, flags, ring->fd, (off_t)ST_MMAP_SQ_RING);
    if (ring->ring_map == MAP_FAILED)
        return -errno;
    ring->sqes_map = mmap(NULL, ring->sqes_map_bytes, protection, flags, ring->fd, (off_t)ST_MMAP_SQES);
    if (ring->sqes_map == MAP_FAILED)
        return -errno;
    /* A forked child that wrote here would write into its parent's ring. */
    if (madvise(ring->ring_map, ring->ring_map_bytes, MADV_DONTFORK) != 0 ||
        madvise(ring->sqes_map, ring->sqes_map_bytes, MADV_DONTFORK) != 0)
        return -errno;

    char *base = ring->ring_map;
    ring->kernel_sq_head = (unsigned *)(void *)(base + params->sq_off.head);
    ring->kernel_sq_tail = (unsigned *)(void *)(base + params->sq_off.tail);
    ring->kernel_sq_flags = (unsigned *)(void *)(base + params->sq_off.flags);
    ring->kernel_cq_head = (unsigned *)(void *)(base + params->cq_off.head);
    ring->kernel_cq_tail = (unsigned *)(void *)(base + params->cq_off.tail);
    ring->kernel_cq_overflow = (unsigned *)(void *)(base + params->cq_off.overflow);
    ring->cqes = (st_uring_cqe *)(void *)(base + params->cq_off.cqes);
    ring->sqes = ring->sqes_map;
    ring->sq_tail = *ring->kernel_sq_tail;
    if (!(params->flags & ST_SETUP_NO_SQARRAY)) {
        unsigned *array = (unsigned *)(void *)(base + params->sq_off.array);
        for (unsigned i = 0; i < params->sq_entries; i++)
            array[i] = i;
    }
    return 0;
}

/* Operations that the rest of this program asks for, and nothing else: whoever gets hold of the ring's
 * descriptor can not open files or connect through it. */
int st_ring_enable(st_ring *ring) {
    uint32_t workers[2] = {IOWQ_WORKERS_MAX, 0}; /* for files; 0: sockets never need one, leave as is */
    sys_register(ring, ST_REGISTER_IOWQ_MAX_WORKERS, workers, 2);
    static const uint8_t operations[] = {ST_OP_NOP,  ST_OP_READV,  ST_OP_WRITEV,       ST_OP_FSYNC, ST_OP_POLL_ADD,
                                         ST_OP_SEND, ST_OP_RECV,   ST_OP_ASYNC_CANCEL, ST_OP_ACCEPT, ST_OP_SENDMSG};
    st_uring_restriction allowed[sizeof operations + 3];
    memset(allowed, 0, sizeof allowed);
    unsigned count = 0;
    for (; count < sizeof operations; count++) {
        allowed[count].kind = ST_RESTRICT_SQE_OP;
        allowed[count].value = operations[count];
    }
    for (uint8_t operation = ST_REGISTER_RING_FDS; operation <= ST_UNREGISTER_RING_FDS; operation++) {
        allowed[count].kind = ST_RESTRICT_REGISTER_OP;
        allowed[count++].value = operation;
    }
    allowed[count].kind = ST_RESTRICT_SQE_FLAGS_ALLOWED;
    allowed[count++].value = ST_SQE_LINK | ST_SQE_BUFFER_SELECT | ST_SQE_SKIP_SUCCESS;
    int error = sys_register(ring, ST_REGISTER_RESTRICTIONS, allowed, count);
    return error < 0 ? error : sys_register(ring, ST_REGISTER_ENABLE_RINGS, NULL, 0);
}

/* Multishot receive came with 6.0 and has no bit of its own; SEND_ZC came with the same release. */
static int check_operations(st_ring *ring) {
    st_uring_ops_probe probe;
    memset(&probe, 0, sizeof probe);
    int error = sys_register(ring, ST_REGISTER_PROBE, &probe, ST_PROBE_OPS);
    if (error < 0)
        return error;
    const unsigned needed = ST_FEAT_SINGLE_MMAP | ST_FEAT_NODROP | ST_FEAT_SUBMIT_STABLE | ST_FEAT_FAST_POLL |
                            ST_FEAT_EXT_ARG | ST_FEAT_CQE_SKIP;
    if ((ring->features & needed) != needed || probe.last_op < ST_OP_SEND_ZC || !(probe.ops[ST_OP_SEND_ZC].flags & 1))
        return -ENOSYS;
    return 0;
}

int st_ring_open(st_ring *ring, int threads, unsigned entries, unsigned cq_entries) {
    memset(ring, 0, sizeof *ring);
    ring->ring_map = ring->sqes_map = MAP_FAILED;
    st_uring_params params;
    ring->fd = setup(threads, entries, cq_entries, &params);
    ring->enter_fd = ring->fd;
    if (ring->fd < 0)
        return ring->fd;
    ring->setup_flags = params.flags;
    ring->features = params.features;
    ring->sq_entries = params.sq_entries;
    ring->cq_entries = params.cq_entries;
    ring->sq_mask = params.sq_entries - 1;
    ring->cq_mask = params.cq_entries - 1;
    int error = check_operations(ring);
    if (error == 0)
        error = map_rings(ring, &params);
    if (error < 0)
        st_ring_close(ring);
    return error;
}

void st_ring_attach(st_ring *ring) {
    st_uring_ring_fd registration = {.index = UINT32_MAX, .fd = (uint64_t)ring->fd};
    /* A thread has room for 16 of them. */
    if (sys_register(ring, ST_REGISTER_RING_FDS, &registration, 1) != 1)
        return;
    ring->enter_fd = (int)registration.index;
    ring->enter_flags = ST_ENTER_REGISTERED_RING;
}

void st_ring_detach(st_ring *ring) {
    st_uring_ring_fd registration = {.index = (uint32_t)ring->enter_fd};
    if (ring->enter_flags == 0)
        return;
    sys_register(ring, ST_UNREGISTER_RING_FDS, &registration, 1);
    ring->enter_fd = ring->fd;
    ring->enter_flags = 0;
}

void st_ring_close_fd(st_ring *ring) {
    if (ring->fd >= 0) {
        close(ring->fd);
        ring->fd = ring->enter_fd = -1;
    }
}

void st_ring_close(st_ring *ring) {
    st_ring_close_fd(ring);
    if (ring->sqes_map != MAP_FAILED)
        munmap(ring->sqes_map, ring->sqes_map_bytes);
    if (ring->ring_map != MAP_FAILED)
        munmap(ring->ring_map, ring->ring_map_bytes);
    ring->ring_map = ring->sqes_map = MAP_FAILED;
}

int st_ring_notify(st_ring *ring, int eventfd) { return sys_register(ring, ST_REGISTER_EVENTFD, &eventfd, 1); }

unsigned st_ring_queued(const st_ring *ring) { return ring->sq_tail - load_acquire(ring->kernel_sq_head); }

unsigned st_ring_taken(const st_ring *ring) { return load_acquire(ring->kernel_sq_head); }

unsigned st_ring_room(const st_ring *ring) { return ring->sq_entries - st_ring_queued(ring); }

st_uring_sqe *st_ring_sqe(st_ring *ring) {
    st_uring_sqe *sqe = &ring->sqes[ring->sq_tail++ & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

static int enter(st_ring *ring, unsigned submit, unsigned wait, unsigned flags, void *argument, size_t bytes) {
    ring->enters++;
    ring->system_calls++;
    long result = syscall(ST_NR_IO_URING_ENTER, ring->enter_fd, submit, wait, flags | ring->enter_flags, argument, bytes);
    return result < 0 ? -errno : (int)result;
}

int st_ring_submit(st_ring *ring) {
    store_release(ring->kernel_sq_tail, ring->sq_tail);
    int result = enter(ring, st_ring_queued(ring), 0, 0, NULL, 0);
    return result < 0 ? result : 0;
}

int st_ring_fetch(st_ring *ring) {
    int result = enter(ring, 0, 0, ST_ENTER_GETEVENTS, NULL, 0);
    return result < 0 ? result : 0;
}

int st_ring_enter(st_ring *ring, unsigned wait, int64_t timeout_ns, uint32_t min_wait_us) {
    st_uring_timespec limit;
    st_uring_getevents argument;
    memset(&argument, 0, sizeof argument);
    store_release(ring->kernel_sq_tail, ring->sq_tail);
    unsigned queued = st_ring_queued(ring);
    /* Without GETEVENTS a ring with deferred work would submit and never complete anything. */
    unsigned flags = ST_ENTER_GETEVENTS | ST_ENTER_EXT_ARG;
    if (wait > 0) {
        /* To the kernel the minimum of a wait without limit is its limit too: it would return with nothing. */
        if (timeout_ns < 0 && min_wait_us > 0)
            timeout_ns = NO_LIMIT_S * ST_NS_PER_S;
        if (timeout_ns >= 0) {
            limit.seconds = timeout_ns / ST_NS_PER_S;
            limit.nanoseconds = timeout_ns % ST_NS_PER_S;
            argument.timespec = (uint64_t)(uintptr_t)&limit;
        }
        if (ring->features & ST_FEAT_MIN_TIMEOUT)
            argument.min_wait_us = min_wait_us;
        if (ring->features & ST_FEAT_NO_IOWAIT)
            flags |= ST_ENTER_NO_IOWAIT;
    }
    int result = enter(ring, queued, wait, flags, &argument, sizeof argument);
    if (result == -ETIME)
        return 0;
    if (result >= 0 && queued > 0 && wait > 0 && timeout_ns != 0 && st_ring_ready(ring) == 0)
        /* What was submitted hides why the wait ended: the time, or a signal. Who is told of a signal that
         * was none looks once in vain; who is not told of one may sleep on it. */
        return -EINTR;
    return result < 0 ? result : 0;
}

int st_ring_spin(st_ring *ring, int64_t spin_ns, int64_t timeout_ns) {
    int64_t end_ns = st_spin_end_ns(st_now_ns(), spin_ns, timeout_ns);
    int error = st_ring_enter(ring, 0, 0, 0);
    while (!error) {
        if (st_ring_ready(ring) > 0 || st_ring_work_waits(ring)) return 1;
        if (st_now_ns() >= end_ns) return 0;
    }
    return error;
}

int st_ring_overflowed(const st_ring *ring) { return (load_acquire(ring->kernel_sq_flags) & ST_SQ_CQ_OVERFLOW) != 0; }

bool st_ring_lost(const st_ring *ring) { return load_acquire(ring->kernel_cq_overflow) != 0; }

int st_ring_work_waits(const st_ring *ring) { return (load_acquire(ring->kernel_sq_flags) & ST_SQ_TASKRUN) != 0; }

unsigned st_ring_ready(const st_ring *ring) { return load_acquire(ring->kernel_cq_tail) - *ring->kernel_cq_head; }

st_uring_cqe *st_ring_cqe(const st_ring *ring, unsigned index) {
    return &ring->cqes[(*ring->kernel_cq_head + index) & ring->cq_mask];
}

void st_ring_consume(st_ring *ring, unsigned count) { store_release(ring->kernel_cq_head, *ring->kernel_cq_head + count); }

static void *map_private(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    /* The kernel has pinned these pages: a copy made at fork would leave the parent with the wrong ones. */
    if (madvise(memory, bytes, MADV_DONTFORK) != 0) {
        munmap(memory, bytes);
        return NULL;
    }
    return memory;
}

int st_buffer_ring_map(st_buffer_ring *buffers, unsigned group, unsigned count, unsigned bytes, unsigned published) {
    memset(buffers, 0, sizeof *buffers);
    buffers->count = count;
    buffers->bytes = bytes;
    buffers->group = group;
    buffers->published = published < count ? published : count;
    buffers->slots = map_private(count * sizeof(st_uring_buffer));
    buffers->memory = map_private((size_t)count * bytes);
    if (buffers->slots == NULL || buffers->memory == NULL) {
        st_buffer_ring_unmap(buffers);
        return -ENOMEM;
    }
    return 0;
}

int st_buffer_ring_register(st_buffer_ring *buffers, st_ring *ring) {
    st_uring_buffer_register registration = {
        .ring_address = (uint64_t)(uintptr_t)buffers->slots,
        .ring_entries = buffers->count,
        .group = (uint16_t)buffers->group,
    };
    buffers->tail = 0;
    buffers->available = 0;
    __atomic_store_n(&buffers->slots[0].tail, 0, __ATOMIC_RELEASE);
    int error = sys_register(ring, ST_REGISTER_PBUF_RING, &registration, 1);
    if (error < 0)
        return error;
    for (unsigned id = 0; id < buffers->published; id++)
        st_buffer_ring_return(buffers, id);
    return 0;
}

void st_buffer_ring_return(st_buffer_ring *buffers, unsigned id) {
    st_uring_buffer *slot = &buffers->slots[buffers->tail & (buffers->count - 1)];
    slot->address = (uint64_t)(uintptr_t)st_buffer_ring_at(buffers, id);
    slot->length = buffers->bytes;
    slot->id = (uint16_t)id;
    buffers->tail++;
    buffers->available++;
    __atomic_store_n(&buffers->slots[0].tail, buffers->tail, __ATOMIC_RELEASE);
}

unsigned st_buffer_ring_grow(st_buffer_ring *buffers) {
    unsigned more = buffers->count - buffers->published;
    if (more > buffers->published)
        more = buffers->published;
    for (unsigned i = 0; i < more; i++)
        st_buffer_ring_return(buffers, buffers->published + i);
    buffers->published += more;
    return more;
}

void st_buffer_ring_unmap(st_buffer_ring *buffers) {
    if (buffers->slots != NULL)
        munmap(buffers->slots, buffers->count * sizeof(st_uring_buffer));
    if (buffers->memory != NULL)
        munmap(buffers->memory, (size_t)buffers->count * buffers->bytes);
    memset(buffers, 0, sizeof *buffers);
}
