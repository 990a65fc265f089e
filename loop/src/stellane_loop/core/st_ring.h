/* One io_uring: set-up with the best flags the kernel takes, submission and completion queues, rings of
 * provided buffers. Knows nothing of sockets or pollers. Errors are negative errno values.
 *
 * Of a ring for one thread, only the one that enabled it may enter or submit where the kernel knows
 * SINGLE_ISSUER (6.1); others get -EEXIST. Reading completions and closing are possible from any thread.
 */
#ifndef ST_RING_H
#define ST_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "st_abi_uring.h"

typedef struct st_ring {
    int fd;
    int enter_fd;         /* what enters name it by: fd, or its number in the thread it is attached to */
    unsigned enter_flags; /* ST_ENTER_REGISTERED_RING while it is attached */
    unsigned setup_flags; /* the rung of the ladder that was granted */
    unsigned features;
    unsigned sq_entries, cq_entries;
    unsigned sq_mask, cq_mask;
    unsigned sq_tail; /* ours; the kernel sees it at the next enter */
    unsigned *kernel_sq_head, *kernel_sq_tail, *kernel_sq_flags;
    unsigned *kernel_cq_head, *kernel_cq_tail, *kernel_cq_overflow;
    st_uring_sqe *sqes;
    st_uring_cqe *cqes;
    void *ring_map, *sqes_map;
    size_t ring_map_bytes, sqes_map_bytes;
    uint64_t enters, system_calls;
} st_ring;

typedef struct st_buffer_ring {
    st_uring_buffer *slots; /* what the kernel reads; NULL: not registered */
    char *memory;           /* `count` buffers of `bytes` */
    unsigned count, bytes, group;
    unsigned published; /* buffers in circulation: 0..published-1. Few stay warm in the cache */
    unsigned available; /* published and, as far as completions have told, not taken */
    uint16_t tail;
} st_buffer_ring;

/* entries and cq_entries are powers of two; the kernel may give less than asked. The ring takes
 * registrations, but no submissions before st_ring_enable(), which restricts it to the operations we use. */
enum { ST_RING_ANY_THREAD = 0, ST_RING_ONE_THREAD = 1 };
int st_ring_open(st_ring *ring, int threads, unsigned entries, unsigned cq_entries);
int st_ring_enable(st_ring *ring);
/* Spares each enter the look-up of the descriptor: until st_ring_detach() only this thread may enter. The thread then holds
 * the ring, whoever closes it, and with it the sockets of its requests; no other one can end that while the thread
 * lives. So it is detached, here, before the ring may be used or closed elsewhere. Where the kernel refuses, nothing changes. */
void st_ring_attach(st_ring *ring);
void st_ring_detach(st_ring *ring);
/* The kernel cancels what is in flight a little later, on its own; completions not yet read are lost. */
void st_ring_close(st_ring *ring);
/* In a forked child, which has the descriptor, but not the mappings. */
void st_ring_close_fd(st_ring *ring);
/* Every completion posted signals this eventfd. Before st_ring_enable(). */
int st_ring_notify(st_ring *ring, int eventfd);

/* Submission entries that can be taken before the next enter. */
unsigned st_ring_room(const st_ring *ring);
/* A zeroed entry. There must be room: what is taken will be submitted. */
st_uring_sqe *st_ring_sqe(st_ring *ring);
unsigned st_ring_queued(const st_ring *ring);
/* How far the kernel has taken entries, counted as ring->sq_tail is. */
unsigned st_ring_taken(const st_ring *ring);

/* Submits what is queued and runs what the kernel deferred. With wait > 0 blocks until that many completions
 * are there, or 1 after min_wait_us, at most timeout_ns (< 0: no limit). 0: completions were there, or the time is up. */
int st_ring_enter(st_ring *ring, unsigned wait, int64_t timeout_ns, uint32_t min_wait_us);
/* Submits, then looks for spin_ns, timeout_ns at most, without sleeping. 1: there is something; 0: not yet; or -errno. */
int st_ring_spin(st_ring *ring, int64_t spin_ns, int64_t timeout_ns);
/* Submits only: does not look for completions. */
int st_ring_submit(st_ring *ring);
/* Fetches completions only: makes room where the kernel refuses to take more (-EBUSY). */
int st_ring_fetch(st_ring *ring);

/* The kernel has completions it could not put into the queue; enter fetches them. */
int st_ring_overflowed(const st_ring *ring);
/* The kernel had no memory to keep a completion: whoever waits for it would wait for ever. */
bool st_ring_lost(const st_ring *ring);
/* Deferred work waits for an enter, which therefore will not block. */
int st_ring_work_waits(const st_ring *ring);
/* Completions that are there now; st_ring_cqe(ring, 0) is the oldest. */
unsigned st_ring_ready(const st_ring *ring);
st_uring_cqe *st_ring_cqe(const st_ring *ring, unsigned index);
void st_ring_consume(st_ring *ring, unsigned count);

/* Maps memory for `count` (a power of two, at most 32768) buffers once; publishes at first `published` of them. */
int st_buffer_ring_map(st_buffer_ring *buffers, unsigned group, unsigned count, unsigned bytes, unsigned published);
/* Makes them known to a ring, which may be a new one: all published buffers are free again. */
int st_buffer_ring_register(st_buffer_ring *buffers, st_ring *ring);
void st_buffer_ring_return(st_buffer_ring *buffers, unsigned id);
/* Doubles what is in circulation. 0 when everything already is. */
unsigned st_buffer_ring_grow(st_buffer_ring *buffers);
void st_buffer_ring_unmap(st_buffer_ring *buffers);
static inline char *st_buffer_ring_at(const st_buffer_ring *buffers, unsigned id) {
    return buffers->memory + (size_t)id * buffers->bytes;
}

#ifdef ST_TESTING
/* Tests play an older kernel: set-up flags that are refused with EINVAL, and features that are not there. */
extern unsigned st_ring_refused_flags;
extern unsigned st_ring_missing_features;
#endif

#endif
