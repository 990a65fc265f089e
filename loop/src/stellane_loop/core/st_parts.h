/* The parts of a transfer, and how far it has come. */
#ifndef ST_PARTS_H
#define ST_PARTS_H

#include <stddef.h>
#include <sys/uio.h>

enum {
    ST_PARTS_OWN = 4,        /* kept without an allocation */
    ST_PARTS_ADDED_MAX = 64, /* as many as a send may grow to by st_parts_add() */
};

/* Of zeros: nothing is kept. */
typedef struct st_parts {
    struct iovec *at; /* own, or malloc'd; NULL: nothing is kept */
    int first, count, capacity;
    size_t rest; /* bytes from `first` on */
    struct iovec own[ST_PARTS_OWN];
} st_parts;

/* Bytes in all of them. */
size_t st_parts_bytes(const struct iovec *parts, int count);
/* Copies the array, not what it refers to. 0 or -ENOMEM. */
int st_parts_keep(st_parts *, const struct iovec *parts, int count);
/* One more behind them. 0, or -EBUSY: there is no room for it. */
int st_parts_add(st_parts *, const void *bytes, size_t n);
void st_parts_drop(st_parts *);

/* n bytes of the parts from `first` on are done. Returns where the rest begins: `count` when nothing is left. */
static inline int st_parts_advance(struct iovec *parts, int first, int count, size_t n) {
    for (; first < count; first++) {
        struct iovec *part = &parts[first];
        if (n < part->iov_len) {
            part->iov_base = (char *)part->iov_base + n;
            part->iov_len -= n;
            break;
        }
        n -= part->iov_len;
    }
    return first;
}

static inline void st_parts_done(st_parts *parts, size_t n) {
    parts->rest -= n;
    parts->first = st_parts_advance(parts->at, parts->first, parts->count, n);
}

#endif
