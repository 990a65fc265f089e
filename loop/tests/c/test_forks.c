/* A callback that forks and returns in both processes, the same for every poller: argv[1] names it. The child gets an
 * error from its turn and nothing else: what there was to report, receive and accept is the parent's.
 * More than 500 lines, because every fork is checked by the same few functions. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

enum { MANY = 6 };

static bool in_child;
static int calls_in_child;

/* Forks at the first call. The parent goes on when the child has ended. */
static void fork_once(st_poller *poller) {
    static bool forked;
    calls_in_child += in_child;
    if (forked)
        return;
    forked = true;
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        in_child = true;
        poller->ops->after_fork(poller);
        return;
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void fork_in_buffer(owner *self) { fork_once(self->poller); }
static void count_in_child(owner *self) {
    (void)self;
    calls_in_child += in_child;
}

static void fork_in_closed(owner *self) { fork_once(self->poller); }

static int file_fd;
static owner *another;
static char into[100];

/* With one more operation that waits to be submitted. */
static void fork_in_file_done(owner *self) {
    struct iovec part = {into, sizeof into};
    if (another == NULL) {
        another = new_owner(self->poller);
        CHECK_EQ(self->poller->ops->file_write(self->poller, file_fd, &part, 1, 0, 0, another), 0);
    }
    fork_once(self->poller);
}

static void stop_reading(owner *self, char *data, ssize_t n) {
    (void)data;
    (void)n;
    self->poller->ops->stream_read_stop(self->stream);
}

static void fork_in_data(owner *self, char *data, ssize_t n) {
    (void)data;
    (void)n;
    if (self->extra != NULL) /* more is there when the callback returns */
        CHECK(write((int)(intptr_t)self->extra, "more", 4) == 4);
    self->extra = NULL;
    fork_once(self->poller);
}

static void fork_in_accepted(owner *self, int fd) {
    CHECK(fd >= 0);
    fork_once(self->poller);
}

static void fork_in_ready(owner *self, unsigned events) {
    char byte;
    CHECK(events == ST_READABLE && read((int)(intptr_t)self->extra, &byte, 1) == 1);
    fork_once(self->poller);
}

/* In the child: ends it. The parent's memory of the poller is whole there, and can be given back. */
static void turned(st_poller *poller, int result) {
    if (!in_child) {
        CHECK(result >= 0 || result == -EINTR);
        return;
    }
    CHECK(result < 0);
    CHECK_EQ(calls_in_child, 0);
    CHECK(poller->ops->turn(poller, 0, 1, 0) < 0);
    poller->ops->free(poller);
    _exit(0);
}

#define FORKING_TURNS_UNTIL(poller, condition)                                                                        \
    for (double until_ = now_s() + 10; !(condition);) {                                                               \
        CHECK(now_s() < until_);                                                                                      \
        turned(poller, (poller)->ops->turn(poller, 50000000, 1, 0));                                                  \
    }

static owner *receiver(st_poller *poller, int fds[2], int mode) {
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->into = into;
    self->into_bytes = sizeof into;
    poller->ops->stream_read_start(self->stream, mode);
    return self;
}

static void bytes_are_the_parents(int mode, bool in_buffer, size_t n) {
    st_poller *poller = new_poller();
    owner *all[MANY];
    int fds[MANY][2];
    char *data = malloc(n);
    fill_pattern(data, n, 1);
    for (int i = 0; i < MANY; i++)
        all[i] = receiver(poller, fds[i], mode);
    turn(poller, 0);
    for (int i = 0; i < MANY; i++) {
        if (in_buffer)
            all[i]->on_buffer = fork_in_buffer;
        else
            all[i]->on_data = fork_in_data;
        CHECK(write(fds[i][1], data, n) == (ssize_t)n);
    }
    for (int i = 0; i < MANY; i++) {
        FORKING_TURNS_UNTIL(poller, all[i]->bytes == n);
        CHECK(memcmp(all[i]->data, data, n) == 0);
    }
    for (int i = 0; i < MANY; i++) {
        close_stream(all[i]);
        close(fds[i][1]);
    }
    free(data);
    poller->ops->free(poller);
}

static void test_data(void) { bytes_are_the_parents(ST_READ_COPY, false, 10); }
static void test_data_into(void) { bytes_are_the_parents(ST_READ_INTO, false, 1000); }
static void test_much_data(void) { bytes_are_the_parents(ST_READ_COPY, false, 200000); }
static void test_buffer(void) { bytes_are_the_parents(ST_READ_INTO, true, 1000); }

/* Bytes, and the end behind them, that waited for their owner to read again. */
static void kept_data_is_the_parents(int mode) {
    st_poller *poller = new_poller();
    owner *all[MANY];
    int fds[MANY][2];
    char data[1000];
    fill_pattern(data, sizeof data, 1);
    for (int i = 0; i < MANY; i++) {
        all[i] = receiver(poller, fds[i], ST_READ_INTO);
        all[i]->on_data = stop_reading;
        CHECK(write(fds[i][1], data, sizeof data) == sizeof data && shutdown(fds[i][1], SHUT_WR) == 0);
    }
    for (int i = 0; i < MANY; i++)
        TURN_UNTIL(poller, all[i]->bytes == sizeof into);
    for (int i = 0; i < MANY; i++) {
        all[i]->on_data = fork_in_data;
        all[i]->on_buffer = count_in_child;
        poller->ops->stream_read_start(all[i]->stream, mode);
    }
    for (int i = 0; i < MANY; i++) {
        FORKING_TURNS_UNTIL(poller, all[i]->ended);
        CHECK_EQ(all[i]->bytes, sizeof data);
        CHECK(memcmp(all[i]->data, data, sizeof data) == 0);
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static void test_kept_data(void) { kept_data_is_the_parents(ST_READ_COPY); }
static void test_kept_data_into(void) { kept_data_is_the_parents(ST_READ_INTO); }

/* Where one receive does not tell that all was received. */
static void test_more_data(void) {
    st_poller *poller = new_poller();
    int fds[2];
    unix_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->on_data = fork_in_data;
    self->extra = (void *)(intptr_t)fds[1];
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 0);
    CHECK(write(fds[1], "some", 4) == 4);
    FORKING_TURNS_UNTIL(poller, self->bytes == 8);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

static void *turn_once(void *poller) {
    turn(poller, 0);
    return NULL;
}

static void connections_are_the_parents(st_poller *poller, int a_turn) {
    int port, error, clients[MANY], fd = listen_tcp(&port);
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    CHECK(self->listener != NULL);
    for (int i = 0; i < MANY; i++)
        clients[i] = connect_tcp(port);
    CHECK_EQ(poller->ops->listener_start(self->listener, (unsigned)a_turn), 0);
    if (a_turn < MANY)
        TURN_UNTIL(poller, self->accepted > 0);
    self->on_accepted = fork_in_accepted;
    FORKING_TURNS_UNTIL(poller, self->accepted == MANY);
    poller->ops->listener_close(self->listener);
    TURN_UNTIL(poller, self->closed);
    for (int i = 0; i < MANY; i++) {
        close(clients[i]);
        close(self->fds[i]);
    }
    free_owner(self);
    close(fd);
    poller->ops->free(poller);
}

static void test_accepted(void) { connections_are_the_parents(new_poller(), MANY); }
static void test_kept_accepted(void) { connections_are_the_parents(new_poller(), 2); }

/* By its own accept(2), as on io_uring after a move to another thread. */
static void test_accepted_after_a_move(void) {
    st_poller *poller = new_poller();
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, turn_once, poller), 0);
    pthread_join(thread, NULL);
    turn(poller, 0);
    connections_are_the_parents(poller, MANY);
}

static void watches_are_the_parents(unsigned first, unsigned then) {
    st_poller *poller = new_poller();
    owner *all[MANY], *endless = new_owner(poller);
    uint64_t counted;
    struct iovec part = {&counted, sizeof counted};
    int event = eventfd(0, EFD_CLOEXEC);
    if (poller->ops->file_read != NULL) /* in flight all the time: the ring of files is not the child's either */
        CHECK_EQ(poller->ops->file_read(poller, event, &part, 1, 0, endless), 0);
    int fds[MANY][2];
    for (int i = 0; i < MANY; i++) {
        CHECK(pipe2(fds[i], O_CLOEXEC | O_NONBLOCK) == 0);
        CHECK(write(fds[i][1], "x", 1) == 1);
        all[i] = open_watch(poller, fds[i][0], first);
        all[i]->extra = (void *)(intptr_t)fds[i][0];
        all[i]->on_ready = fork_in_ready;
    }
    for (int i = 0; then && i < 5; i++)
        turn(poller, 5);
    for (int i = 0; then && i < MANY; i++)
        CHECK_EQ(poller->ops->watch_set(all[i]->watch, then), 0);
    for (int i = 0; i < MANY; i++)
        FORKING_TURNS_UNTIL(poller, all[i]->ready_calls == 1);
    for (int i = 0; i < MANY; i++) {
        close_watch(all[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
    free_owner(endless);
    close(event);
}

static void test_ready(void) { watches_are_the_parents(ST_READABLE, 0); }
static void test_kept_ready(void) { watches_are_the_parents(ST_ONCE, ST_ONCE | ST_READABLE); }

static void test_closed(void) {
    st_poller *poller = new_poller();
    owner *all[MANY];
    int fds[MANY][2];
    for (int i = 0; i < MANY; i++)
        all[i] = receiver(poller, fds[i], ST_READ_COPY);
    for (int i = 0; i < MANY; i++) {
        all[i]->on_closed = fork_in_closed;
        poller->ops->stream_close(all[i]->stream, 0);
    }
    for (int i = 0; i < MANY; i++)
        FORKING_TURNS_UNTIL(poller, all[i]->closed);
    for (int i = 0; i < MANY; i++) {
        free_owner(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static int peer;
static size_t peer_got;
static bool end_came_from_the_child;

static void count_data(owner *self, char *data, ssize_t n) {
    (void)data;
    (void)n;
    count_in_child(self);
}

static void fork_when_sent(owner *self, ssize_t n, size_t rest) {
    CHECK(n > 0);
    if (rest > 0)
        return;
    fork_once(self->poller);
    struct pollfd more = {.fd = peer, .events = POLLIN};
    while (!in_child && !end_came_from_the_child && poll(&more, 1, 200) == 1) {
        char some[65536];
        ssize_t got = read(peer, some, sizeof some);
        peer_got += got > 0 ? (size_t)got : 0;
        end_came_from_the_child = got == 0;
    }
}

/* The end of the connection, asked for behind what is sent, does not come from the child; nor does it receive what
 * arrived meanwhile. */
static void test_sent(void) {
    st_poller *poller = new_poller();
    enum { BYTES = 4000000 };
    char *data = malloc(BYTES);
    fill_pattern(data, BYTES, 2);
    int fds[2];
    tcp_pair(fds);
    peer = fds[1];
    fcntl(peer, F_SETFL, O_NONBLOCK);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    self->on_sent = fork_when_sent;
    self->on_data = count_data;
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    CHECK_EQ(send_bytes(self, data, BYTES), 0);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0);
    for (double until = now_s() + 20; now_s() < until;) {
        char some[65536];
        ssize_t n = read(peer, some, sizeof some);
        if (n == 0)
            break;
        peer_got += n > 0 ? (size_t)n : 0;
        if (peer_got < BYTES)
            CHECK(write(peer, "x", 1) == 1);
        turned(poller, poller->ops->turn(poller, 1000000, 1, 0));
    }
    CHECK_EQ(peer_got, BYTES);
    CHECK(!end_came_from_the_child);
    close_stream(self);
    close(peer);
    free(data);
    poller->ops->free(poller);
}

static void fork_in_sent(owner *self, ssize_t n, size_t rest) {
    CHECK(n > 0 && rest == 0);
    fork_once(self->poller);
}

static void test_many_sent(void) {
    st_poller *poller = new_poller();
    owner *all[MANY];
    int fds[MANY][2];
    bool taken[MANY];
    char got[10];
    for (int i = 0; i < MANY; i++) {
        all[i] = receiver(poller, fds[i], ST_READ_COPY);
        all[i]->on_sent = fork_in_sent;
        taken[i] = send_bytes(all[i], "0123456789", sizeof got) == 0;
    }
    for (int i = 0; i < MANY; i++) {
        FORKING_TURNS_UNTIL(poller, !taken[i] || all[i]->sends_over == 1);
        read_exactly(fds[i][1], got, sizeof got);
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static void fork_in_part(owner *self, ssize_t n, size_t rest) {
    (void)rest;
    CHECK(n > 0);
    fork_once(self->poller);
}

/* Sends of which a part leaves: on io_uring their reports are looked for among all completions. */
static void test_partly_sent(void) {
    enum { BYTES = 16000 };
    st_poller *poller = new_poller();
    owner *all[MANY];
    int fds[MANY][2], smallest = 1;
    static char data[BYTES], got[BYTES];
    size_t total = 0;
    for (int i = 0; i < MANY; i++) {
        unix_pair(fds[i]);
        CHECK(setsockopt(fds[i][0], SOL_SOCKET, SO_SNDBUF, &smallest, sizeof smallest) == 0);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->on_sent = fork_in_part;
        CHECK_EQ(send_bytes(all[i], data, BYTES), 0);
    }
    for (double until = now_s() + 10; total < MANY * BYTES;) {
        CHECK(now_s() < until);
        turned(poller, poller->ops->turn(poller, 1000000, 1, 0));
        for (int i = 0; i < MANY; i++) {
            ssize_t n = recv(fds[i][1], got, BYTES, MSG_DONTWAIT);
            total += n > 0 ? (size_t)n : 0;
        }
    }
    for (int i = 0; i < MANY; i++) {
        close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

enum { PARTS = 2000 /* more than one call takes */ };

static void send_many_parts(owner *self, char *data, ssize_t n) {
    static struct iovec parts[PARTS];
    count_data(self, data, n);
    if (self->extra != NULL)
        return;
    self->extra = parts;
    for (int i = 0; i < PARTS; i++)
        parts[i] = (struct iovec){into, 1};
    CHECK_EQ(self->poller->ops->stream_send(self->stream, parts, PARTS), 0);
}

static void fork_at_the_end(owner *self, ssize_t n, size_t rest) {
    CHECK(n > 0);
    if (rest == 0)
        fork_once(self->poller);
}

/* The second half of a send goes without an event, in the same breath as the end of file is read. */
static void test_sent_before_more_is_read(void) {
    st_poller *poller = new_poller();
    int fds[2];
    static char got[PARTS];
    owner *self = receiver(poller, fds, ST_READ_COPY);
    self->on_data = send_many_parts;
    self->on_sent = fork_at_the_end;
    CHECK(write(fds[1], got, 1000) == 1000 && shutdown(fds[1], SHUT_WR) == 0);
    usleep(10000);
    FORKING_TURNS_UNTIL(poller, self->sends_over == 1 && self->ended);
    read_exactly(fds[1], got, PARTS);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

static void test_file_done(void) {
    st_poller *poller = new_poller();
    if (poller->ops->file_write != NULL) {
        file_fd = open(".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
        owner *all[MANY];
        struct iovec part = {into, sizeof into};
        for (int i = 0; i < MANY; i++) {
            all[i] = new_owner(poller);
            all[i]->on_file_done = fork_in_file_done;
            CHECK_EQ(poller->ops->file_write(poller, file_fd, &part, 1, i * 100, 0, all[i]), 0);
        }
        for (int i = 0; i < MANY; i++) {
            FORKING_TURNS_UNTIL(poller, all[i]->files_done);
            CHECK_EQ(all[i]->file_result, sizeof into);
            free_owner(all[i]);
        }
        TURN_UNTIL(poller, another->files_done);
        free_owner(another);
        close(file_fd);
    }
    poller->ops->free(poller);
}

enum { ENDLESS = 3 };

/* Of one event each, so that nothing ends before it is told to. */
static void begin_endless_reads(st_poller *poller, owner *all[ENDLESS], int events[ENDLESS]) {
    static uint64_t values[ENDLESS];
    for (int i = 0; i < ENDLESS; i++) {
        struct iovec part = {&values[i], sizeof values[i]};
        events[i] = eventfd(0, EFD_CLOEXEC);
        all[i] = new_owner(poller);
        all[i]->on_file_done = fork_in_buffer;
        CHECK_EQ(poller->ops->file_read(poller, events[i], &part, 1, 0, all[i]), 0);
    }
    turn(poller, 0);
}

static void end_endless_reads(owner *all[ENDLESS], int events[ENDLESS]) {
    for (int i = 0; i < ENDLESS; i++) {
        CHECK_EQ(all[i]->files_done, 1);
        free_owner(all[i]);
        close(events[i]);
    }
}

/* Operations that ended between two turns, and are reported before the second one asks the kernel for anything. */
static void test_file_done_between_turns(void) {
    st_poller *poller = new_poller();
    if (poller->ops->file_read != NULL) {
        owner *all[ENDLESS];
        int events[ENDLESS];
        begin_endless_reads(poller, all, events);
        for (int i = 0; i < ENDLESS; i++)
            CHECK(write(events[i], &(uint64_t){7}, 8) == 8);
        usleep(20000);
        for (int i = 0; i < ENDLESS; i++) {
            FORKING_TURNS_UNTIL(poller, all[i]->files_done);
            CHECK_EQ(all[i]->file_result, 8);
        }
        end_endless_reads(all, events);
    }
    poller->ops->free(poller);
}

/* When the poller ends everybody is told, once, in both processes. */
static void test_file_done_at_the_end(void) {
    st_poller *poller = new_poller();
    owner *all[ENDLESS];
    int events[ENDLESS];
    bool files = poller->ops->file_read != NULL;
    if (files)
        begin_endless_reads(poller, all, events);
    poller->ops->free(poller);
    if (files)
        end_endless_reads(all, events);
    if (in_child)
        _exit(0);
}

/* What is written in the child, to a connection that it only inherited, is not the parent's to answer for. */
static void test_nothing_is_sent_in_the_child(void) {
    static const char small[] = "child", large[100000];
    st_poller *poller = new_poller();
    int fds[2];
    char got[10];
    owner *self = receiver(poller, fds, ST_READ_COPY);
    turn(poller, 0);
    pid_t child = fork();
    if (child == 0) {
        int before = open_descriptors();
        poller->ops->after_fork(poller);
        CHECK_EQ(open_descriptors(), before - 2); /* they would keep what the parent closes */
        CHECK(send_bytes(self, small, sizeof small) < 0);
        CHECK(send_bytes(self, large, sizeof large) < 0);
        CHECK(poller->ops->stream_shutdown(self->stream) < 0);
        poller->ops->stream_close(self->stream, 0);
        CHECK(fcntl(fds[0], F_GETFD) < 0); /* at once: the parent's close would not end the connection */
        poller->ops->free(poller);
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(recv(fds[1], got, sizeof got, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    CHECK(send_bytes(self, "parent", 6) >= 0);
    turn(poller, 0);
    read_exactly(fds[1], got, 6);
    CHECK(memcmp(got, "parent", 6) == 0);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

/* The child's poller has lost its descriptors: a wake-up does not reach whoever got their numbers. */
static void test_wake_in_the_child(void) {
    st_poller *poller = new_poller();
    turn(poller, 0);
    pid_t child = fork();
    if (child == 0) {
        int fds[4];
        poller->ops->after_fork(poller);
        for (int i = 0; i < 4; i++)
            fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        CHECK(poller->ops->wake(poller) < 0);
        for (int i = 0; i < 4; i++) {
            uint64_t count_;
            CHECK(read(fds[i], &count_, sizeof count_) < 0 && errno == EAGAIN);
        }
        poller->ops->free(poller);
        for (int i = 0; i < 4; i++)
            CHECK(close(fds[i]) == 0);
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(data),      TEST(data_into),     TEST(much_data), TEST(buffer),     TEST(kept_data),
        TEST(kept_data_into), TEST(more_data), TEST(accepted), TEST(kept_accepted), TEST(accepted_after_a_move), TEST(ready), TEST(kept_ready),
        TEST(closed),    TEST(sent),          TEST(many_sent), TEST(file_done),  TEST(wake_in_the_child),
        TEST(partly_sent), TEST(nothing_is_sent_in_the_child), TEST(file_done_between_turns), TEST(file_done_at_the_end),
        TEST(sent_before_more_is_read),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
