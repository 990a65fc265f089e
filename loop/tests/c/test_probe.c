/* The probe under what really blocks io_uring: seccomp filters, the kernel's setting, limits, old kernels. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "st_ring.h"
#include "st_uring_probe.h"

static void answer_setup_with(int error) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ST_NR_IO_URING_SETUP, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((unsigned)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof program[0], .filter = program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

static void expect(st_uring_reason reason, int error, const char *says) {
    st_uring_report report;
    CHECK_EQ(st_uring_probe(&report), error);
    printf("     %s: %s\n", st_uring_reason_name(report.reason), report.message);
    CHECK_EQ(report.error, error);
    CHECK_EQ(report.reason, reason);
    CHECK(strstr(report.message, says) != NULL);
    if (error != 0) {
        CHECK(strstr(report.message, "epoll backend") != NULL || reason == ST_URING_DESCRIPTORS);
        CHECK(report.message[strlen(report.message) - 1] == '.'); /* not cut off */
    }
    int made = 0;
    st_poller *poller = st_uring_new(test_sink(), 0, 0, 0, &made);
    CHECK((poller != NULL) == (error == 0));
    if (poller != NULL)
        poller->ops->free(poller);
    else
        CHECK_EQ(made, error);
}

static void test_usable(void) {
    int before = open_descriptors();
    expect(ST_URING_USABLE, 0, "usable");
    CHECK_EQ(open_descriptors(), before);
}

static void test_seccomp_eperm(void) {
    answer_setup_with(EPERM);
    expect(ST_URING_SECCOMP, -EPERM, "seccomp=profile.json");
}

static void test_seccomp_enosys(void) {
    answer_setup_with(ENOSYS);
    expect(ST_URING_SECCOMP, -ENOSYS, "seccomp filter");
}

static void test_no_memory(void) {
    struct rlimit low = {0, 0};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &low) == 0);
    answer_setup_with(ENOMEM);
    expect(ST_URING_MEMLOCK, -ENOMEM, "memlock=-1");
}

static void test_no_descriptors(void) {
    struct rlimit limit, none;
    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    int lowest = dup(0);
    close(lowest);
    none.rlim_cur = (rlim_t)lowest;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    expect(ST_URING_DESCRIPTORS, -EMFILE, "ulimit -n");
    setrlimit(RLIMIT_NOFILE, &limit); /* a sanitizer opens files when the process ends */
}

static void test_old_kernel(void) {
    st_ring_refused_flags = ST_SETUP_SINGLE_ISSUER | ST_SETUP_COOP_TASKRUN;
    expect(ST_URING_KERNEL_TOO_OLD, -ENOSYS, "Linux 6.0");
    st_ring_refused_flags = 0;
    st_ring_missing_features = ST_FEAT_CQE_SKIP;
    expect(ST_URING_KERNEL_TOO_OLD, -ENOSYS, "Linux 6.0");
}

/* The setting itself, where we may change it. */
static void test_sysctl(void) {
    const char *path = "/proc/sys/kernel/io_uring_disabled";
    int setting = getenv("STELLANE_TEST_SYSCTL") != NULL ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (setting < 0) {
        printf("     not run: changes a setting of the whole machine; STELLANE_TEST_SYSCTL=1 as root runs it\n");
    } else {
        CHECK(write(setting, "2", 1) == 1);
        st_uring_report report;
        int error = st_uring_probe(&report);
        CHECK(pwrite(setting, "0", 1, 0) == 1);
        CHECK_EQ(error, -EPERM);
        CHECK_EQ(report.reason, ST_URING_SYSCTL);
        CHECK(strstr(report.message, "io_uring_disabled=0, or use") != NULL);
        close(setting);
    }
}

static void test_explanations(void) {
    static const struct {
        int error;
        st_uring_surroundings around;
        st_uring_reason reason;
    } table[] = {
        {0, {0, 0, 0, 1}, ST_URING_USABLE},
        {-EPERM, {0, 2, 0, 0}, ST_URING_SYSCTL},
        {-EPERM, {2, 2, 0, 0}, ST_URING_SYSCTL},
        {-EPERM, {0, 1, 0, 0}, ST_URING_SYSCTL},
        {-EPERM, {2, 0, 0, 0}, ST_URING_SECCOMP},
        {-EPERM, {2, -1, 0, 0}, ST_URING_SECCOMP},
        {-EPERM, {2, 1, 0, 0}, ST_URING_SECCOMP},
        {-EPERM, {0, 0, 0, 0}, ST_URING_DENIED},
        {-EACCES, {0, 0, 0, 0}, ST_URING_DENIED},
        {-ENOSYS, {0, -1, 0, 0}, ST_URING_NOT_IN_KERNEL},
        {-ENOSYS, {2, -1, 0, 0}, ST_URING_SECCOMP},
        {-ENOSYS, {0, -1, 0, 1}, ST_URING_KERNEL_TOO_OLD},
        {-ENOSYS, {2, 0, 0, 1}, ST_URING_KERNEL_TOO_OLD},
        {-ENOMEM, {0, 0, 65536, 0}, ST_URING_MEMLOCK},
        {-ENOMEM, {0, 0, ~0ull, 0}, ST_URING_NO_MEMORY},
        {-EMFILE, {0, 0, 0, 0}, ST_URING_DESCRIPTORS},
        {-EIO, {0, 0, 0, 0}, ST_URING_OTHER},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        CHECK_EQ(st_uring_explain(table[i].error, &table[i].around), table[i].reason);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(usable),         TEST(seccomp_eperm), TEST(seccomp_enosys), TEST(no_memory),
        TEST(no_descriptors), TEST(old_kernel),    TEST(sysctl),         TEST(explanations),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
