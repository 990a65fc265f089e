/* Memory that large messages come from is not given back to the kernel between two of them. */
#ifndef ST_HEAP_H
#define ST_HEAP_H

#include <stdlib.h>

enum { ST_HEAP_KEPT_BYTES = 4 << 20 };

/* glibc gives the top of the heap back once 128 KiB are free there, and a loop that handles messages of that
 * size faults it in again page by page: 21 faults for each 100 KiB. Freeing a mapped block raises that limit to
 * twice the block's size, by glibc's own adaptive rule; mallopt(3) would switch the rule off for the process. */
static inline void st_keep_heap(void) {
    void *volatile kept = malloc(ST_HEAP_KEPT_BYTES); /* volatile: a compiler may leave out a malloc and its free */
    free(kept);
}

#endif
