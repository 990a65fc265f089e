/* What only the io_uring poller has: rings too small, older kernels, restrictions, system calls saved. */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "echo.h"
#include "harness.h"
#include "st_ring.h"
#include "st_uring.h"

/* Two buffers for a hundred clients: every byte arrives, and nobody is armed without a buffer to hope for. */
static void test_starved(void) {
    ring_buffers = 2;
    ring_buffer_bytes = 512;
    st_poller *poller = new_poller();
    st_poller_statistics counted = serve(poller, 100, 10, 400);
    CHECK(counted.starved > 0);
    /* Each receive gives a buffer back, which arms one more; the first arming of a stream is no re-arming. */
    CHECK(counted.rearms <= 2 * counted.receives + 200);
    CHECK(counted.waits <= 2 * counted.receives + counted.sends + 500);
    poller->ops->free(poller);
}

/* Who is starved is served in order: with two buffers nobody gets a second turn before everybody had a first. */
static int served[50], order;

static void note(owner *self, char *data, ssize_t n) {
    (void)data;
    if (n > 0)
        served[(intptr_t)self->extra] = ++order;
}

static void test_starved_in_order(void) {
    ring_buffers = 2;
    ring_buffer_bytes = 64;
    st_poller *poller = new_poller();
    int fds[50][2];
    owner *all[50];
    char many[256] = {0};
    for (int i = 0; i < 50; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->extra = (void *)(intptr_t)i;
        all[i]->on_data = note;
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
        CHECK(write(fds[i][1], many, sizeof many) == sizeof many);
    }
    int turns = 0;
    for (bool all_served = false; !all_served; turns++) {
        turn(poller, 100);
        all_served = true;
        for (int i = 0; i < 50; i++)
            all_served = all_served && served[i] > 0;
        CHECK(turns < 200);
    }
    for (int i = 0; i < 50; i++) {
        TURN_UNTIL(poller, all[i]->bytes == sizeof many);
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

/* 300 clients send one byte and then nothing; the four buffers stay free for a client in a hurry. */
static void test_slow_clients(void) {
    ring_buffers = 4;
    st_poller *poller = new_poller();
    int port, fd, slow[300];
    owner *server = echo_server(poller, &port, &fd);
    for (int i = 0; i < 300; i++) {
        slow[i] = connect_tcp(port);
        CHECK(write(slow[i], "G", 1) == 1);
        turn(poller, 0);
    }
    TURN_UNTIL(poller, count(poller).receives == 300);
    int client = connect_tcp(port);
    for (int i = 0; i < 100; i++) {
        double begin = now_s();
        char answer[10];
        CHECK(write(client, "in a hurry", 10) == 10);
        struct pollfd ready = {.fd = client, .events = POLLIN};
        while (poll(&ready, 1, 0) == 0)
            turn(poller, 10);
        read_exactly(client, answer, 10);
        CHECK(now_s() - begin < 0.1);
    }
    for (int i = 0; i < 300; i++)
        close(slow[i]);
    close(client);
    TURN_UNTIL(poller, echo_connections == 0);
    stop_server(server, fd);
    poller->ops->free(poller);
}

/* Four entries and 32 completions for 500 clients: queues are full in the middle of everything. */
static void test_tiny_rings(void) {
    ring_entries = 4;
    ring_buffers = 512;
    st_poller *poller = new_poller();
    st_poller_statistics counted = serve(poller, 400, 3, 100);
    CHECK(counted.overflows > 0);
    CHECK_EQ(counted.accepts, 400);
    CHECK_EQ(counted.in_flight, 0);
    poller->ops->free(poller);
}

static void *wake_later(void *poller) {
    usleep(20000);
    ((st_poller *)poller)->ops->wake(poller);
    return NULL;
}

/* A wake-up that finds no room for its completion ends the poll for wake-ups: it is made again. */
static void test_wake_after_overflow(void) {
    enum { MANY = 80 };
    ring_entries = 4;
    st_ring_refused_flags = ST_SETUP_SINGLE_ISSUER; /* with deferred work the kernel takes care not to overflow */
    st_poller *poller = new_poller();
    st_uring *inside = (st_uring *)poller;
    int fds[MANY][2];
    owner *all[MANY];
    for (int i = 0; i < MANY; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
    }
    turn(poller, 0);
    turn(poller, 0);
    uint64_t first = inside->wake_operation;
    for (int i = 0; i < MANY; i++)
        CHECK(write(fds[i][1], "x", 1) == 1);
    poller->ops->wake(poller);
    for (int i = 0; i < MANY; i++)
        TURN_UNTIL(poller, all[i]->bytes == 1);
    turn(poller, 0);
    CHECK(count(poller).overflows > 0);
    CHECK(inside->wake_operation != first); /* or this tests nothing */
    pthread_t thread;
    pthread_create(&thread, NULL, wake_later, poller);
    poller->ops->turn(poller, 60000000000, 1, 0);
    pthread_join(thread, NULL);
    for (int i = 0; i < MANY; i++) {
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

/* A completion that the kernel could not keep is no silence. */
static void test_lost_completion(void) {
    st_poller *poller = new_poller();
    CHECK_EQ(turn(poller, 0), 0);
    *((st_uring *)poller)->ring.kernel_cq_overflow = 1;
    CHECK_EQ(poller->ops->turn(poller, 0, 1, 0), -EOVERFLOW);
    CHECK_EQ(poller->ops->turn(poller, 0, 1, 0), -EOVERFLOW);
    poller->ops->free(poller);
}

static void test_system_calls_saved(void) {
    st_poller *poller = new_poller();
    int port, fd, clients[64];
    char message[256] = {1}, answer[256];
    owner *server = echo_server(poller, &port, &fd);
    for (int i = 0; i < 64; i++)
        clients[i] = connect_tcp(port);
    TURN_UNTIL(poller, echo_connections == 64);
    st_poller_statistics before = count(poller);
    enum { ROUNDS = 50 };
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 64; i++)
            CHECK(write(clients[i], message, sizeof message) == sizeof message);
        size_t requests = (size_t)(round + 1) * 64;
        TURN_UNTIL(poller, count(poller).sends - before.sends == requests);
        for (int i = 0; i < 64; i++)
            read_exactly(clients[i], answer, sizeof answer);
    }
    st_poller_statistics after = count(poller);
    double each = (double)(after.system_calls - before.system_calls) / (ROUNDS * 64);
    printf("     %.3f system calls a request\n", each);
    CHECK(each <= 1.0 / 8);
    for (int i = 0; i < 64; i++)
        close(clients[i]);
    TURN_UNTIL(poller, echo_connections == 0);
    stop_server(server, fd);
    poller->ops->free(poller);
}

static int sent_in_batch;

static void send_when_read(owner *self, char *data, ssize_t n) {
    (void)data;
    if (n > 0 && send_bytes(self, "answer", 6) == 0)
        sent_in_batch++;
}

/* The loop stops right after a turn full of answers: they leave all the same. */
static void test_settle(void) {
    st_poller *poller = new_poller();
    int fds[20][2];
    owner *all[20];
    poller->ops->settle(poller); /* before there is a ring */
    for (int i = 0; i < 20; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->on_data = send_when_read;
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
        CHECK(write(fds[i][1], "question", 8) == 8);
    }
    TURN_UNTIL(poller, all[0]->bytes == 8);
    CHECK_EQ(sent_in_batch, 20);
    poller->ops->settle(poller);
    for (int i = 0; i < 20; i++) {
        char answer[6];
        struct pollfd ready = {.fd = fds[i][1], .events = POLLIN};
        CHECK(poll(&ready, 1, 1000) == 1);
        read_exactly(fds[i][1], answer, 6);
        CHECK_EQ(all[i]->sends_over, 0); /* told by a turn only */
    }
    for (int i = 0; i < 20; i++) {
        TURN_UNTIL(poller, all[i]->sends_over == 1);
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static char much[8 << 20];

static void send_much(owner *self, char *data, ssize_t n) {
    (void)data;
    if (n > 0)
        sent_in_batch += send_bytes(self, much, sizeof much) == 0;
}

/* Batched sends to peers that do not read wait for room; they are not tried again and again. */
static void test_blocked_sends_sleep(void) {
    st_poller *poller = new_poller();
    int fds[10][2];
    owner *all[10];
    for (int i = 0; i < 10; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->on_data = send_much;
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
        CHECK(write(fds[i][1], "x", 1) == 1);
    }
    TURN_UNTIL(poller, sent_in_batch == 10);
    for (int i = 0; i < 30; i++)
        turn(poller, 10);
    double begin = now_s();
    CHECK_EQ(turn(poller, 100), 0);
    CHECK(now_s() - begin > 0.09);
    for (int i = 0; i < 10; i++) {
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

/* Large messages get large buffers: far fewer receives than small buffers would take. */
static void test_large_buffers(void) {
    st_poller *poller = new_poller();
    st_poller_statistics counted = serve(poller, 1, 20, 1000000);
    printf("     %llu receives\n", (unsigned long long)counted.receives);
    CHECK(counted.receives < 20 * 1000000 / 4096 / 3);
    CHECK_EQ(counted.in_flight, 0);
    poller->ops->free(poller);
}

static void *write_in_steps(void *argument) {
    int(*fds)[2] = argument;
    for (int i = 0; i < 5; i++) {
        usleep(5000);
        CHECK(write(fds[i][1], "x", 1) == 1);
    }
    return NULL;
}

/* Five clients are worth one turn when the loop says so; it is a wish with an end. */
static void test_waits_for_more(void) {
    st_poller *poller = new_poller();
    int fds[5][2], calls = 0;
    owner *all[5];
    for (int i = 0; i < 5; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
    }
    turn(poller, 0);
    if (!(((st_uring *)poller)->ring.features & ST_FEAT_MIN_TIMEOUT)) {
        printf("     not run: this kernel can not wait for a minimum\n");
        return;
    }
    pthread_t thread;
    pthread_create(&thread, NULL, write_in_steps, fds);
    double begin = now_s();
    CHECK_EQ(poller->ops->turn(poller, 2000000000, 5, 1000000000), 5);
    CHECK(now_s() - begin < 0.5);
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, write_in_steps, fds);
    begin = now_s();
    poller->ops->turn(poller, 2000000000, 50, 60000000);
    CHECK(now_s() - begin > 0.04 && now_s() - begin < 0.5);
    pthread_join(thread, NULL);
    /* On a crowded machine the last of them may have written when that turn was over. */
    for (int round = 0; round < 100; round++) {
        calls = 0;
        for (int i = 0; i < 5; i++)
            calls += all[i]->data_calls;
        if (calls == 10)
            break;
        turn(poller, 10);
    }
    CHECK_EQ(calls, 10);
    begin = now_s(); /* nothing comes: the limit of the turn holds */
    CHECK_EQ(poller->ops->turn(poller, 50000000, 5, 10000000), 0);
    CHECK(now_s() - begin > 0.04 && now_s() - begin < 0.5);
    for (int i = 0; i < 5; i++) {
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static void *wake_late(void *poller) {
    usleep(200000);
    CHECK_EQ(((st_poller *)poller)->ops->wake(poller), 0);
    return NULL;
}

/* A wish for more is no limit where there is none: nothing comes, and the turn sleeps. */
static void test_waits_for_more_without_a_limit(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    pthread_t thread;
    double begin = now_s();
    pthread_create(&thread, NULL, wake_late, poller);
    poller->ops->turn(poller, -1, 5, 1000000);
    CHECK(now_s() - begin > 0.1);
    pthread_join(thread, NULL);
    poller->ops->free(poller);
}

/* Kernels that know less: the same poller on each rung of the ladder, and a refusal where there is none. */
static void test_older_kernels(void) {
    const unsigned refused[] = {0, ST_SETUP_NO_SQARRAY, ST_SETUP_NO_SQARRAY | ST_SETUP_DEFER_TASKRUN,
                                ST_SETUP_SINGLE_ISSUER};
    const unsigned granted[] = {ST_SETUP_NO_SQARRAY | ST_SETUP_DEFER_TASKRUN, ST_SETUP_DEFER_TASKRUN,
                                ST_SETUP_COOP_TASKRUN, ST_SETUP_COOP_TASKRUN};
    for (int i = 0; i < 4; i++) {
        st_ring_refused_flags = refused[i];
        st_ring_missing_features = i % 2 ? ST_FEAT_MIN_TIMEOUT | ST_FEAT_NO_IOWAIT : 0;
        st_uring_quiet_refused = i % 2;
        st_poller *poller = new_poller();
        serve(poller, 20, 5, 5000);
        CHECK_EQ(((st_uring *)poller)->ring.setup_flags & granted[i], granted[i]);
        CHECK_EQ(((st_uring *)poller)->quiet_sends, i % 2 == 0);
        poller->ops->free(poller);
    }
    int error = 0;
    st_ring_refused_flags = ST_SETUP_SINGLE_ISSUER | ST_SETUP_COOP_TASKRUN;
    CHECK(st_uring_new(test_sink(), 0, 0, 0, &error) == NULL);
    CHECK_EQ(error, -ENOSYS);
    st_ring_refused_flags = 0;
    st_ring_missing_features = ST_FEAT_EXT_ARG;
    CHECK(st_uring_new(test_sink(), 0, 0, 0, &error) == NULL);
    CHECK_EQ(error, -ENOSYS);
}

/* A ring takes the operations of this poller and no others. */
static void test_restrictions(void) {
    enum { OPENAT = 18, CONNECT = 16, REGISTER_FILES = 2 };
    st_ring ring;
    CHECK_EQ(st_ring_open(&ring, ST_RING_ONE_THREAD, 8, 16), 0);
    CHECK_EQ(st_ring_enable(&ring), 0);
    const uint8_t forbidden[] = {OPENAT, CONNECT};
    for (int i = 0; i < 2; i++) {
        st_uring_sqe *sqe = st_ring_sqe(&ring);
        sqe->opcode = forbidden[i];
        sqe->fd = -1;
        CHECK_EQ(st_ring_enter(&ring, 1, 1000000000, 0), 0);
        CHECK_EQ(st_ring_cqe(&ring, 0)->result, -EACCES);
        st_ring_consume(&ring, 1);
    }
    CHECK(syscall(ST_NR_IO_URING_REGISTER, ring.fd, REGISTER_FILES, &ring.fd, 1) < 0 && errno == EACCES);
    st_ring_close(&ring);
}

/* A forked child has no memory in common with its parent's kernel. */
static void test_nothing_shared_after_fork(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    st_uring *inside = (st_uring *)poller;
    void *const shared[] = {inside->ring.ring_map, inside->ring.sqes_map, inside->small.buffers.slots,
                            inside->small.buffers.memory};
    unsigned char resident;
    for (int i = 0; i < 4; i++)
        CHECK(mincore(shared[i], 1, &resident) == 0);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 4; i++)
            CHECK(mincore(shared[i], 1, &resident) == -1 && errno == ENOMEM);
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    poller->ops->free(poller);
}

/* A completion finds its operation while that is in flight, and nothing after. */
static void test_operation_names(void) {
    st_ops ops = {0};
    uint64_t names[1000];
    int objects[1000];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 1000; i++) {
            names[i] = st_ops_take(&ops, ST_KIND_RECEIVE, &objects[i]);
            CHECK(names[i] != ST_OP_NONE);
        }
        CHECK_EQ(ops.in_flight, 1000);
        for (int i = 0; i < 1000; i++)
            CHECK(st_ops_find(&ops, names[i])->object == &objects[i]);
        uint64_t late = names[500];
        st_ops_release(&ops, late);
        CHECK(st_ops_find(&ops, late) == NULL);
        names[500] = st_ops_take(&ops, ST_KIND_SEND, &objects[0]);
        CHECK((uint32_t)names[500] == (uint32_t)late); /* the same slot */
        CHECK(st_ops_find(&ops, late) == NULL);
        st_ops_release(&ops, late);
        CHECK_EQ(ops.in_flight, 1000);
        st_ops_release_all(&ops);
        CHECK_EQ(ops.in_flight, 0);
        CHECK(st_ops_find(&ops, names[7]) == NULL);
    }
    CHECK(st_ops_find(&ops, 0) == NULL && st_ops_find(&ops, UINT64_MAX) == NULL);
    st_ops_free(&ops);
}

static void test_bad_arguments(void) {
    int error = 0;
    CHECK(st_uring_new(test_sink(), 3, 0, 0, &error) == NULL);
    CHECK_EQ(error, -EINVAL);
    CHECK(st_uring_new(test_sink(), 0, 65536, 0, &error) == NULL);
    CHECK_EQ(error, -EINVAL);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(starved),        TEST(starved_in_order), TEST(slow_clients),  TEST(tiny_rings), TEST(wake_after_overflow),
        TEST(lost_completion),
        TEST(system_calls_saved), TEST(settle), TEST(blocked_sends_sleep), TEST(large_buffers), TEST(waits_for_more),
        TEST(waits_for_more_without_a_limit), TEST(older_kernels),
        TEST(restrictions),   TEST(nothing_shared_after_fork), TEST(operation_names), TEST(bad_arguments),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
