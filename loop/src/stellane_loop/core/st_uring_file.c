/* Files without a thread pool.
 *
 * They have a ring of their own, which any thread may enter. Reads and writes keep pointers into memory of their owners until
 * the kernel is done, however long that takes; the network's ring can be dropped when the loop moves to
 * another thread, this one must not be. Its completions signal the poller's eventfd, which ends the wait.
 *
 * A write with sync is a WRITEV linked to an FSYNC in one submission. It is acknowledged only when the write was whole and
 * the sync after its last byte returned 0. A short write breaks the link; its rest is written and synced anew.
 * Offsets are explicit, so that repeating a write changes nothing.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "st_parts.h"
#include "st_uring.h"
#include "st_uring_file.h"

enum {
    ENTRIES = 64,
    COMPLETIONS = 256,
    PARTS_MAX = 1024,    /* the kernel's UIO_MAXIOV */
    ATTEMPTS_MAX = 16,   /* of one operation that makes no progress (EINTR, EAGAIN) */
    FREE_WAIT_NS = 100000000,
    FREE_WAITS_MAX = 600, /* in vain, for a device that does not answer, when the poller ends: a minute */
};

typedef enum file_kind { FILE_READ, FILE_WRITE, FILE_SYNC } file_kind;

typedef struct file_operation {
    struct file_operation *next;
    void *owner;
    file_kind kind;
    int fd;
    int64_t offset;
    bool sync;      /* a write: sync after it */
    bool data_only; /* a sync: fdatasync */
    int part_first, part_count;
    size_t rest, done;
    int attempts;
    int awaited; /* completions */
    int32_t result, sync_result;
    struct iovec parts[];
} file_operation;

struct st_uring_files {
    st_ring ring;
    st_ops ops;
    file_operation *first, *last; /* to be submitted */
    unsigned in_flight;           /* operations that the ring, or the kernel, has */
    bool orphaned;                /* in a forked child: they are the parent's */
    bool ending;                  /* the poller is freed: what was cancelled is not tried again */
};

#ifdef ST_TESTING
int32_t (*st_uring_file_fault)(int operation, int32_t result);
int st_uring_file_free_waits = FREE_WAITS_MAX;
#else
static const int st_uring_file_free_waits = FREE_WAITS_MAX;
#endif

static int open_files(st_uring *poller) {
    if (poller->files != NULL)
        return 0;
    st_uring_files *files = calloc(1, sizeof *files);
    if (files == NULL)
        return -ENOMEM;
    int error = st_ring_open(&files->ring, ST_RING_ANY_THREAD, ENTRIES, COMPLETIONS);
    if (error == 0) {
        error = st_ring_notify(&files->ring, poller->wake_fd);
        if (error == 0)
            error = st_ring_enable(&files->ring);
        if (error < 0)
            st_ring_close(&files->ring);
    }
    if (error < 0) {
        free(files);
        return error;
    }
    poller->files = files;
    return 0;
}

static void queue(st_uring_files *files, file_operation *operation) {
    operation->next = NULL;
    if (files->last != NULL)
        files->last->next = operation;
    else
        files->first = operation;
    files->last = operation;
}

static int start(st_poller *base, file_kind kind, int fd, const struct iovec *parts, int count, int64_t offset,
                 void *owner, file_operation **result) {
    st_uring *poller = (st_uring *)base;
    if (poller->forked)
        return -EBADF;
    if (count < 0 || count > PARTS_MAX || offset < 0)
        return -EINVAL;
    /* There are no offsets in a pipe, and reading it may take for ever. Other errors are the operation's to report. */
    poller->counted.system_calls += kind != FILE_SYNC;
    if (kind != FILE_SYNC && lseek(fd, 0, SEEK_CUR) < 0 && errno == ESPIPE)
        return -ESPIPE;
    int error = open_files(poller);
    if (error < 0)
        return error;
    file_operation *operation = calloc(1, sizeof *operation + (size_t)count * sizeof *parts);
    if (operation == NULL)
        return -ENOMEM;
    operation->owner = owner;
    operation->kind = kind;
    operation->fd = fd;
    operation->offset = offset;
    operation->part_count = count;
    if (count > 0)
        memcpy(operation->parts, parts, (size_t)count * sizeof *parts);
    for (int i = 0; i < count; i++)
        operation->rest += parts[i].iov_len;
    queue(poller->files, operation);
    *result = operation;
    return 0;
}

int st_uring_file_read(st_poller *base, int fd, const struct iovec *parts, int count, int64_t offset, void *owner) {
    file_operation *operation;
    return start(base, FILE_READ, fd, parts, count, offset, owner, &operation);
}

int st_uring_file_write(st_poller *base, int fd, const struct iovec *parts, int count, int64_t offset, int flags,
                        void *owner) {
    file_operation *operation;
    int error = start(base, FILE_WRITE, fd, parts, count, offset, owner, &operation);
    if (error == 0)
        operation->sync = operation->data_only = (flags & ST_FILE_SYNC) != 0;
    return error;
}

int st_uring_file_sync(st_poller *base, int fd, int data_only, void *owner) {
    file_operation *operation;
    int error = start(base, FILE_SYNC, fd, NULL, 0, 0, owner, &operation);
    if (error == 0)
        operation->data_only = data_only != 0;
    return error;
}

static st_uring_sqe *prepare(st_uring_files *files, file_operation *operation, st_op_kind kind) {
    st_uring_sqe *sqe = st_ring_sqe(&files->ring);
    sqe->fd = operation->fd;
    sqe->user_data = st_ops_take(&files->ops, kind, operation);
    operation->awaited++;
    return sqe;
}

/* Both entries of a chain, or none: a link ends where a submission ends. */
static bool submit(st_uring_files *files, file_operation *operation) {
    bool transfer = operation->kind != FILE_SYNC, sync = operation->kind == FILE_SYNC || operation->sync;
    unsigned entries = (unsigned)transfer + (unsigned)sync;
    if (st_ops_reserve(&files->ops, entries) != 0)
        return false;
    if (st_ring_room(&files->ring) < entries &&
        (st_ring_submit(&files->ring) < 0 || st_ring_room(&files->ring) < entries))
        return false;
    operation->result = operation->sync_result = 0;
    if (transfer) {
        st_uring_sqe *sqe = prepare(files, operation, ST_KIND_FILE);
        sqe->opcode = operation->kind == FILE_READ ? ST_OP_READV : ST_OP_WRITEV;
        sqe->flags = sync ? ST_SQE_LINK : 0;
        sqe->address = (uint64_t)(uintptr_t)&operation->parts[operation->part_first];
        sqe->length = (uint32_t)(operation->part_count - operation->part_first);
        sqe->offset = (uint64_t)operation->offset + operation->done;
    }
    if (sync) {
        st_uring_sqe *sqe = prepare(files, operation, ST_KIND_FILE_SYNC);
        sqe->opcode = ST_OP_FSYNC;
        sqe->op_flags = operation->data_only ? ST_FSYNC_DATASYNC : 0;
    }
    files->in_flight++;
    return true;
}

static void submit_queued(st_uring_files *files) {
    while (files->first != NULL && submit(files, files->first)) {
        file_operation *operation = files->first;
        files->first = operation->next;
        if (files->first == NULL)
            files->last = NULL;
    }
    if (st_ring_queued(&files->ring) > 0)
        st_ring_submit(&files->ring); /* refused for now: stays queued, and the next turn tries again */
}

static void advance(file_operation *operation, size_t n) {
    operation->rest -= n;
    operation->done += n;
    operation->part_first = st_parts_advance(operation->parts, operation->part_first, operation->part_count, n);
}

static bool to_be_repeated(int32_t result) { return result == -EINTR || result == -EAGAIN || result == -ECANCELED; }

/* What a finished attempt means. True: over, with *result. False: there is more to do. */
static bool judge(const st_uring_files *files, file_operation *operation, int64_t *result) {
    int32_t n = operation->kind == FILE_SYNC ? operation->sync_result : operation->result;
    *result = n;
    if (to_be_repeated(n))
        return ++operation->attempts >= ATTEMPTS_MAX || (operation->kind == FILE_READ && files->ending);
    if (n < 0 || operation->kind == FILE_SYNC)
        return true;
    size_t rest = operation->rest;
    if (operation->kind == FILE_READ) {
        /* A short read is the end of the file only when the next one says so. */
        advance(operation, (size_t)n);
        *result = (int64_t)operation->done;
        if (n == 0 || operation->rest == 0)
            return true;
        /* The next one may wait for bytes that never come, and nobody would cancel it any more. */
        *result = -ECANCELED;
        return files->ending;
    }
    if ((size_t)n < rest) {
        /* Whatever the sync said, it was not after the last byte. */
        *result = -EIO;
        advance(operation, (size_t)n);
        return n == 0;
    }
    *result = (int64_t)(operation->done + rest);
    if (operation->sync_result == 0)
        return true;
    *result = operation->sync_result;
    /* Canceled or interrupted: the whole of it once more, bytes included. */
    return !to_be_repeated(operation->sync_result) || ++operation->attempts >= ATTEMPTS_MAX;
}

static uint64_t name_of(const st_ops *ops, uint32_t index) { return (uint64_t)ops->slots[index].generation << 32 | index; }

static void tell(st_uring *poller, file_operation *operation, int64_t result) {
    void *owner = operation->owner;
    free(operation);
    poller->callbacks++;
    poller->base.sink.file_done(owner, result);
}

static void completed(st_uring *poller, const st_uring_cqe *cqe) {
    st_uring_files *files = poller->files;
    st_op_slot *slot = st_ops_find(&files->ops, cqe->user_data);
    if (slot == NULL)
        return;
    file_operation *operation = slot->object;
    int32_t result = cqe->result;
#ifdef ST_TESTING
    if (st_uring_file_fault != NULL)
        result = st_uring_file_fault(slot->kind == ST_KIND_FILE ? ST_OP_WRITEV : ST_OP_FSYNC, result);
#endif
    if (slot->kind == ST_KIND_FILE)
        operation->result = result;
    else
        operation->sync_result = result;
    st_ops_release(&files->ops, cqe->user_data);
    if (--operation->awaited > 0)
        return;
    files->in_flight--;
    int64_t total;
    if (judge(files, operation, &total))
        tell(poller, operation, total);
    else
        queue(files, operation);
}

static void reap(st_uring *poller) {
    st_uring_files *files = poller->files;
    st_ring *ring = &files->ring;
    if (st_ring_overflowed(ring) || st_ring_work_waits(ring))
        st_ring_fetch(ring);
    for (unsigned ready = st_ring_ready(ring); ready > 0 && !files->orphaned; ready--) {
        st_uring_cqe cqe = *st_ring_cqe(ring, 0);
        st_ring_consume(ring, 1);
        poller->counted.events++;
        completed(poller, &cqe);
    }
}

void st_uring_files_turn(st_uring *poller) {
    st_uring_files *files = poller->files;
    if (files == NULL || files->orphaned)
        return;
    if (files->in_flight > 0)
        reap(poller);
    if (!files->orphaned)
        submit_queued(files);
}

bool st_uring_files_wait(st_uring *poller) {
    st_uring_files *files = poller->files;
    return files != NULL &&
           (files->first != NULL || st_ring_queued(&files->ring) > 0 || st_ring_ready(&files->ring) > 0);
}

void st_uring_files_count(st_uring *poller, st_poller_statistics *counted) {
    if (poller->files == NULL)
        return;
    counted->system_calls += poller->files->ring.system_calls;
    counted->in_flight += poller->files->ops.in_flight;
}

bool st_uring_files_lost(st_uring *poller) {
    return poller->files != NULL && st_ring_lost(&poller->files->ring);
}

void st_uring_files_after_fork(st_uring *poller) {
    if (poller->files == NULL)
        return;
    st_ring_close_fd(&poller->files->ring);
    poller->files->orphaned = true;
}

static void cancel_queued(st_uring *poller) {
    st_uring_files *files = poller->files;
    while (files->first != NULL) {
        file_operation *operation = files->first;
        files->first = operation->next;
        tell(poller, operation, -ECANCELED);
    }
    files->last = NULL;
}

/* A read may wait for bytes that never come, where a descriptor has offsets and yet is no file (eventfd). Writes and syncs
 * are left to end: half of one is worse than a wait. */
static void cancel_reads(st_uring_files *files) {
    files->ending = true;
    for (uint32_t i = 0; i < files->ops.capacity; i++) {
        const st_op_slot *slot = &files->ops.slots[i];
        if (slot->kind != ST_KIND_FILE || ((file_operation *)slot->object)->kind != FILE_READ)
            continue;
        if (st_ring_room(&files->ring) == 0 && (st_ring_submit(&files->ring) < 0 || st_ring_room(&files->ring) == 0))
            break;
        st_uring_sqe *sqe = st_ring_sqe(&files->ring);
        sqe->opcode = ST_OP_ASYNC_CANCEL;
        sqe->flags = ST_SQE_SKIP_SUCCESS;
        sqe->fd = -1;
        sqe->address = name_of(&files->ops, i);
        sqe->user_data = ST_OP_NONE;
    }
}

void st_uring_files_free(st_uring *poller) {
    st_uring_files *files = poller->files;
    if (files == NULL)
        return;
    const st_sink *sink = &poller->base.sink;
    cancel_queued(poller);
    if (!files->orphaned)
        cancel_reads(files);
    /* The kernel may still read from and write to the owners' memory, so there is nothing to do but wait. */
    for (int in_vain = 0; !files->orphaned && files->in_flight > 0 && in_vain < st_uring_file_free_waits;) {
        sink->block_begin(sink->context);
        st_ring_enter(&files->ring, 1, FREE_WAIT_NS, 0);
        sink->block_end(sink->context);
        if (st_ring_ready(&files->ring) == 0)
            in_vain++;
        reap(poller);
        if (!files->orphaned)
            submit_queued(files); /* the rest of short writes */
    }
    if (files->orphaned) {
        for (uint32_t i = 0; i < files->ops.capacity; i++)
            if (files->ops.slots[i].kind != ST_KIND_FREE) {
                file_operation *operation = files->ops.slots[i].object;
                if (--operation->awaited == 0)
                    tell(poller, operation, -ECANCELED);
            }
    } else if (files->in_flight > 0) {
        /* Memory that a hung device may still write to is not given back. */
        poller->files = NULL;
        return;
    } else {
        st_ring_close(&files->ring);
    }
    st_ops_free(&files->ops);
    free(files);
    poller->files = NULL;
}
