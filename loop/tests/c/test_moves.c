/* A loop that goes on in another thread while its old ring lives on, as it does until the kernel has taken it apart (io_uring):
 * a duplicate of its descriptor keeps it here. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "st_uring.h"

static int keep_ring(st_poller *poller) {
    int kept = dup(((st_uring *)poller)->ring.fd);
    CHECK(kept >= 0);
    return kept;
}

static void in_another_thread(void *(*run)(void *), void *argument) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, run, argument) == 0);
    pthread_join(thread, NULL);
}

/* The old ring's receive holds the socket, so that close(2) alone would tell the peer nothing. */
static void *close_there(void *argument) {
    owner *self = argument;
    turn(self->poller, 0);
    close_stream(self);
    return NULL;
}

static void test_a_peer_sees_the_end(void) {
    st_poller *poller = new_poller();
    int fds[2];
    char byte;
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 0);
    int kept = keep_ring(poller);
    in_another_thread(close_there, self);
    struct timeval limit = {10, 0};
    setsockopt(fds[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    CHECK_EQ(read(fds[1], &byte, 1), 0);
    close(kept);
    close(fds[1]);
    poller->ops->free(poller);
}

/* The kernel wakes one of those who accept, and that may be the old ring's request. */
static int port;

static owner *listen_on(st_poller *poller, int fd) {
    int error = 0;
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    CHECK_EQ(error, 0);
    poller->ops->listener_start(self->listener, 10);
    turn(poller, 0);
    return self;
}

static void stop_listening(owner *self) {
    self->poller->ops->listener_close(self->listener);
    TURN_UNTIL(self->poller, self->closed);
    for (int i = 0; i < self->accepted; i++)
        close(self->fds[i]);
    free_owner(self);
}

static void accept_some(owner *self) {
    for (int i = 1; i <= 3; i++) {
        int client = connect_tcp(port);
        TURN_UNTIL(self->poller, self->accepted == i);
        close(client);
    }
}

static void *accept_there(void *argument) {
    owner *self = argument;
    st_poller *poller = self->poller;
    int listening = ((st_uring_listener *)self->listener)->fd;
    accept_some(self);
    stop_listening(self);
    self = listen_on(poller, listening); /* the same socket, known to the new ring only */
    accept_some(self);
    for (int i = 0; i < 2; i++) { /* its poll can be taken back, and again */
        self->poller->ops->listener_stop(self->listener);
        turn(poller, 0);
        turn(poller, 0);
        CHECK_EQ(count(poller).in_flight, 0);
        self->poller->ops->listener_start(self->listener, 10);
        turn(poller, 0);
    }
    stop_listening(self);
    return NULL;
}

static void test_connections_are_accepted(void) {
    st_poller *poller = new_poller();
    int listening = listen_tcp(&port);
    owner *self = listen_on(poller, listening);
    int kept = keep_ring(poller);
    in_another_thread(accept_there, self);
    poller->ops->free(poller);
    close(listening);
    close(kept);
}

static void *ask_again_there(void *argument) {
    owner *self = argument;
    st_poller *poller = self->poller;
    poller->ops->watch_set(self->watch, 0);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE);
    turn(poller, 0);
    close_watch(self);
    return NULL;
}

static void test_a_watch_is_taken_back_and_set_again(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE);
    turn(poller, 0);
    CHECK_EQ(count(poller).in_flight, 1);
    in_another_thread(ask_again_there, self);
    CHECK_EQ(count(poller).in_flight, 0);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void *move_fails(void *argument) {
    st_poller *poller = argument;
    CHECK_EQ(poller->ops->turn(poller, 0, 1, 0), -EOVERFLOW);
    return NULL;
}

/* What did not fit into the old ring's queue could only be fetched by its thread. */
static void test_completions_left_behind_are_told_of(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    *((st_uring *)poller)->ring.kernel_sq_flags |= ST_SQ_CQ_OVERFLOW;
    in_another_thread(move_fails, poller);
    poller->ops->free(poller);
}

/* A callback forks while the move reports what the old ring has received. */
static bool in_child;

static void fork_in_data(owner *self, char *data, ssize_t n) {
    (void)data;
    CHECK(n > 0 && !in_child);
    if (self->extra == NULL)
        return;
    self->extra = NULL;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        in_child = true;
        self->poller->ops->after_fork(self->poller);
        return;
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void *fork_there(void *argument) {
    st_poller *poller = argument;
    int result = poller->ops->turn(poller, 0, 1, 0);
    if (!in_child) {
        CHECK(result >= 0);
        return NULL;
    }
    CHECK(result < 0);
    poller->ops->free(poller);
    _exit(0);
}

static void test_a_fork_in_the_move(void) {
    const unsigned refused[] = {0, ST_SETUP_SINGLE_ISSUER};
    for (int round = 0; round < 2; round++) {
        st_ring_refused_flags = refused[round];
        st_poller *poller = new_poller();
        int fds[2][2];
        owner *all[2];
        for (int i = 0; i < 2; i++) {
            tcp_pair(fds[i]);
            all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
            all[i]->on_data = fork_in_data;
            poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
        }
        turn(poller, 0);
        all[0]->extra = all[0];
        for (int i = 0; i < 2; i++)
            CHECK(write(fds[i][1], "data", 4) == 4);
        st_ring_enter(&((st_uring *)poller)->ring, 2, 1000000000, 0);
        in_another_thread(fork_there, poller);
        for (int i = 0; i < 2; i++) {
            TURN_UNTIL(poller, all[i]->bytes == 4);
            close_stream(all[i]);
            close(fds[i][1]);
        }
        poller->ops->free(poller);
    }
}

/* Streams that found no buffer find one in the new ring. */
enum { STARVING = 20, BYTES = 2000 };
static owner *starving[STARVING];

static void *feed_there(void *argument) {
    for (int i = 0; i < STARVING; i++)
        TURN_UNTIL(argument, starving[i]->bytes == BYTES);
    return NULL;
}

static void test_the_starved_are_fed(void) {
    ring_buffers = 2;
    ring_buffer_bytes = 64;
    st_poller *poller = new_poller();
    int fds[STARVING][2];
    static char data[BYTES];
    for (int i = 0; i < STARVING; i++) {
        tcp_pair(fds[i]);
        starving[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        poller->ops->stream_read_start(starving[i]->stream, ST_READ_COPY);
        CHECK(write(fds[i][1], data, BYTES) == BYTES);
    }
    turn(poller, 0);
    CHECK(count(poller).starved > 0);
    in_another_thread(feed_there, poller);
    for (int i = 0; i < STARVING; i++) {
        close_stream(starving[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {TEST(a_peer_sees_the_end), TEST(connections_are_accepted),
                                 TEST(a_watch_is_taken_back_and_set_again), TEST(the_starved_are_fed),
                                 TEST(completions_left_behind_are_told_of), TEST(a_fork_in_the_move)};
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
