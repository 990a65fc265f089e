/* What the machine is asked by a loop that would look before it sleeps. */
#define _GNU_SOURCE
#include <dirent.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "st_machine.h"

enum { MS = 1000000, BUSY_MS = 100 };

static st_cpu_times at(int64_t now_ns, int64_t idle_ns, int64_t own_ns) {
    return (st_cpu_times){
        .now_ns = now_ns, .idle_ns = idle_ns, .own_ns = own_ns, .thread = pthread_self(), .cpus = 2, .quota_cpus = 2};
}

static int about(double value, double expected) { return value > expected - 1e-9 && value < expected + 1e-9; }

static void what_is_idle_and_what_it_uses_itself_is_spare(void) {
    st_cpu_times before = at(1, 5000, 300), after = at(1001, 6500, 700); /* idle 1.5, own 0.4, others 0.1 */
    CHECK(about(st_cpus_spare(&before, &after), 1.9));
    after = at(1001, 5000, 300 + 600); /* 1.4 by others, who would use more */
    CHECK(about(st_cpus_spare(&before, &after), 0.6));
    after = at(1001, 5000 - 100, 300); /* counted by a clock that is not quite monotonic */
    CHECK(about(st_cpus_spare(&before, &after), 0));
}

static void what_can_not_be_told_is_not_spare(void) {
    st_cpu_times before = at(1, 0, 0), after = at(1001, 2000, 0);
    CHECK(about(st_cpus_spare(&before, &after), 2));
    CHECK(about(st_cpus_spare(&after, &after), 0));
    before.now_ns = after.now_ns;
    CHECK(about(st_cpus_spare(&before, &after), 0));
    before.now_ns = 1;
    after.cpus = 3; /* another mask, so other CPUs' times */
    CHECK(about(st_cpus_spare(&before, &after), 0));
    pthread_t none = 0;
    after = at(1001, 2000, 0);
    after.thread = none; /* another thread, so another CPU time */
    CHECK(about(st_cpus_spare(&before, &after), 0));
    before = after = (st_cpu_times){.now_ns = 1};
    after.now_ns = 1001;
    CHECK(about(st_cpus_spare(&before, &after), 0));
}

static void a_quota_leaves_as_much_less(void) {
    st_cpu_times before = at(1, 0, 0), after = at(1001, 3500, 0);
    before.cpus = after.cpus = 4;
    before.quota_cpus = after.quota_cpus = 2;
    CHECK(about(st_cpus_spare(&before, &after), 1.5));
}

static void the_only_cpu_is_never_spare(void) {
    st_cpu_times before = at(1, 0, 0), after = at(1001, 1000, 0);
    before.cpus = after.cpus = before.quota_cpus = after.quota_cpus = 1;
    CHECK(about(st_cpus_spare(&before, &after), 0));
    before.cpus = after.cpus = 2;
    after.idle_ns = 2000;
    CHECK(about(st_cpus_spare(&before, &after), 0)); /* nor is it where the quota is of one */
}

static void *burn(void *ms) {
    for (double end = now_s() + *(int *)ms * 1e-3; now_s() < end;) {
    }
    return NULL;
}

/* Of the CPUs it may run on, this thread leaves to others what it does not use. */
static void the_machine_is_read(void) {
    st_cpu_times before, after;
    int busy_ms = BUSY_MS;
    cpu_set_t mask, one;
    CHECK_EQ(sched_getaffinity(0, sizeof mask, &mask), 0);
    CHECK_EQ(st_cpu_times_read(&before), 0);
    CHECK_EQ(before.cpus, CPU_COUNT(&mask));
    CHECK(before.idle_ns > 0 && pthread_equal(before.thread, pthread_self()));
    if (access("/sys/fs/cgroup/cpu.max", F_OK) != 0)
        CHECK_EQ(before.quota_cpus, before.cpus);
    double cpu_before = cpu_s();
    burn(&busy_ms);
    double used_ns = (cpu_s() - cpu_before) * 1e9;
    CHECK_EQ(st_cpu_times_read(&after), 0);
    int64_t elapsed_ns = after.now_ns - before.now_ns, own_ns = after.own_ns - before.own_ns;
    CHECK(own_ns >= used_ns && own_ns <= elapsed_ns + MS);
    CHECK(after.idle_ns >= before.idle_ns && after.idle_ns - before.idle_ns <= (elapsed_ns + 20 * MS) * after.cpus);
    double spare = st_cpus_spare(&before, &after);
    if (after.cpus > 1 && after.quota_cpus == after.cpus)
        CHECK(spare * (double)elapsed_ns > used_ns - 20.0 * MS * after.cpus);

    /* On one CPU beside a busy thread, the idle time of the other CPUs is none of its business. */
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    pthread_t thread;
    CHECK_EQ(st_cpu_times_read(&before), 0);
    cpu_before = cpu_s();
    CHECK_EQ(pthread_create(&thread, NULL, burn, &busy_ms), 0);
    pthread_join(thread, NULL);
    used_ns = (cpu_s() - cpu_before) * 1e9;
    CHECK_EQ(st_cpu_times_read(&after), 0);
    CHECK_EQ(after.cpus, 1);
    CHECK(after.idle_ns - before.idle_ns < BUSY_MS * (int64_t)MS / 2);
    CHECK((double)(after.own_ns - before.own_ns) < used_ns / 2);
}

/* It sleeps between the rounds, or the CPU that is woken would not have had the time to go idle; and it is over soon. */
static void a_wake_up_is_timed_cold(void) {
    cpu_set_t allowed, left, one;
    CHECK_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    double start = now_s(), cpu_before = cpu_s();
    int64_t wake_ns = st_measure_wake_ns();
    double took_s = now_s() - start;
    CHECK(wake_ns > 100 && wake_ns < 1000LL * MS);
    CHECK(took_s >= 15e-3 && took_s < 5);
    CHECK(cpu_s() - cpu_before < took_s / 2);
    CHECK_EQ(sched_getaffinity(0, sizeof left, &left), 0);
    CHECK(CPU_EQUAL(&allowed, &left)); /* it is the other thread that is sent elsewhere */
    CPU_ZERO(&one);
    CPU_SET(sched_getcpu(), &one);
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    CHECK(st_measure_wake_ns() > 100); /* with one CPU there is no other to wake on */
}

static void on_signal(int number) { (void)number; }

static int over;

/* Signals every other thread, all the time. */
static void *disturb(void *unused) {
    pid_t self = (pid_t)syscall(SYS_gettid);
    while (!__atomic_load_n(&over, __ATOMIC_ACQUIRE)) {
        DIR *tasks = opendir("/proc/self/task");
        CHECK(tasks != NULL);
        for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
            pid_t thread = (pid_t)atoi(task->d_name);
            if (thread > 0 && thread != self) syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
        }
        closedir(tasks);
        usleep(100);
    }
    return unused;
}

static void signals_neither_end_nor_shorten_the_timing(void) {
    struct sigaction action = {.sa_handler = on_signal}; /* as Python's: without SA_RESTART */
    pthread_t thread;
    CHECK_EQ(sigaction(SIGUSR1, &action, NULL), 0);
    CHECK_EQ(pthread_create(&thread, NULL, disturb, NULL), 0);
    double start = now_s();
    CHECK(st_measure_wake_ns() > 100);
    CHECK(now_s() - start >= 15e-3);
    __atomic_store_n(&over, 1, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
}

static void nothing_is_left_behind(void) {
    st_cpu_times times;
    int before = open_descriptors();
    CHECK(st_measure_wake_ns() > 100);
    CHECK_EQ(st_cpu_times_read(&times), 0);
    CHECK_EQ(open_descriptors(), before);
}

static void without_descriptors(void) {
    st_cpu_times times;
    struct rlimit limit, few;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    int lowest = dup(0);
    CHECK_EQ(close(lowest), 0);
    for (int left = 0; left < 2; left++) {
        few = limit;
        few.rlim_cur = (rlim_t)(lowest + left);
        CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
        CHECK_EQ(st_measure_wake_ns(), -EMFILE);
        if (left == 0)
            CHECK_EQ(st_cpu_times_read(&times), -EMFILE);
        int next = -1;
        if (left > 0)
            CHECK_EQ(next = dup(0), lowest); /* what there was is there again */
        close(next);
    }
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* From here on the call fails, in this thread and those it makes. */
static void answer_with(long call, int error) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ((unsigned)error & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof program[0], .filter = program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

static void without_a_mask(void) {
    st_cpu_times times;
    int before = open_descriptors();
    answer_with(SYS_sched_getaffinity, EPERM);
    CHECK_EQ(st_measure_wake_ns(), -EPERM);
    memset(&times, 0xff, sizeof times);
    CHECK_EQ(st_cpu_times_read(&times), -EPERM);
    CHECK(times.cpus == 0 && times.quota_cpus == 0); /* nothing that could be compared */
    CHECK_EQ(open_descriptors(), before);
}

static void without_a_thread(void) {
    answer_with(SYS_clone3, EAGAIN);
    answer_with(SYS_clone, EAGAIN);
    CHECK_EQ(st_measure_wake_ns(), -EAGAIN);
    _exit(0); /* a sanitizer that looks for leaks needs one too */
}

/* The thread that waits to be woken is ended all the same. */
static void without_a_wake_up(void) {
    answer_with(SYS_write, EIO);
    CHECK_EQ(st_measure_wake_ns(), -EIO);
    _exit(0);
}

#define TEST(name) {#name, name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(what_is_idle_and_what_it_uses_itself_is_spare),
        TEST(what_can_not_be_told_is_not_spare),
        TEST(a_quota_leaves_as_much_less),
        TEST(the_only_cpu_is_never_spare),
        TEST(the_machine_is_read),
        TEST(a_wake_up_is_timed_cold),
        TEST(signals_neither_end_nor_shorten_the_timing),
        TEST(nothing_is_left_behind),
        TEST(without_descriptors),
        TEST(without_a_mask),
        TEST(without_a_thread),
        TEST(without_a_wake_up),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
