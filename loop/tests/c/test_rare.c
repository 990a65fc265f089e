/* What the kernel or the memory does so rarely that it is played here, inside the io_uring poller. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "harness.h"
#include "st_uring.h"

static owner *to_be_closed;

static void close_another(owner *self, ssize_t n, size_t rest) {
    (void)self, (void)n, (void)rest;
    if (to_be_closed != NULL)
        to_be_closed->poller->ops->stream_close(to_be_closed->stream, 0);
    to_be_closed = NULL;
}

static void send_quietly(owner *self, const char *bytes, size_t n) {
    CHECK_EQ(send_bytes(self, bytes, n), 0);
    CHECK(st_uring_stream_flush((st_uring_stream *)self->stream));
}

/* One send is over, another was not taken yet, and the first one's owner has that done: it is not over for being silent. */
static void taken_while_others_are_reported(bool room) {
    static char filler[65536], got[sizeof filler];
    int fds[3][2];
    owner *all[3];
    st_poller *poller = new_poller();
    st_ring *ring = &((st_uring *)poller)->ring;
    for (int i = 0; i < 3; i++) {
        unix_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
    }
    poller->ops->stream_read_start(all[2]->stream, ST_READ_COPY);
    turn(poller, 0);
    size_t filled = 0;
    for (ssize_t n; !room && (n = send(fds[1][0], filler, sizeof filler, MSG_DONTWAIT)) > 0;)
        filled += (size_t)n;
    send_quietly(all[0], "over", 4);
    CHECK_EQ(st_ring_enter(ring, 0, 0, 0), 0);
    send_quietly(all[1], "is there any room", 17);
    CHECK_EQ(st_ring_queued(ring), 1);
    all[0]->on_sent = close_another;
    to_be_closed = all[2];
    st_uring_quiet_over((st_uring *)poller);
    CHECK_EQ(all[0]->sends_over, 1);
    CHECK_EQ(st_ring_queued(ring), 0);
    CHECK_EQ(all[1]->sends_over, 0);
    all[1]->stream->sent_awaited = 1;
    for (size_t left = filled; left > 0;) {
        ssize_t n = recv(fds[1][1], got, left < sizeof got ? left : sizeof got, 0);
        CHECK(n > 0);
        left -= (size_t)n;
    }
    TURN_UNTIL(poller, all[1]->sends_over == 1);
    read_exactly(fds[1][1], got, 17);
    CHECK(memcmp(got, "is there any room", 17) == 0);
    TURN_UNTIL(poller, all[2]->closed);
    free_owner(all[2]);
    for (int i = 0; i < 3; i++) {
        if (i < 2)
            close_stream(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static void test_a_send_taken_while_others_are_reported(void) {
    taken_while_others_are_reported(false);
    taken_while_others_are_reported(true);
}

/* No memory for bytes that nobody reads is the end of a stream. What comes after them is not told as if it came next. */
static void test_nothing_follows_a_hole(void) {
    st_poller *poller = new_poller();
    int fds[2];
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 0);
    st_uring_stream *stream = (st_uring_stream *)self->stream;
    stream->ended = true;
    stream->end_result = -ENOMEM;
    CHECK(write(fds[1], "behind", 6) == 6);
    TURN_UNTIL(poller, count(poller).receives > 0);
    CHECK_EQ(self->bytes, 0);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    TURN_UNTIL(poller, self->ended);
    CHECK_EQ(self->end_result, -ENOMEM);
    CHECK_EQ(self->bytes, 0);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

/* Streams that wait for a buffer are closed: at the end of the queue, in its middle and at its head. The others get theirs. */
enum { STARVING = 12, BYTES = 2000 };

static void test_the_starved_are_closed(void) {
    ring_buffers = 2;
    ring_buffer_bytes = 64;
    st_poller *poller = new_poller();
    static char data[BYTES];
    int fds[STARVING][2], closed = 0;
    owner *all[STARVING];
    for (int i = 0; i < STARVING; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
        CHECK(write(fds[i][1], data, BYTES) == BYTES);
    }
    turn(poller, 0);
    st_uring_group *group = &((st_uring *)poller)->small;
    for (int which = 0; which < 4; which++) {
        CHECK(group->starved_first != NULL && group->starved_first != group->starved_last);
        st_uring_stream *leaving = which == 0   ? group->starved_last
                                   : which == 1 ? group->starved_first->starved_next
                                                : group->starved_first;
        for (int i = 0; i < STARVING; i++)
            if (all[i] != NULL && (st_uring_stream *)all[i]->stream == leaving) {
                poller->ops->stream_close(all[i]->stream, 0);
                TURN_UNTIL(poller, all[i]->closed);
                free_owner(all[i]);
                all[i] = NULL;
                closed++;
                break;
            }
    }
    CHECK_EQ(closed, 4);
    for (int i = 0; i < STARVING; i++) {
        if (all[i] != NULL) {
            TURN_UNTIL(poller, all[i]->bytes == BYTES);
            close_stream(all[i]);
        }
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

/* A poll that was taken back once can be taken back again, and its stream be closed. */
static void test_a_pipe_is_paused_twice(void) {
    st_poller *poller = new_poller();
    int fds[2];
    CHECK(pipe2(fds, O_CLOEXEC | O_NONBLOCK) == 0);
    owner *self = open_stream(poller, fds[0], ST_PIPE);
    for (int i = 0; i < 5; i++) {
        if (i % 2)
            poller->ops->stream_read_stop(self->stream);
        else
            poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        turn(poller, 0);
    }
    close_stream(self);
    CHECK_EQ(count(poller).in_flight, 0);
    close(fds[1]);
    poller->ops->free(poller);
}

/* From here on, in this thread, submissions are refused that do not fetch completions as well: those in between. */
static void refuse_to_make_room(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ST_NR_IO_URING_ENTER, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EBUSY),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {.len = sizeof program / sizeof program[0], .filter = program};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
}

enum { CROWD = 12 };

static void accept_one(owner *self, int fd) {
    (void)self;
    CHECK(fd >= 0 && close(fd) == 0);
}

/* A turn has room for four requests and the kernel makes no more: what found none goes with the next turns. */
static void test_no_room_in_this_turn(void) {
    ring_entries = 4;
    int pairs[CROWD][2], others[CROWD][2], ports[CROWD], listening[CROWD], error = 0;
    owner *streams[CROWD], *watches[CROWD], *listeners[CROWD];
    refuse_to_make_room();
    st_poller *poller = new_poller();
    for (int i = 0; i < CROWD; i++) {
        tcp_pair(pairs[i]);
        unix_pair(others[i]);
        listening[i] = listen_tcp(&ports[i]);
        streams[i] = open_stream(poller, pairs[i][0], ST_SOCKET);
        poller->ops->stream_read_start(streams[i]->stream, ST_READ_COPY);
        watches[i] = open_watch(poller, others[i][0], ST_READABLE | ST_ONCE);
        listeners[i] = new_owner(poller);
        listeners[i]->on_accepted = accept_one;
        listeners[i]->listener = poller->ops->listener_open(poller, listening[i], listeners[i], &error);
        poller->ops->listener_start(listeners[i]->listener, 8);
    }
    turn(poller, 0);
    for (int i = 0; i < CROWD; i++) {
        CHECK_EQ(send_bytes(streams[i], "answer", 6) >= 0, 1);
        CHECK(write(pairs[i][1], "x", 1) == 1 && write(others[i][1], "x", 1) == 1);
        close(connect_tcp(ports[i]));
    }
    for (int i = 0; i < CROWD; i++) {
        char answer[6];
        TURN_UNTIL(poller, streams[i]->bytes == 1 && watches[i]->ready_calls == 1 && listeners[i]->accepted == 1);
        TURN_UNTIL(poller, recv(pairs[i][1], answer, 6, MSG_PEEK | MSG_DONTWAIT) == 6);
    }
    for (int i = 0; i < CROWD; i++) { /* all at once */
        poller->ops->stream_close(streams[i]->stream, 0);
        poller->ops->watch_close(watches[i]->watch);
        poller->ops->listener_close(listeners[i]->listener);
    }
    for (int i = 0; i < CROWD; i++) {
        TURN_UNTIL(poller, streams[i]->closed && watches[i]->closed && listeners[i]->closed);
        free_owner(streams[i]);
        free_owner(watches[i]);
        free_owner(listeners[i]);
        close(pairs[i][1]);
        close(others[i][0]);
        close(others[i][1]);
        close(listening[i]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {TEST(a_send_taken_while_others_are_reported), TEST(nothing_follows_a_hole),
                                 TEST(the_starved_are_closed), TEST(a_pipe_is_paused_twice),
                                 TEST(no_room_in_this_turn)};
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
