/* The ring registered with the thread that runs (io_uring): only while it runs, and never in the way of others. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "echo.h"
#include "harness.h"
#include "st_ring.h"
#include "st_uring.h"

enum { TURNS = 70, MANY = 20 /* more than the kernel has room for in a thread */ };

static bool attached(st_poller *poller) { return ((st_uring *)poller)->ring.enter_flags == ST_ENTER_REGISTERED_RING; }

static void turns(st_poller *poller, int n) {
    for (int i = 0; i < n; i++)
        turn(poller, 0);
}

static void run_long(st_poller *poller) {
    poller->ops->begin(poller);
    turns(poller, TURNS);
}

static void echo_once(st_poller *poller) {
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    CHECK(write(fds[1], "question", 8) == 8);
    TURN_UNTIL(poller, self->bytes == 8);
    CHECK(send_bytes(self, "answer", 6) >= 0);
    turn(poller, 0);
    char answer[6];
    read_exactly(fds[1], answer, 6);
    close_stream(self);
    close(fds[1]);
}

static void test_while_it_runs(void) {
    const unsigned refused[] = {0, ST_SETUP_SINGLE_ISSUER};
    for (int i = 0; i < 2; i++) {
        st_ring_refused_flags = refused[i];
        st_poller *poller = new_poller();
        turns(poller, TURNS);
        CHECK(!attached(poller)); /* nobody says how long this thread will be the one */
        for (int run = 0; run < 3; run++) {
            poller->ops->begin(poller);
            turn(poller, 0);
            CHECK(!attached(poller));
            poller->ops->settle(poller);
            turns(poller, TURNS);
            CHECK(!attached(poller));
            uint64_t before = count(poller).system_calls - count(poller).waits;
            run_long(poller);
            CHECK(attached(poller));
            echo_once(poller);
            poller->ops->settle(poller);
            CHECK(!attached(poller));
            if (run > 0)
                CHECK(count(poller).system_calls - count(poller).waits >= before + 2);
            echo_once(poller);
        }
        run_long(poller);
        poller->ops->free(poller);
    }
}

/* A thread's room is used again. */
static void test_room(void) {
    st_poller *pollers[MANY];
    for (int round = 0, at_first = 0; round < 2; round++) {
        int count_attached = 0;
        for (int i = 0; i < MANY; i++) {
            pollers[i] = new_poller();
            run_long(pollers[i]);
            count_attached += attached(pollers[i]);
        }
        CHECK(count_attached > 1 && count_attached < MANY);
        at_first = round == 0 ? count_attached : at_first;
        CHECK_EQ(count_attached, at_first);
        for (int i = 0; i < MANY; i++) {
            echo_once(pollers[i]);
            if (i % 2)
                pollers[i]->ops->settle(pollers[i]);
            pollers[i]->ops->free(pollers[i]);
        }
    }
}

static void *run_and_free(void *argument) {
    st_poller *poller = argument;
    run_long(poller);
    CHECK(attached(poller));
    echo_once(poller);
    poller->ops->free(poller);
    return NULL;
}

static void *only_free(void *argument) {
    ((st_poller *)argument)->ops->free(argument);
    return NULL;
}

static bool refused(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool result = connect(fd, (struct sockaddr *)&address, sizeof address) != 0 && errno == ECONNREFUSED;
    close(fd);
    return result;
}

/* The ring's requests end, and with them what they keep open, though the thread that ran lives on. */
static void other_thread(void *(*goes_on)(void *)) {
    st_poller *poller = new_poller();
    int port, error = 0, listening = listen_tcp(&port);
    owner *listener = new_owner(poller);
    listener->listener = poller->ops->listener_open(poller, listening, listener, &error);
    poller->ops->listener_start(listener->listener, 10);
    run_long(poller);
    CHECK(attached(poller));
    poller->ops->settle(poller);
    pthread_t thread;
    pthread_create(&thread, NULL, goes_on, poller);
    pthread_join(thread, NULL);
    CHECK_EQ(listener->closed, 1);
    free_owner(listener);
    close(listening);
    double until = now_s() + 10;
    while (!refused(port)) {
        CHECK(now_s() < until);
        usleep(1000);
    }
}

static void test_run_in_another_thread(void) { other_thread(run_and_free); }
static void test_freed_in_another_thread(void) { other_thread(only_free); }

static void test_fork(void) {
    st_poller *poller = new_poller();
    run_long(poller);
    int ring = ((st_uring *)poller)->ring.fd, wake = ((st_uring *)poller)->wake_fd;
    pid_t child = fork();
    if (child == 0) {
        poller->ops->after_fork(poller);
        CHECK(fcntl(ring, F_GETFD) < 0 && fcntl(wake, F_GETFD) < 0); /* they would keep the parent's ring */
        poller->ops->settle(poller);
        st_poller *own = new_poller();
        run_long(own);
        CHECK(attached(own));
        echo_once(own);
        poller->ops->free(poller);
        echo_once(own);
        own->ops->free(own);
        _exit(0);
    }
    echo_once(poller);
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(attached(poller));
    echo_once(poller);
    poller->ops->settle(poller);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {TEST(while_it_runs), TEST(room), TEST(run_in_another_thread),
                                 TEST(freed_in_another_thread), TEST(fork)};
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
