#include "st_parts.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

size_t st_parts_bytes(const struct iovec *parts, int count) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += parts[i].iov_len;
    return bytes;
}

int st_parts_keep(st_parts *kept, const struct iovec *parts, int count) {
    struct iovec *at = kept->own;
    if (count > ST_PARTS_OWN && !(at = malloc((size_t)count * sizeof *at))) return -ENOMEM;
    memcpy(at, parts, (size_t)count * sizeof *at);
    kept->at = at;
    kept->first = 0;
    kept->count = count;
    kept->capacity = count > ST_PARTS_OWN ? count : ST_PARTS_OWN;
    kept->rest = st_parts_bytes(parts, count);
    return 0;
}

static int grow(st_parts *kept) {
    struct iovec *old = kept->at == kept->own ? NULL : kept->at;
    struct iovec *at = realloc(old, (size_t)kept->capacity * 2 * sizeof *at);
    if (!at) return -ENOMEM;
    if (!old) memcpy(at, kept->own, sizeof kept->own);
    kept->at = at;
    kept->capacity *= 2;
    return 0;
}

int st_parts_add(st_parts *kept, const void *bytes, size_t n) {
    if (kept->count == kept->capacity && (kept->count >= ST_PARTS_ADDED_MAX || grow(kept))) return -EBUSY;
    kept->at[kept->count++] = (struct iovec){(void *)(uintptr_t)bytes, n};
    kept->rest += n;
    return 0;
}

void st_parts_drop(st_parts *kept) {
    if (kept->at != kept->own) free(kept->at);
    kept->at = NULL;
    kept->rest = 0;
}
