/* Whether io_uring can be had here, and if not, what stands in the way. */
#ifndef ST_URING_PROBE_H
#define ST_URING_PROBE_H

typedef enum st_uring_reason {
    ST_URING_USABLE = 0,
    ST_URING_SYSCTL,         /* kernel.io_uring_disabled forbids it to this process */
    ST_URING_SECCOMP,        /* a seccomp filter answers EPERM, EACCES or ENOSYS */
    ST_URING_DENIED,         /* EPERM or EACCES, and neither of the two is to be seen: another security module */
    ST_URING_NOT_IN_KERNEL,  /* ENOSYS: a kernel without it, or a sandbox in the place of one (gVisor) */
    ST_URING_KERNEL_TOO_OLD, /* it is there, but lacks what we need: Linux 6.0 */
    ST_URING_MEMLOCK,        /* ENOMEM, and the limit of locked memory is low */
    ST_URING_NO_MEMORY,
    ST_URING_DESCRIPTORS, /* EMFILE or ENFILE */
    ST_URING_OTHER,
} st_uring_reason;

enum { ST_URING_MESSAGE_BYTES = 640 };

typedef struct st_uring_report {
    st_uring_reason reason;
    int error;            /* 0, or -errno of what failed */
    unsigned setup_flags; /* granted, when usable */
    unsigned features;
    int seccomp_mode;    /* of this process: 0 none, 1 strict, 2 filter; -1 not known */
    int sysctl_disabled; /* kernel.io_uring_disabled: 0, 1, 2; -1 no such setting */
    char message[ST_URING_MESSAGE_BYTES]; /* one or two sentences: what, why, what to do */
} st_uring_report;

/* Sets up a ring as the poller does and takes it down again. Returns report->error. */
int st_uring_probe(st_uring_report *report);

/* The name of a reason as a word for logs and tests: "usable", "seccomp", ... */
const char *st_uring_reason_name(st_uring_reason reason);

/* Says why `error` came, from what is known of the process; the part of the probe that does not ask the kernel. */
typedef struct st_uring_surroundings {
    int seccomp_mode;
    int sysctl_disabled;
    unsigned long long memlock_bytes;
    int setup_worked; /* io_uring_setup itself did: what failed came later */
} st_uring_surroundings;
st_uring_reason st_uring_explain(int error, const st_uring_surroundings *around);

#endif
