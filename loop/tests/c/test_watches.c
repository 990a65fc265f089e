/* Readiness of descriptors, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

static void read_one(owner *self, unsigned events) {
    char byte;
    CHECK(events & ST_READABLE);
    CHECK(read((int)(intptr_t)self->extra, &byte, 1) == 1);
}

static void test_level_triggered(void) {
    st_poller *poller = new_poller();
    int fds[2];
    CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
    owner *self = open_watch(poller, fds[0], ST_READABLE);
    self->extra = (void *)(intptr_t)fds[0];
    self->on_ready = read_one;
    CHECK(write(fds[1], "0123456789", 10) == 10);
    TURN_UNTIL(poller, self->ready_calls == 10);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 10); /* each byte once, and nothing after the last */
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void test_once(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE | ST_ONCE);
    CHECK(write(fds[1], "ab", 2) == 2);
    TURN_UNTIL(poller, self->ready_calls == 1);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 1);
    char bytes[2];
    read_exactly(fds[0], bytes, 2);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE); /* asked for after it was drained */
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 1);
    CHECK(write(fds[1], "c", 1) == 1);
    TURN_UNTIL(poller, self->ready_calls == 2);
    /* More comes while nobody asks, and is read: that may be told of once, late. */
    CHECK(write(fds[1], "d", 1) == 1);
    turn(poller, 0);
    read_exactly(fds[0], bytes, 2);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE);
    turn(poller, 5);
    int calls = self->ready_calls;
    CHECK(calls <= 3);
    for (int i = 0; i < 3; i++) {
        poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE);
        turn(poller, 5);
    }
    CHECK_EQ(self->ready_calls, calls);
    close_watch(self);
    close(fds[0]);
    close(fds[1]);
    poller->ops->free(poller);
}

static void close_that_stream(owner *self, char *data, ssize_t n) {
    (void)data, (void)n;
    owner *other = self->extra;
    if (other != NULL && other->bytes > 0) {
        self->extra = NULL;
        other->poller->ops->stream_close(other->stream, 0);
    }
}

/* A stream with more to read in the next turn is closed by another one's callback: it is not freed before its place in the
 * queue is. */
static void test_closed_with_more_to_read(void) {
    st_poller *poller = new_poller();
    int fds[2][2];
    char into[10], many[1000] = {0};
    owner *all[2];
    for (int i = 0; i < 2; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->into = into;
        all[i]->into_bytes = sizeof into;
        all[i]->on_data = close_that_stream;
        poller->ops->stream_read_start(all[i]->stream, ST_READ_INTO);
    }
    turn(poller, 0);
    all[1]->extra = all[0];
    for (int i = 0; i < 2; i++)
        CHECK(write(fds[i][1], many, sizeof many) == sizeof many);
    TURN_UNTIL(poller, all[0]->closed);
    TURN_UNTIL(poller, all[1]->bytes == sizeof many);
    close_stream(all[1]);
    free_owner(all[0]);
    for (int i = 0; i < 2; i++)
        close(fds[i][1]);
    poller->ops->free(poller);
}

/* Two watches of one descriptor, and a third of its number's next owner. What is closed leaves nothing and wakes nobody. */
static void test_one_number_for_several(void) {
    st_poller *poller = new_poller();
    int fds[2], next[2];
    unix_pair(fds);
    turn(poller, 0);
    int before = open_descriptors();
    owner *first = open_watch(poller, fds[0], ST_READABLE), *second = open_watch(poller, fds[0], ST_READABLE);
    CHECK(write(fds[1], "x", 1) == 1);
    TURN_UNTIL(poller, first->ready_calls > 0 && second->ready_calls > 0);
    close_watch(second);
    close_watch(first);
    double begin = now_s();
    turn(poller, 50);
    CHECK(now_s() - begin > 0.04);
    CHECK_EQ(open_descriptors(), before);
    first = open_watch(poller, fds[0], ST_WRITABLE);
    TURN_UNTIL(poller, first->ready_calls > 0);
    close(fds[0]);
    unix_pair(next);
    CHECK_EQ(next[0], fds[0]);
    second = open_watch(poller, next[0], ST_READABLE);
    turn(poller, 0);
    poller->ops->watch_set(first->watch, ST_READABLE);
    turn(poller, 0);
    CHECK_EQ(second->ready_calls, 0);
    CHECK(write(next[1], "x", 1) == 1);
    TURN_UNTIL(poller, second->ready_calls > 0);
    close_watch(first);
    close_watch(second);
    close(fds[1]);
    close(next[0]);
    close(next[1]);
    poller->ops->free(poller);
}

static void test_directions(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, 0);
    poller->ops->watch_set(self->watch, ST_READABLE | ST_WRITABLE);
    TURN_UNTIL(poller, self->ready_calls > 0);
    CHECK_EQ(self->ready_events, ST_WRITABLE);
    poller->ops->watch_set(self->watch, ST_READABLE);
    self->ready_events = 0;
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_events, 0);
    CHECK(write(fds[1], "x", 1) == 1);
    TURN_UNTIL(poller, self->ready_events == ST_READABLE);
    poller->ops->watch_set(self->watch, 0);
    int calls = self->ready_calls;
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, calls);
    /* Taken back before it counted: no trace. */
    poller->ops->watch_set(self->watch, ST_READABLE);
    poller->ops->watch_set(self->watch, 0);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(self->ready_calls, calls);
    /* Taken back when it counted, and again: each time it can be. */
    for (int i = 0; i < 3; i++) {
        poller->ops->watch_set(self->watch, i % 2 ? 0 : ST_READABLE);
        turn(poller, 0);
    }
    owner *again = open_watch(poller, fds[1], ST_READABLE);
    for (int i = 0; i < 3; i++) {
        turn(poller, 0);
        poller->ops->watch_set(again->watch, i % 2 ? ST_READABLE : 0);
    }
    poller->ops->watch_set(again->watch, ST_READABLE);
    turn(poller, 0);
    close_watch(again);
    /* A hang-up makes it ready for whatever is asked. */
    char byte;
    read_exactly(fds[0], &byte, 1);
    close(fds[1]);
    self->ready_events = 0;
    poller->ops->watch_set(self->watch, ST_READABLE | ST_WRITABLE);
    TURN_UNTIL(poller, self->ready_events == (ST_READABLE | ST_WRITABLE));
    close_watch(self);
    close(fds[0]);
    poller->ops->free(poller);
}

static void test_not_pollable(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    int before = open_descriptors();
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC), folder = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int file = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), event = eventfd(0, EFD_CLOEXEC);
    int refused[] = {null, folder, file}, errors[] = {-EPERM, -EPERM, -EPERM};
    for (int i = 0; i < 4; i++) {
        int error = 0, fd = i < 3 ? refused[i] : 9999;
        owner *self = new_owner(poller);
        st_watch *watch = poller->ops->watch_open(poller, fd, self, &error);
        if (watch != NULL) {
            error = poller->ops->watch_set(watch, ST_READABLE);
            poller->ops->watch_close(watch);
            TURN_UNTIL(poller, self->closed);
        }
        CHECK_EQ(error, i < 3 ? errors[i] : -EBADF);
        free_owner(self);
    }
    close_watch(open_watch(poller, event, ST_READABLE));
    close(null);
    close(folder);
    close(file);
    close(event);
    CHECK_EQ(open_descriptors(), before);
    poller->ops->free(poller);
}

/* The owner closes its descriptor first and the number comes back as something else: no stale event. */
static void test_number_used_again(void) {
    st_poller *poller = new_poller();
    for (int i = 0; i < 100; i++) {
        int fds[2], other[2];
        unix_pair(fds);
        owner *self = open_watch(poller, fds[0], ST_READABLE);
        if (i % 2)
            turn(poller, 0);
        poller->ops->watch_set(self->watch, 0);
        int number = fds[0];
        close(fds[0]);
        unix_pair(other);
        CHECK_EQ(other[0], number);
        owner *next = open_watch(poller, other[0], ST_READABLE);
        CHECK(write(fds[1], "old", 3) < 0 || true);
        close(fds[1]);
        turn(poller, 0);
        turn(poller, 0);
        CHECK_EQ(self->ready_calls + next->ready_calls, 0);
        CHECK(write(other[1], "new", 3) == 3);
        TURN_UNTIL(poller, next->ready_calls > 0);
        CHECK_EQ(self->ready_calls, 0);
        close_watch(self);
        close_watch(next);
        close(other[0]);
        close(other[1]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

/* Its owner takes back what it asked for and closes its socket; the loop does not turn for a long time. The peer sees
 * the end of the connection all the same. */
static void test_taken_back_without_a_turn(void) {
    st_poller *poller = new_poller();
    for (int by_close = 0; by_close < 2; by_close++) {
        int fds[2];
        tcp_pair(fds);
        owner *self = open_watch(poller, fds[0], ST_READABLE | ST_WRITABLE | ST_ONCE);
        turn(poller, 0);
        turn(poller, 0);
        if (by_close)
            poller->ops->watch_close(self->watch);
        else
            poller->ops->watch_set(self->watch, 0);
        close(fds[0]);
        struct pollfd end = {.fd = fds[1], .events = POLLIN};
        CHECK(poll(&end, 1, 1000) == 1);
        if (!by_close)
            poller->ops->watch_close(self->watch);
        TURN_UNTIL(poller, self->closed);
        free_owner(self);
        close(fds[1]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

static owner *pair_of_watches[2];

static void close_the_other(owner *self, unsigned events) {
    (void)events;
    owner *other = pair_of_watches[self == pair_of_watches[0]];
    CHECK_EQ(other->ready_calls, 0);
    self->poller->ops->watch_close(other->watch);
}

/* What is closed by a callback is not called in the same turn, though its event was fetched with the others. */
static void test_closed_in_the_turn_of_its_event(void) {
    st_poller *poller = new_poller();
    int fds[2][2];
    for (int i = 0; i < 2; i++) {
        unix_pair(fds[i]);
        CHECK(write(fds[i][1], "x", 1) == 1);
        pair_of_watches[i] = open_watch(poller, fds[i][0], ST_READABLE);
        pair_of_watches[i]->on_ready = close_the_other;
    }
    TURN_UNTIL(poller, pair_of_watches[0]->closed + pair_of_watches[1]->closed == 1);
    CHECK_EQ(pair_of_watches[0]->ready_calls == 0 || pair_of_watches[1]->ready_calls == 0, 1);
    owner *left = pair_of_watches[pair_of_watches[0]->closed];
    free_owner(pair_of_watches[left == pair_of_watches[0]]);
    left->on_ready = NULL;
    close_watch(left);
    for (int i = 0; i < 2; i++) {
        close(fds[i][0]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

/* A stream that was closed while another descriptor shares its file: what the kernel still has to say of that file is
 * not taken for the object that got its place. */
static void test_late_event_of_a_shared_file(void) {
    st_poller *poller = new_poller();
    int fds[2], quiet[2];
    tcp_pair(fds);
    unix_pair(quiet);
    int shared = dup(fds[0]);
    owner *first = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(first->stream, ST_READ_COPY);
    turn(poller, 0);
    close_stream(first);
    owner *second = open_watch(poller, quiet[0], ST_READABLE);
    turn(poller, 0);
    CHECK(write(fds[1], "late", 4) == 4);
    for (int i = 0; i < 3; i++)
        turn(poller, 5);
    CHECK_EQ(second->ready_calls, 0);
    close_watch(second);
    close(shared);
    close(fds[1]);
    close(quiet[0]);
    close(quiet[1]);
    poller->ops->free(poller);
}

static void send_to_nobody(int fd, struct sockaddr *nobody, socklen_t bytes) {
    CHECK(connect(fd, nobody, bytes) == 0);
    CHECK(send(fd, "x", 1, 0) == 1);
}

/* An error is over once it was read. Who then waits for bytes sleeps until there are some. */
static void test_an_error_passes(void) {
    st_poller *poller = new_poller();
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    char byte;
    int gone = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(bind(gone, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(getsockname(gone, (struct sockaddr *)&address, &bytes) == 0);
    close(gone);
    owner *self = open_watch(poller, fd, ST_READABLE | ST_ONCE);
    turn(poller, 0);
    send_to_nobody(fd, (struct sockaddr *)&address, bytes);
    TURN_UNTIL(poller, self->ready_calls == 1);
    CHECK(recv(fd, &byte, 1, MSG_DONTWAIT) < 0 && errno == ECONNREFUSED);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE), 0);
        turn(poller, 5);
    }
    CHECK_EQ(self->ready_calls, 1);
    send_to_nobody(fd, (struct sockaddr *)&address, bytes);
    TURN_UNTIL(poller, self->ready_calls == 2);
    close_watch(self);
    close(fd);
    poller->ops->free(poller);
}

/* A hang-up stays, and is told to everybody who asks. */
static void test_a_hang_up_stays(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_watch(poller, fds[0], ST_READABLE | ST_ONCE);
    turn(poller, 0);
    close(fds[1]);
    for (int asked = 1; asked <= 5; asked++) {
        TURN_UNTIL(poller, self->ready_calls == asked);
        CHECK_EQ(poller->ops->watch_set(self->watch, ST_READABLE | ST_ONCE), 0);
    }
    close_watch(self);
    close(fds[0]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(level_triggered),
        TEST(once),
        TEST(closed_with_more_to_read),
        TEST(one_number_for_several),
        TEST(directions),
        TEST(not_pollable),
        TEST(number_used_again),
        TEST(taken_back_without_a_turn),
        TEST(closed_in_the_turn_of_its_event),
        TEST(late_event_of_a_shared_file),
        TEST(an_error_passes),
        TEST(a_hang_up_stays),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
