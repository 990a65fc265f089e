/* Small sends, the same for every poller unless it says io_uring: what is reported of them, and when. argv[1] names the
 * poller. */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"
#include "st_uring.h"

enum { STREAMS = 20 };
static char large[ST_BATCHED_BYTES_MAX + 1];
static owner *all[STREAMS];
static int fds[STREAMS][2];

static bool on_uring(void) { return strcmp(poller_name, "io_uring") == 0; }

static void answer(owner *self, char *data, ssize_t n) {
    (void)data;
    if (n > 0)
        CHECK(send_bytes(self, "answer", 6) >= 0);
}

/* A poller whose loop runs. Not on io_uring, where that ties it to this thread. */
static st_poller *running_poller(void) {
    st_poller *poller = new_poller();
    if (!on_uring())
        poller->ops->begin(poller);
    return poller;
}

/* Streams that have answered, in their poller. They did so in one turn, so most answers have not left yet. */
static st_poller *answering(void) {
    st_poller *poller = running_poller();
    for (int i = 0; i < STREAMS; i++) {
        tcp_pair(fds[i]);
        all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
        all[i]->on_data = answer;
        poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
        CHECK(write(fds[i][1], "question", 8) == 8);
    }
    for (int i = 0; i < STREAMS; i++)
        TURN_UNTIL(poller, all[i]->bytes == 8);
    return poller;
}

static void done(st_poller *poller) {
    for (int i = 0; i < STREAMS; i++) {
        char got[100];
        ssize_t n = 0, more;
        while ((more = recv(fds[i][1], got + n, sizeof got - (size_t)n, MSG_DONTWAIT)) > 0)
            n += more;
        CHECK_EQ(n, 6); /* once, and whole */
        CHECK_EQ(all[i]->send_error, 0);
        close_stream(all[i]);
        close(fds[i][1]);
    }
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

/* The answers leave, and the turn sleeps: that they have left is no reason to come back. */
static void test_answers_leave_while_the_turn_sleeps(void) {
    st_poller *poller = answering();
    if (on_uring() && !((st_uring *)poller)->quiet_sends) {
        printf("     not run: this kernel tells nothing of short sends\n");
        return;
    }
    int over = 0;
    for (int i = 0; i < STREAMS; i++)
        over += all[i]->sends_over;
    CHECK(over < STREAMS);
    uint64_t waits = count(poller).waits;
    double begin = now_s();
    CHECK_EQ(turn(poller, 100), STREAMS - over); /* told in the turn they left in */
    CHECK(now_s() - begin > 0.09);
    CHECK_EQ(count(poller).waits - waits, 1);
    for (int i = 0; i < STREAMS; i++)
        CHECK_EQ(all[i]->sends_over, 1);
    done(poller);
}

/* Unless somebody waits for that: 60 s is never. */
static void test_awaited_sends_end_the_turn(void) {
    st_poller *poller = answering();
    all[STREAMS - 1]->stream->sent_awaited = 1;
    CHECK_EQ(all[STREAMS - 1]->sends_over, 0);
    CHECK(poller->ops->turn(poller, 60000000000, 1, 0) > 0);
    done(poller);
}

/* Nor does an end of file that is to follow wait for anything else. */
static void test_shutdown_follows_at_once(void) {
    st_poller *poller = answering();
    struct pollfd end = {.fd = fds[STREAMS - 1][1], .events = POLLRDHUP};
    bool pending = all[STREAMS - 1]->sends_over == 0;
    CHECK_EQ(poller->ops->stream_shutdown(all[STREAMS - 1]->stream), 0);
    if (pending)
        CHECK(poller->ops->turn(poller, on_uring() ? 60000000000 : 0, 1, 0) > 0);
    CHECK(poll(&end, 1, 1000) == 1);
    done(poller);
}

static void *turn_once(void *poller) {
    turn(poller, 50);
    return NULL;
}

/* Sent when the loop stopped, told when it runs again, which need not wait for anything; and in whichever thread. */
static void told_later(bool elsewhere, bool more) {
    st_poller *poller = answering();
    for (int i = 0; i < STREAMS; i++) {
        all[i]->on_data = NULL;
        CHECK(!more || write(fds[i][1], "more", 4) == 4); /* received as well while nobody is told */
    }
    poller->ops->settle(poller);
    int over = 0;
    for (int i = 0; i < STREAMS; i++) {
        over += all[i]->sends_over;
        CHECK(poll(&(struct pollfd){.fd = fds[i][1], .events = POLLIN}, 1, 1000) == 1);
    }
    if (elsewhere) {
        pthread_t thread;
        pthread_create(&thread, NULL, turn_once, poller);
        pthread_join(thread, NULL);
    } else if (over < STREAMS) {
        CHECK(poller->ops->turn(poller, 60000000000, 1, 0) > 0);
    }
    for (int i = 0; i < STREAMS; i++) {
        CHECK_EQ(all[i]->sends_over, 1);
        TURN_UNTIL(poller, all[i]->bytes == (more ? 12 : 8));
    }
    done(poller);
}

static void test_told_when_the_loop_runs_again(void) { told_later(false, true); }
static void test_told_when_nothing_else_happens(void) { told_later(false, false); }
static void test_told_in_another_thread(void) { told_later(true, true); }

/* Who is asked again while an answer leaves has nothing in flight when it hears of that. */
static void test_asked_again_while_the_answer_leaves(void) {
    st_poller *poller = answering();
    for (int i = 0; i < STREAMS; i++)
        CHECK(write(fds[i][1], "question", 8) == 8);
    for (int i = 0; i < STREAMS; i++) {
        char got[6];
        TURN_UNTIL(poller, all[i]->bytes == 16);
        turn(poller, 0);
        read_exactly(fds[i][1], got, sizeof got);
    }
    turn(poller, 0);
    done(poller);
}

/* What is written before the first of it leaves goes with it, in order; beyond that it has to wait. */
static void test_more_before_it_leaves(void) {
    st_poller *poller = answering();
    TURN_UNTIL(poller, all[0]->sends_over && all[1]->sends_over);
    owner *self = all[0];
    char sent[3000], got[sizeof sent];
    fill_pattern(sent, sizeof sent, 3);
    self->on_data = NULL;
    CHECK_EQ(poller->ops->stream_send_more(self->stream, sent, 1), -EBUSY); /* to nothing */
    for (int i = 0; i < STREAMS; i++)
        CHECK(write(fds[i][1], "question", 8) == 8);
    TURN_UNTIL(poller, self->bytes == 16);
    CHECK_EQ(send_bytes(self, sent, 100), 0);
    size_t n = 100;
    int parts = 1;
    while (poller->ops->stream_send_more(self->stream, sent + n, 10) == 0) {
        n += 10;
        parts++;
    }
    CHECK(parts >= 64 && n < sizeof sent);
    read_exactly(fds[0][1], got, 6);
    int over = self->sends_over;
    uint64_t sends = count(poller).sends;
    turn(poller, 0);
    CHECK_EQ(self->sends_over, over + 1);
    CHECK_EQ(self->sent, 6 + n);
    CHECK(count(poller).sends - sends <= STREAMS); /* one for all the parts */
    read_exactly(fds[0][1], got, n);
    CHECK(memcmp(sent, got, n) == 0);
    CHECK(recv(fds[0][1], got, 1, MSG_DONTWAIT) < 0);
    self->on_data = answer;
    for (int i = 1; i < STREAMS; i++)
        read_exactly(fds[i][1], got, 6);
    for (int i = 0; i < STREAMS; i++)
        CHECK(write(fds[i][1], "question", 8) == 8);
    TURN_UNTIL(poller, self->bytes == 24);
    CHECK_EQ(poller->ops->stream_send_more(self->stream, large, ST_BATCHED_BYTES_MAX), -EBUSY);
    CHECK_EQ(poller->ops->stream_shutdown(self->stream), 0);
    CHECK_EQ(poller->ops->stream_send_more(self->stream, large, 1), -EBUSY);
    for (int i = 1; i < STREAMS; i++) {
        TURN_UNTIL(poller, all[i]->bytes == 24);
        turn(poller, 0);
        read_exactly(fds[i][1], got, 6);
    }
    done(poller);
}

static int refused;

static void more_to_others(owner *self, ssize_t n, size_t rest) {
    (void)n, (void)rest;
    for (int i = 0; i < STREAMS; i++)
        if (all[i] != self)
            refused += self->poller->ops->stream_send_more(all[i]->stream, "lost", 4) == -EBUSY;
}

/* Nor is more taken by a send that has left, and only was not reported yet. */
static void test_more_while_others_are_reported(void) {
    if (!on_uring())
        return;
    st_poller *poller = answering();
    turn(poller, 0);
    for (int i = 0; i < STREAMS; i++) {
        char got[6];
        TURN_UNTIL(poller, all[i]->sends_over == 1);
        read_exactly(fds[i][1], got, sizeof got);
    }
    for (int i = 0; i < STREAMS; i++) {
        all[i]->on_sent = more_to_others;
        CHECK_EQ(send_bytes(all[i], "again!", 6), 0);
    }
    TURN_UNTIL(poller, all[STREAMS - 1]->sends_over == 2);
    CHECK_EQ(refused, STREAMS * (STREAMS - 1));
    done(poller);
}

/* What has not left when its stream is closed leaves then, and its memory is free once `closed` was told. */
static void all_closed(st_poller *poller) {
    for (int i = 0; i < STREAMS; i++) {
        char got[7];
        TURN_UNTIL(poller, all[i]->closed);
        CHECK_EQ(recv(fds[i][1], got, sizeof got, MSG_WAITALL), 6);
        free_owner(all[i]);
        close(fds[i][1]);
    }
    poller->ops->free(poller);
}

static void test_closed_before_it_leaves(void) {
    st_poller *poller = answering();
    int over[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        over[i] = all[i]->sends_over;
        poller->ops->stream_close(all[i]->stream, 0);
    }
    CHECK(over[STREAMS - 1] == 0);
    turn(poller, 0);
    for (int i = 0; i < STREAMS; i++)
        CHECK_EQ(all[i]->sends_over, over[i]);
    all_closed(poller);
}

static void close_all(owner *self, ssize_t n, size_t rest) {
    (void)n, (void)rest;
    for (int i = 0; i < STREAMS; i++)
        self->poller->ops->stream_close(all[i]->stream, 0);
}

/* Nor twice, where it has left and that was not told yet. */
static void test_closed_while_others_are_reported(void) {
    st_poller *poller = answering();
    for (int i = 0; i < STREAMS; i++) {
        all[i]->on_sent = close_all;
        all[i]->stream->sent_awaited = 1; /* else io_uring tells before anything else */
    }
    turn(poller, 0);
    all_closed(poller);
}

/* Who turns a loop that does not run may not turn it again for long. */
static void test_sent_at_once_by_a_loop_that_stopped(void) {
    if (on_uring())
        return; /* leaves with the turn or with settle, whoever turns it */
    st_poller *poller = answering();
    char got[6];
    poller->ops->settle(poller);
    turn(poller, 0);
    for (int i = 0; i < STREAMS; i++) {
        read_exactly(fds[i][1], got, sizeof got);
        CHECK(write(fds[i][1], "question", 8) == 8);
    }
    for (int i = 0; i < STREAMS; i++)
        TURN_UNTIL(poller, all[i]->bytes == 16);
    CHECK_EQ(all[STREAMS - 1]->sends_over, 1); /* the answers of the first turn; these are not in flight at all */
    done(poller);
}

static void answer_large(owner *self, char *data, ssize_t n) {
    (void)data, (void)n;
    CHECK_EQ(send_bytes(self, large, sizeof large), sizeof large);
}

/* The copy of a large answer costs more than its system call, and less while it is in the cache. */
static void test_large_answers_leave_at_once(void) {
    st_poller *poller = answering();
    turn(poller, 0);
    for (int i = 0; i < STREAMS; i++) {
        all[i]->on_data = answer_large;
        CHECK(write(fds[i][1], "question", 8) == 8);
    }
    for (int i = 0; i < STREAMS; i++) {
        TURN_UNTIL(poller, all[i]->bytes == 16);
        read_exactly(fds[i][1], large, sizeof large);
    }
    done(poller);
}

static void answer_and_close(owner *self, char *data, ssize_t n) {
    answer(self, data, n);
    self->poller->ops->stream_close(self->stream, 0);
}

/* Also in the turn in which it was asked for: what is left of the turn, and the next one, find nothing that is freed. */
static void test_closed_in_the_turn_it_was_written_in(void) {
    st_poller *poller = answering();
    for (int i = 0; i < STREAMS; i++) {
        all[i]->on_data = answer_and_close;
        CHECK(write(fds[i][1], "question", 8) == 8);
    }
    for (int i = 0; i < STREAMS; i++) {
        char got[13];
        TURN_UNTIL(poller, all[i]->closed);
        CHECK_EQ(all[i]->sends_over, 1);
        CHECK_EQ(recv(fds[i][1], got, sizeof got, MSG_WAITALL), 12);
        free_owner(all[i]);
        close(fds[i][1]);
    }
    turn(poller, 0);
    poller->ops->free(poller);
}

/* In a forked child it is the parent's: sent once, by the parent. */
static void test_the_parent_sends(void) {
    st_poller *poller = answering();
    CHECK_EQ(all[STREAMS - 1]->sends_over, 0);
    pid_t child = fork();
    if (child == 0) {
        poller->ops->after_fork(poller);
        poller->ops->settle(poller);
        poller->ops->turn(poller, 0, 1, 0);
        poller->ops->stream_close(all[STREAMS - 1]->stream, 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(recv(fds[STREAMS - 1][1], (char[1]){0}, 1, MSG_DONTWAIT) < 0);
    turn(poller, 0);
    done(poller);
}

static void answer_again(owner *self, ssize_t n, size_t rest) {
    (void)n, (void)rest;
    self->on_sent = NULL;
    CHECK_EQ(send_bytes(self, "again!", 6), 0);
}

/* Who is told before the wait may send: that leaves too, before the loop sleeps. */
static void test_sent_by_who_was_told(void) {
    if (on_uring())
        return; /* tells after the wait */
    st_poller *poller = answering();
    char got[12];
    all[0]->on_sent = answer_again;
    CHECK(poller->ops->turn(poller, 60000000000, 1, 0) > 0);
    turn(poller, 0);
    read_exactly(fds[0][1], got, sizeof got);
    CHECK(memcmp(got, "answeragain!", sizeof got) == 0);
    for (int i = 1; i < STREAMS; i++)
        read_exactly(fds[i][1], got, 6);
    CHECK_EQ(send_bytes(all[0], "direct", 6), 6); /* a turn without events serves nobody else */
    for (int i = 1; i < STREAMS; i++)
        CHECK_EQ(send_bytes(all[i], "direct", 6), 6);
    done(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(answers_leave_while_the_turn_sleeps),
        TEST(awaited_sends_end_the_turn),
        TEST(shutdown_follows_at_once),
        TEST(told_when_the_loop_runs_again),
        TEST(told_when_nothing_else_happens),
        TEST(told_in_another_thread),
        TEST(asked_again_while_the_answer_leaves),
        TEST(more_before_it_leaves),
        TEST(more_while_others_are_reported),
        TEST(closed_before_it_leaves),
        TEST(closed_while_others_are_reported),
        TEST(closed_in_the_turn_it_was_written_in),
        TEST(sent_at_once_by_a_loop_that_stopped),
        TEST(large_answers_leave_at_once),
        TEST(the_parent_sends),
        TEST(sent_by_who_was_told),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
