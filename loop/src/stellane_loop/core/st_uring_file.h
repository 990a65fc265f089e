/* Where tests reach into file operations: results as the kernel gave them, before they are judged, and how long the end of
 * a poller waits for a device that does not answer. */
#ifndef ST_URING_FILE_H
#define ST_URING_FILE_H

#include <stdint.h>

#ifdef ST_TESTING
extern int32_t (*st_uring_file_fault)(int operation, int32_t result); /* ST_OP_WRITEV (or READV), ST_OP_FSYNC */
extern int st_uring_file_free_waits; /* of a tenth of a second each, in vain */
#endif

#endif
