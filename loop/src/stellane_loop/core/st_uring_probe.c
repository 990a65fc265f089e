#define _GNU_SOURCE
#include "st_uring_probe.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "st_ring.h"

enum {
    ENTRIES = 8,
    BUFFERS = 8,
    BUFFER_BYTES = 4096,
    MEMLOCK_LOW_BYTES = 64 << 20, /* below this a refusal for want of memory is most likely about the limit */
};

static int number_in_file(const char *path, const char *before) {
    char line[256];
    int number = -1;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return -1;
    while (number < 0 && fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, before, strlen(before)) == 0 && sscanf(line + strlen(before), "%d", &number) != 1)
            number = -1;
    }
    fclose(file);
    return number;
}

/* A plain ring: tells a system call that is not there from one that lacks what we ask for. */
static int plain_setup_works(void) {
    st_uring_params params;
    memset(&params, 0, sizeof params);
    long fd = syscall(ST_NR_IO_URING_SETUP, 1, &params);
    if (fd >= 0)
        close((int)fd);
    return fd >= 0;
}

static int try_ring(st_uring_report *report) {
    st_ring ring;
    st_buffer_ring buffers;
    int error = st_ring_open(&ring, ST_RING_ONE_THREAD, ENTRIES, ENTRIES * 2);
    if (error < 0)
        return error;
    report->setup_flags = ring.setup_flags;
    report->features = ring.features;
    error = st_buffer_ring_map(&buffers, 0, BUFFERS, BUFFER_BYTES, BUFFERS);
    if (error == 0) {
        error = st_buffer_ring_register(&buffers, &ring);
        if (error == -EINVAL)
            error = -ENOSYS; /* the registration is not known: older than 5.19 */
        if (error == 0)
            error = st_ring_enable(&ring);
        if (error == 0)
            error = st_ring_enter(&ring, 0, 0, 0);
    }
    st_ring_close(&ring);
    st_buffer_ring_unmap(&buffers);
    return error;
}

st_uring_reason st_uring_explain(int error, const st_uring_surroundings *around) {
    switch (-error) {
    case 0: return ST_URING_USABLE;
    case EPERM:
    case EACCES:
        /* A filter runs before the kernel looks at its setting, but the setting is the one whose remedy is
         * sure; only where it allows everybody is the filter to blame for certain. */
        if (around->sysctl_disabled == 2 || (around->sysctl_disabled == 1 && around->seccomp_mode != 2))
            return ST_URING_SYSCTL;
        return around->seccomp_mode == 2 ? ST_URING_SECCOMP : ST_URING_DENIED;
    case ENOSYS:
        if (around->setup_worked)
            return ST_URING_KERNEL_TOO_OLD;
        return around->seccomp_mode == 2 ? ST_URING_SECCOMP : ST_URING_NOT_IN_KERNEL;
    case EINVAL: return ST_URING_KERNEL_TOO_OLD;
    case ENOMEM: return around->memlock_bytes < MEMLOCK_LOW_BYTES ? ST_URING_MEMLOCK : ST_URING_NO_MEMORY;
    case EMFILE:
    case ENFILE: return ST_URING_DESCRIPTORS;
    default: return ST_URING_OTHER;
    }
}

const char *st_uring_reason_name(st_uring_reason reason) {
    static const char *const names[] = {"usable",         "sysctl",  "seccomp",   "denied",      "not_in_kernel",
                                        "kernel_too_old", "memlock", "no_memory", "descriptors", "other"};
    return (size_t)reason < sizeof names / sizeof names[0] ? names[reason] : "other";
}

static const char *remedy(st_uring_reason reason) {
    switch (reason) {
    case ST_URING_SYSCTL:
        return "The administrator has turned io_uring off (1: for all without CAP_SYS_ADMIN that are not in "
               "kernel.io_uring_group; 2: for everybody). Set it to 0 with: sysctl kernel.io_uring_disabled=0, or use "
               "the epoll backend.";
    case ST_URING_SECCOMP:
        return "A seccomp filter blocks it, as the default profiles of Docker since 25, containerd since 2.0 and "
               "Kubernetes' RuntimeDefault do. Run with a profile that allows io_uring_setup, io_uring_enter and "
               "io_uring_register (docker run --security-opt seccomp=profile.json), or use the epoll backend.";
    case ST_URING_DENIED:
        return "Neither kernel.io_uring_disabled nor seccomp forbids it, so a security module (SELinux, AppArmor) or "
               "sandbox does. Allow io_uring in its policy, or use the epoll backend.";
    case ST_URING_NOT_IN_KERNEL:
        return "This kernel, or the sandbox in its place (gVisor, some serverless platforms), has no io_uring. Use the "
               "epoll backend.";
    case ST_URING_KERNEL_TOO_OLD:
        return "It lacks multishot receive or provided buffer rings, which came with Linux 6.0. Upgrade to 6.1 or "
               "later, or use the epoll backend.";
    case ST_URING_MEMLOCK:
        return "The limit of locked memory is too low. Raise it (ulimit -l unlimited, LimitMEMLOCK=infinity in a "
               "systemd unit, docker run --ulimit memlock=-1), or use the epoll backend.";
    case ST_URING_NO_MEMORY: return "The kernel is out of memory for rings; look at memory limits of the cgroup.";
    case ST_URING_DESCRIPTORS: return "No file descriptor is left. Raise the limit (ulimit -n), or close some.";
    case ST_URING_OTHER: return "This is not known to us; the epoll backend does without.";
    default: return "";
    }
}

int st_uring_probe(st_uring_report *report) {
    struct rlimit memlock = {0, 0};
    struct utsname kernel;
    memset(report, 0, sizeof *report);
    report->seccomp_mode = number_in_file("/proc/self/status", "Seccomp:");
    report->sysctl_disabled = number_in_file("/proc/sys/kernel/io_uring_disabled", "");
    report->error = try_ring(report);
    getrlimit(RLIMIT_MEMLOCK, &memlock);
    st_uring_surroundings around = {
        .seccomp_mode = report->seccomp_mode,
        .sysctl_disabled = report->sysctl_disabled,
        .memlock_bytes = memlock.rlim_cur,
        .setup_worked = report->error != 0 && plain_setup_works(),
    };
    report->reason = st_uring_explain(report->error, &around);
    if (report->reason == ST_URING_USABLE) {
        const char *completions = report->setup_flags & ST_SETUP_DEFER_TASKRUN ? "deferred" : "cooperative";
        snprintf(report->message, sizeof report->message, "io_uring is usable (%s completions).", completions);
        return 0;
    }
    if (uname(&kernel) != 0)
        strcpy(kernel.release, "?");
    snprintf(report->message, sizeof report->message,
             "io_uring is not available: %s (Linux %.64s, kernel.io_uring_disabled=%d, seccomp mode %d). %s",
             strerror(-report->error), kernel.release, report->sysctl_disabled, report->seccomp_mode,
             remedy(report->reason));
    return report->error;
}
