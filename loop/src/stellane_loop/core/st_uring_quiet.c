/* Sends whose success the kernel does not report (IOSQE_CQE_SKIP_SUCCESS). Being nonblocking, a send is over when the enter
 * that submitted it returns; when it has no completion by then, all of it has left. So answers cost no completion, and an
 * enter that submits them can sleep for what comes next, where it would return at once to tell that they left.
 *
 * A short send has to be a failure for this, hence MSG_WAITALL, and the failure has to tell how much had left. Kernels
 * before 6.1 said EAGAIN to both, and a stream would repeat itself: it is tried, not looked up, because fixes travel. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "st_uring.h"

#ifdef ST_TESTING
bool st_uring_quiet_refused;
#endif

enum { QUIET_FIRST = 64, TRIAL_BYTES = 65536 };

static bool tells_of_short_send(st_ring *ring, int from, int to) {
    static const char zeros[TRIAL_BYTES];
    st_uring_sqe *sqe = st_ring_sqe(ring);
    sqe->opcode = ST_OP_SEND;
    sqe->flags = ST_SQE_SKIP_SUCCESS;
    sqe->fd = from;
    sqe->address = (uint64_t)(uintptr_t)zeros;
    sqe->length = sizeof zeros;
    sqe->op_flags = MSG_NOSIGNAL | MSG_DONTWAIT | MSG_WAITALL;
    int arrived = 0;
    if (st_ring_enter(ring, 0, 0, 0) != 0 || ioctl(to, FIONREAD, &arrived) != 0 || st_ring_ready(ring) != 1)
        return false;
    bool exact = arrived > 0 && st_ring_cqe(ring, 0)->result == arrived;
    st_ring_consume(ring, 1);
    return exact;
}

bool st_uring_quiet_sends_work(st_ring *ring) {
    int pair[2], smallest = 1;
#ifdef ST_TESTING
    if (st_uring_quiet_refused)
        return false;
#endif
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return false;
    bool work = setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &smallest, sizeof smallest) == 0 &&
                tells_of_short_send(ring, pair[0], pair[1]);
    close(pair[0]);
    close(pair[1]);
    return work;
}

bool st_uring_quiet_add(st_uring *poller, uint64_t operation) {
    if (poller->quiet_count == poller->quiet_capacity) {
        unsigned capacity = poller->quiet_capacity ? poller->quiet_capacity * 2 : QUIET_FIRST;
        st_quiet_send *quiet = realloc(poller->quiet, capacity * sizeof *quiet);
        if (quiet == NULL)
            return false;
        poller->quiet = quiet;
        poller->quiet_capacity = capacity;
    }
    poller->quiet[poller->quiet_count++] = (st_quiet_send){operation, poller->ring.sq_tail};
    return true;
}

/* The completions there are: who has one did not send everything. They are met again, and are nobody's by then. */
static void tell_reported(st_uring *poller) {
    for (unsigned i = 0, ready = st_ring_ready(&poller->ring); i < ready && !poller->forked; i++) {
        const st_uring_cqe *cqe = st_ring_cqe(&poller->ring, i);
        const st_op_slot *slot = st_ops_find(&poller->ops, cqe->user_data);
        if (slot != NULL && slot->kind == ST_KIND_SEND)
            st_uring_sent(slot->object, cqe->result);
    }
}

void st_uring_quiet_over(st_uring *poller) {
    /* While completions are missing from the queue, silence says nothing. */
    if (poller->forked || st_ring_overflowed(&poller->ring))
        return;
    /* First of all: what a callback submits meanwhile has no completion among those that are looked at. */
    unsigned taken = st_ring_taken(&poller->ring);
    tell_reported(poller);
    unsigned count = poller->quiet_count, kept = 0;
    for (unsigned i = 0; i < count && !poller->forked; i++) {
        st_quiet_send quiet = poller->quiet[i];
        if ((int)(taken - quiet.position) < 0) {
            poller->quiet[kept++] = quiet;
            continue;
        }
        const st_op_slot *slot = st_ops_find(&poller->ops, quiet.operation);
        if (slot != NULL) {
            st_uring_stream *stream = slot->object;
            st_uring_sent(stream, (int32_t)stream->parts.rest);
        }
    }
    poller->quiet_count = kept;
}
