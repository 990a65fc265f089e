/* The parts of a transfer, as far as it has come. */
#ifndef ST_PARTS_H
#define ST_PARTS_H

#include <stddef.h>
#include <sys/uio.h>

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

#endif
