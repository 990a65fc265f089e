/* Small sends of which a part fits or none, the same for every poller. argv[1] names the poller. */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

static bool on_uring(void) { return strcmp(poller_name, "io_uring") == 0; }

enum { PIECE = 10000, PIECES_MAX = 10000 };
static char pattern[PIECE * 4];

/* Small sends until the socket is full and one of them waits for room. Returns how many bytes were taken. */
static size_t fill(st_poller *poller, owner *self) {
    size_t taken = 0;
    for (int i = 0; i < PIECES_MAX; i++) {
        int over = self->sends_over;
        ssize_t n = send_bytes(self, pattern + taken % PIECE, PIECE);
        CHECK(n >= 0);
        taken += PIECE;
        if (n > 0)
            continue;
        for (int j = 0; j < 20 && self->sends_over == over; j++)
            turn(poller, j < 2 ? 0 : 10); /* TCP moves bytes to the peer for some time yet */
        if (self->sends_over == over)
            return taken;
    }
    fail(__FILE__, __LINE__, "the socket takes everything");
}

typedef struct drain {
    int fd;
    size_t wanted;
    bool same, done;
} drain;

static void *read_all(void *argument) {
    drain *self = argument;
    char piece[PIECE];
    self->same = true;
    for (size_t at = 0; at < self->wanted; at += PIECE) {
        read_exactly(self->fd, piece, PIECE);
        self->same = self->same && memcmp(piece, pattern + at % PIECE, PIECE) == 0;
    }
    __atomic_store_n(&self->done, true, __ATOMIC_RELEASE);
    return NULL;
}

/* A small send of which a part fits: what is left follows, once, and nothing spins meanwhile. More is not taken then. */
static void test_small_send_to_a_full_socket(void) {
    st_poller *poller = new_poller();
    fill_pattern(pattern, sizeof pattern, 5);
    for (int unix_socket = 0; unix_socket < 2; unix_socket++) {
        int pair[2], small = 16384;
        if (unix_socket)
            unix_pair(pair);
        else
            tcp_pair(pair);
        setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        owner *self = open_stream(poller, pair[0], ST_SOCKET);
        size_t taken = fill(poller, self);
        double begin = now_s();
        CHECK_EQ(turn(poller, 100), 0);
        CHECK(now_s() - begin > 0.09);
        CHECK_EQ(poller->ops->stream_send_more(self->stream, pattern, 1), -EBUSY);
        int over = self->sends_over;
        drain peer = {pair[1], taken, false, false};
        pthread_t thread;
        pthread_create(&thread, NULL, read_all, &peer);
        self->stream->sent_awaited = 1;
        TURN_UNTIL(poller, self->sends_over == over + 1);
        pthread_join(thread, NULL);
        CHECK(peer.same);
        CHECK(recv(pair[1], pattern, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN);
        fill_pattern(pattern, sizeof pattern, 5);
        close_stream(self);
        close(pair[1]);
    }
    poller->ops->free(poller);
}

/* Many short sends in one turn of a ring with room for few completions: silence means success only once all are in. */
static void test_short_sends_and_overflow(void) {
    enum { MANY = 60 };
    static owner *streams[MANY];
    static int pairs[MANY][2];
    static size_t taken[MANY];
    ring_entries = 4;
    st_poller *poller = new_poller();
    fill_pattern(pattern, sizeof pattern, 6);
    int small = 16384;
    for (int i = 0; i < MANY; i++) {
        unix_pair(pairs[i]);
        setsockopt(pairs[i][0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        streams[i] = open_stream(poller, pairs[i][0], ST_SOCKET);
    }
    /* All of them in the same turns, so that they become full in the same turn. */
    for (bool full = false; !full;) {
        for (int i = 0; i < MANY; i++) {
            ssize_t n = send_bytes(streams[i], pattern + taken[i] % PIECE, PIECE);
            CHECK(n >= 0 || n == -EBUSY);
            taken[i] += n == -EBUSY ? 0 : PIECE;
            full = full || n == -EBUSY;
        }
        turn(poller, 0);
        turn(poller, 0);
    }
    for (int i = 0; i < MANY; i++) {
        drain peer = {pairs[i][1], taken[i], false, false};
        pthread_t thread;
        pthread_create(&thread, NULL, read_all, &peer);
        streams[i]->stream->sent_awaited = 1;
        for (double until = now_s() + 20; !__atomic_load_n(&peer.done, __ATOMIC_ACQUIRE); turn(poller, 5))
            CHECK(now_s() < until);
        pthread_join(thread, NULL);
        CHECK(peer.same);
    }
    if (on_uring())
        CHECK(count(poller).overflows > 0);
    for (int i = 0; i < MANY; i++) {
        close_stream(streams[i]);
        close(pairs[i][1]);
    }
    poller->ops->free(poller);
}

/* A peer that is gone is reported, though sending to it said nothing at first. */
static void test_small_send_to_nobody(void) {
    st_poller *poller = new_poller();
    int pair[2];
    unix_pair(pair);
    owner *self = open_stream(poller, pair[0], ST_SOCKET);
    close(pair[1]);
    ssize_t n = send_bytes(self, "x", 1);
    if (n == 0) {
        CHECK(poller->ops->turn(poller, 60000000000, 1, 0) > 0);
        n = self->send_error;
    }
    CHECK_EQ(n, -EPIPE);
    close_stream(self);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(small_send_to_a_full_socket),
        TEST(short_sends_and_overflow),
        TEST(small_send_to_nobody),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
