/* The kernel's io_uring interface as far as this loop uses it, up to Linux 6.18: numbers and layouts
 * only, in names of our own, so that neither liburing nor recent kernel headers are needed to build.
 * A comment names the first kernel of what is newer than 5.19.
 */
#ifndef ST_ABI_URING_H
#define ST_ABI_URING_H

#include <stdint.h>

/* System calls: the same numbers on every architecture but alpha. */
#define ST_NR_IO_URING_SETUP 425
#define ST_NR_IO_URING_ENTER 426
#define ST_NR_IO_URING_REGISTER 427

typedef struct st_uring_sqe {
    uint8_t opcode;
    uint8_t flags;
    uint16_t ioprio; /* of receives, sends and accepts: their flags */
    int32_t fd;
    uint64_t offset; /* of poll update: the new user_data */
    uint64_t address;
    uint32_t length;
    uint32_t op_flags; /* msg_flags, accept_flags, poll events, fsync_flags, cancel_flags */
    uint64_t user_data;
    uint16_t buffer_group;
    uint16_t personality;
    int32_t file_index;
    uint64_t address3;
    uint64_t pad;
} st_uring_sqe;
_Static_assert(sizeof(st_uring_sqe) == 64, "the kernel's submission entry has 64 bytes");

typedef struct st_uring_cqe {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
} st_uring_cqe;
_Static_assert(sizeof(st_uring_cqe) == 16, "the kernel's completion entry has 16 bytes");

typedef struct st_uring_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
    uint64_t user_address;
} st_uring_sq_offsets;

typedef struct st_uring_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
    uint64_t user_address;
} st_uring_cq_offsets;

typedef struct st_uring_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, reserved[3];
    st_uring_sq_offsets sq_off;
    st_uring_cq_offsets cq_off;
} st_uring_params;
_Static_assert(sizeof(st_uring_params) == 120, "the kernel's parameters have 120 bytes");

/* Operations. */
enum {
    ST_OP_NOP = 0,
    ST_OP_READV = 1,
    ST_OP_WRITEV = 2,
    ST_OP_FSYNC = 3,
    ST_OP_POLL_ADD = 6,
    ST_OP_SENDMSG = 9,
    ST_OP_ACCEPT = 13,
    ST_OP_ASYNC_CANCEL = 14,
    ST_OP_SEND = 26,
    ST_OP_RECV = 27,
    ST_OP_SEND_ZC = 47, /* 6.0: never issued; its presence shows that multishot receive is there too */
};

/* Flags of a submission entry. */
enum {
    ST_SQE_LINK = 1 << 2,
    ST_SQE_ASYNC = 1 << 4,
    ST_SQE_BUFFER_SELECT = 1 << 5,
    ST_SQE_SKIP_SUCCESS = 1 << 6,
};

/* Set-up flags. */
enum {
    ST_SETUP_CQSIZE = 1 << 3,
    ST_SETUP_CLAMP = 1 << 4,
    ST_SETUP_R_DISABLED = 1 << 6,
    ST_SETUP_SUBMIT_ALL = 1 << 7,
    ST_SETUP_COOP_TASKRUN = 1 << 8,
    ST_SETUP_TASKRUN_FLAG = 1 << 9,
    ST_SETUP_SINGLE_ISSUER = 1 << 12, /* 6.0 */
    ST_SETUP_DEFER_TASKRUN = 1 << 13, /* 6.1 */
    ST_SETUP_NO_SQARRAY = 1 << 16,    /* 6.6 */
};

enum {
    ST_FEAT_SINGLE_MMAP = 1 << 0,
    ST_FEAT_NODROP = 1 << 1,
    ST_FEAT_SUBMIT_STABLE = 1 << 2,
    ST_FEAT_FAST_POLL = 1 << 5,
    ST_FEAT_EXT_ARG = 1 << 8,
    ST_FEAT_CQE_SKIP = 1 << 11,
    ST_FEAT_MIN_TIMEOUT = 1 << 15, /* 6.12 */
    ST_FEAT_NO_IOWAIT = 1 << 17,   /* 6.15 */
};

enum {
    ST_ENTER_GETEVENTS = 1 << 0,
    ST_ENTER_EXT_ARG = 1 << 3,
    ST_ENTER_REGISTERED_RING = 1 << 4,
    ST_ENTER_NO_IOWAIT = 1 << 7, /* 6.15 */
};

/* Bits of the submission ring's flags word. */
enum { ST_SQ_CQ_OVERFLOW = 1 << 1, ST_SQ_TASKRUN = 1 << 2 };

/* Bits of a completion's flags; the upper half is the buffer's number. */
enum { ST_CQE_BUFFER = 1 << 0, ST_CQE_MORE = 1 << 1, ST_CQE_SOCK_NONEMPTY = 1 << 2 };
#define ST_CQE_BUFFER_SHIFT 16

#define ST_MMAP_SQ_RING 0ULL
#define ST_MMAP_SQES 0x10000000ULL

enum { ST_RECVSEND_POLL_FIRST = 1 << 0, ST_RECV_MULTISHOT = 1 << 1 };
enum { ST_ACCEPT_MULTISHOT = 1 << 0 };
enum { ST_POLL_ADD_MULTI = 1 << 0 };
enum { ST_CANCEL_ALL = 1 << 0, ST_CANCEL_ANY = 1 << 2 };
enum { ST_FSYNC_DATASYNC = 1 << 0 };

/* io_uring_register(2). */
enum {
    ST_REGISTER_EVENTFD = 4,
    ST_REGISTER_PROBE = 8,
    ST_REGISTER_RESTRICTIONS = 11,
    ST_REGISTER_ENABLE_RINGS = 12,
    ST_REGISTER_IOWQ_MAX_WORKERS = 19,
    ST_REGISTER_RING_FDS = 20,
    ST_UNREGISTER_RING_FDS = 21,
    ST_REGISTER_PBUF_RING = 22,
};

typedef struct st_uring_probe_op {
    uint8_t op, reserved;
    uint16_t flags; /* bit 0: supported */
    uint32_t reserved2;
} st_uring_probe_op;

#define ST_PROBE_OPS 64
typedef struct st_uring_ops_probe {
    uint8_t last_op, ops_length;
    uint16_t reserved;
    uint32_t reserved2[3];
    st_uring_probe_op ops[ST_PROBE_OPS];
} st_uring_ops_probe;

enum { ST_RESTRICT_REGISTER_OP = 0, ST_RESTRICT_SQE_OP = 1, ST_RESTRICT_SQE_FLAGS_ALLOWED = 2 };
typedef struct st_uring_restriction {
    uint16_t kind;
    uint8_t value; /* a register operation, an operation, or a set of entry flags */
    uint8_t reserved;
    uint32_t reserved2[3];
} st_uring_restriction;
_Static_assert(sizeof(st_uring_restriction) == 16, "the kernel's restriction has 16 bytes");

typedef struct st_uring_buffer {
    uint64_t address;
    uint32_t length;
    uint16_t id;
    uint16_t tail; /* of the first buffer only: the ring's tail lies over its unused bytes */
} st_uring_buffer;

typedef struct st_uring_buffer_register {
    uint64_t ring_address;
    uint32_t ring_entries;
    uint16_t group;
    uint16_t flags;
    uint64_t reserved[3];
} st_uring_buffer_register;

typedef struct st_uring_ring_fd {
    uint32_t index; /* UINT32_MAX: the kernel chooses it, and writes it here */
    uint32_t reserved;
    uint64_t fd; /* 0 when it is unregistered */
} st_uring_ring_fd;
_Static_assert(sizeof(st_uring_ring_fd) == 16, "the kernel's registration of a ring has 16 bytes");

typedef struct st_uring_timespec {
    int64_t seconds;
    int64_t nanoseconds;
} st_uring_timespec;

typedef struct st_uring_getevents {
    uint64_t sigmask;
    uint32_t sigmask_bytes;
    uint32_t min_wait_us; /* 6.12; has to be 0 before */
    uint64_t timespec;
} st_uring_getevents;

#endif
