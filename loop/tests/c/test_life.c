/* Wake-ups, signals, threads and forks, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

typedef struct storm {
    st_poller *poller;
    int rounds;
    unsigned long added; /* atomic */
} storm;

static void *storm_run(void *argument) {
    storm *self = argument;
    for (int i = 0; i < self->rounds; i++) {
        __atomic_add_fetch(&self->added, 1, __ATOMIC_SEQ_CST);
        CHECK_EQ(self->poller->ops->wake(self->poller), 0);
    }
    return NULL;
}

/* Eight threads add and wake; whoever sleeps on work that was added before is found out by the time limit. */
static void test_wake_storm(void) {
    st_poller *poller = new_poller();
    storm self = {.poller = poller, .rounds = 20000};
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, storm_run, &self);
    double begin = now_s();
    unsigned long seen = 0, turns = 0;
    while (seen < 8ul * 20000) {
        poller->ops->turn(poller, 5000000000, 1, 0);
        seen = __atomic_load_n(&self.added, __ATOMIC_SEQ_CST);
        turns++;
    }
    CHECK(now_s() - begin < 4.5);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    CHECK(turns <= 8ul * 20000);
    turn(poller, 0);
    turn(poller, 0);
    begin = now_s(); /* and the last wake leaves nothing behind that spins */
    turn(poller, 60);
    CHECK(now_s() - begin > 0.05);
    poller->ops->free(poller);
}

static void *wake_later(void *argument) {
    usleep(30000);
    st_poller *poller = argument;
    poller->ops->wake(poller);
    return NULL;
}

static void test_wake_ends_the_wait(void) {
    st_poller *poller = new_poller();
    errno = EBUSY; /* not ours */
    CHECK_EQ(poller->ops->wake(poller), 0); /* before the first turn, too */
    CHECK_EQ(errno, EBUSY);
    double begin = now_s();
    poller->ops->turn(poller, -1, 1, 0);
    CHECK(now_s() - begin < 1);
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, wake_later, poller);
        begin = now_s();
        poller->ops->turn(poller, -1, 1, 0);
        CHECK(now_s() - begin > 0.01 && now_s() - begin < 1);
        pthread_join(thread, NULL);
    }
    poller->ops->free(poller);
}

static st_poller *woken_by_signal;
static int signals;

static void on_signal(int number) {
    (void)number;
    signals++;
    if (woken_by_signal != NULL)
        woken_by_signal->ops->wake(woken_by_signal);
}

static void *signal_later(void *argument) {
    usleep(30000);
    pthread_kill(*(pthread_t *)argument, SIGUSR1);
    return NULL;
}

static void test_signals(void) {
    st_poller *poller = new_poller();
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t self = pthread_self(), thread;
    for (int wakes = 0; wakes < 2; wakes++) {
        woken_by_signal = wakes ? poller : NULL;
        turn(poller, 0);
        for (int i = 0; i < 10; i++) {
            /* With something to submit, which must not hide why the wait ended. */
            int fds[2];
            unix_pair(fds);
            owner *watched = open_watch(poller, fds[0], ST_READABLE);
            signals = 0;
            pthread_create(&thread, NULL, signal_later, &self);
            double begin = now_s();
            int result = poller->ops->turn(poller, i % 2 ? -1 : 30000000000, 1, 0);
            CHECK(now_s() - begin < 1);
            CHECK(signals == 1 && (wakes ? result == -EINTR || result >= 0 : result == -EINTR));
            pthread_join(thread, NULL);
            close_watch(watched);
            close(fds[0]);
            close(fds[1]);
        }
    }
    poller->ops->free(poller);
}

typedef struct move {
    st_poller *poller;
    owner *stream, *watch, *sender, *listener;
    int *stream_fds, *watch_fds, port, client;
    size_t expected, pattern_bytes;
    const char *pattern;
    int number;
} move;

/* One stay in a thread: everything that was armed elsewhere works here. */
static void *stay(void *argument) {
    move *self = argument;
    st_poller *poller = self->poller;
    turn(poller, 0);
    for (int i = 0; i < 20; i++) {
        char message[100];
        fill_pattern(message, sizeof message, (uint64_t)(self->number * 100 + i));
        CHECK(write(self->stream_fds[1], message, sizeof message) == sizeof message);
        self->expected += sizeof message;
        TURN_UNTIL(poller, self->stream->bytes == self->expected);
        CHECK(memcmp(self->stream->data + self->expected - sizeof message, message, sizeof message) == 0);
    }
    int calls = self->watch->ready_calls, accepted = self->listener->accepted;
    CHECK(write(self->watch_fds[1], "w", 1) == 1);
    TURN_UNTIL(poller, self->watch->ready_calls > calls);
    int client = connect_tcp(self->port);
    TURN_UNTIL(poller, self->listener->accepted == accepted + 1);
    close(self->listener->fds[accepted]);
    close(client);
    /* Left behind for the next thread: bytes that came after the last turn here, and a send in the middle. */
    char late[50];
    fill_pattern(late, sizeof late, (uint64_t)self->number);
    CHECK(write(self->stream_fds[1], late, sizeof late) == sizeof late);
    self->expected += sizeof late;
    return NULL;
}

static void consume(owner *self, unsigned events) {
    (void)events;
    char byte;
    CHECK(read((int)(intptr_t)self->extra, &byte, 1) == 1);
}

/* Built here, run in another thread, in a third that outlives its stay, and here again; a large send spans them all. */
static void test_threads(void) {
    st_poller *poller = new_poller();
    int stream_fds[2], watch_fds[2], send_fds[2], error = 0;
    tcp_pair(stream_fds);
    unix_pair(watch_fds);
    tcp_pair(send_fds);
    move self = {.poller = poller, .stream_fds = stream_fds, .watch_fds = watch_fds, .pattern_bytes = 20 << 20};
    char *pattern = malloc(self.pattern_bytes);
    fill_pattern(pattern, self.pattern_bytes, 5);
    int listening = listen_tcp(&self.port);
    self.stream = open_stream(poller, stream_fds[0], ST_SOCKET);
    poller->ops->stream_read_start(self.stream->stream, ST_READ_COPY);
    self.watch = open_watch(poller, watch_fds[0], ST_READABLE);
    self.watch->extra = (void *)(intptr_t)watch_fds[0];
    self.watch->on_ready = consume;
    self.sender = open_stream(poller, send_fds[0], ST_SOCKET);
    CHECK_EQ(send_bytes(self.sender, pattern, self.pattern_bytes), 0);
    self.listener = new_owner(poller);
    self.listener->listener = poller->ops->listener_open(poller, listening, self.listener, &error);
    poller->ops->listener_start(self.listener->listener, 10);

    uint64_t hash = 0;
    size_t got = 0;
    char buffer[100000];
    for (self.number = 0; self.number < 6; self.number++) {
        if (self.number % 3 == 2) {
            stay(&self); /* in the main thread, which lives on while the others run */
        } else {
            pthread_t thread;
            pthread_create(&thread, NULL, stay, &self);
            pthread_join(thread, NULL);
        }
        CHECK_EQ(self.sender->sends_over, 0);
        ssize_t n = read(send_fds[1], buffer, sizeof buffer);
        CHECK(n > 0);
        hash = hash_bytes(hash, buffer, (size_t)n);
        got += (size_t)n;
    }
    while (got < self.pattern_bytes) {
        turn(poller, 0);
        ssize_t n = recv(send_fds[1], buffer, sizeof buffer, MSG_DONTWAIT);
        if (n > 0) {
            hash = hash_bytes(hash, buffer, (size_t)n);
            got += (size_t)n;
        }
    }
    TURN_UNTIL(poller, self.sender->sends_over);
    CHECK_EQ(self.sender->sent, self.pattern_bytes);
    CHECK_EQ(hash, hash_bytes(0, pattern, self.pattern_bytes));
    TURN_UNTIL(poller, self.stream->bytes == self.expected);
    close_stream(self.stream);
    close_stream(self.sender);
    close_watch(self.watch);
    poller->ops->listener_close(self.listener->listener);
    TURN_UNTIL(poller, self.listener->closed);
    free_owner(self.listener);
    close(listening);
    close(watch_fds[0]);
    close(watch_fds[1]);
    close(stream_fds[1]);
    close(send_fds[1]);
    free(pattern);
    CHECK_EQ(count(poller).in_flight, 0);
    poller->ops->free(poller);
}

static void *turn_once(void *argument) {
    st_poller *poller = argument;
    for (int i = 0; i < 3; i++)
        turn(poller, 1);
    return NULL;
}

/* Run in one thread, freed in another: connections end, owners are told. */
static void test_free_in_another_thread(void) {
    int before = open_descriptors();
    for (int i = 0; i < 5; i++) {
        st_poller *poller = new_poller();
        int fds[2];
        tcp_pair(fds);
        owner *self = open_stream(poller, fds[0], ST_SOCKET);
        poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        if (i % 2) {
            pthread_t thread;
            pthread_create(&thread, NULL, turn_once, poller);
            pthread_join(thread, NULL);
        } else {
            turn(poller, 1);
        }
        poller->ops->free(poller);
        CHECK_EQ(self->closed, 1);
        char byte;
        CHECK(read(fds[1], &byte, 1) == 0);
        close(fds[1]);
        free_owner(self);
    }
    CHECK_EQ(open_descriptors(), before);
}

/* Freed with everything still open: descriptors closed, owners told, sends dropped. */
static void test_free_with_open_streams(void) {
    int before = open_descriptors();
    for (int turns = 0; turns < 3; turns++) {
        st_poller *poller = new_poller();
        int fds[20][2], port, error = 0;
        owner *all[20];
        char *pattern = calloc(1, 8 << 20);
        for (int i = 0; i < 20; i++) {
            tcp_pair(fds[i]);
            all[i] = open_stream(poller, fds[i][0], ST_SOCKET);
            poller->ops->stream_read_start(all[i]->stream, ST_READ_COPY);
            if (i % 2)
                CHECK_EQ(send_bytes(all[i], pattern, 8 << 20), 0);
        }
        int listening = listen_tcp(&port);
        owner *listener = new_owner(poller);
        listener->listener = poller->ops->listener_open(poller, listening, listener, &error);
        poller->ops->listener_start(listener->listener, 10);
        for (int i = 0; i < turns; i++)
            turn(poller, 1);
        poller->ops->stream_close(all[0]->stream, 0);
        int other = dup(0); /* gets a number that was closed */
        poller->ops->free(poller);
        CHECK(close(other) == 0);
        for (int i = 0; i < 20; i++) {
            CHECK_EQ(all[i]->closed, 1);
            ssize_t n; /* the connection is really over, not just ours no longer */
            char rest[65536];
            struct pollfd more = {.fd = fds[i][1], .events = POLLIN};
            do {
                CHECK(poll(&more, 1, 1000) == 1);
                n = read(fds[i][1], rest, sizeof rest);
            } while (n > 0);
            close(fds[i][1]);
            free_owner(all[i]);
        }
        CHECK_EQ(listener->closed, 1);
        free_owner(listener);
        CHECK(close(listening) == 0);
        free(pattern);
        CHECK_EQ(open_descriptors(), before);
    }
}

/* Whoever talks to a poller that is freed sees the end by then, not when the kernel has got round to what was in flight. */
static void test_peers_see_the_end_at_once(void) {
    for (int round = 0; round < 50; round++) {
        st_poller *poller = new_poller();
        int fds[2];
        char nothing;
        tcp_pair(fds);
        owner *self = open_stream(poller, fds[0], ST_SOCKET);
        poller->ops->stream_read_start(self->stream, ST_READ_COPY);
        turn(poller, 0);
        poller->ops->free(poller);
        CHECK_EQ(recv(fds[1], &nothing, 1, MSG_DONTWAIT), 0);
        free_owner(self);
        close(fds[1]);
    }
}

/* A child closes what it has inherited and uses a poller of its own; the parent notices nothing. */
static void test_fork(void) {
    st_poller *poller = new_poller();
    int fds[2], watch_fds[2];
    tcp_pair(fds);
    unix_pair(watch_fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    owner *watched = open_watch(poller, watch_fds[0], ST_READABLE);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    turn(poller, 5);
    for (int round = 0; round < 10; round++) {
        pid_t child = fork();
        if (child == 0) {
            poller->ops->after_fork(poller);
            /* It gets the numbers that the inherited one had, and knows descriptors by the same numbers. */
            st_poller *own = new_poller();
            owner *same = open_watch(own, watch_fds[0], ST_WRITABLE);
            CHECK(poller->ops->turn(poller, 0, 1, 0) < 0);
            poller->ops->free(poller);
            CHECK(self->closed == 1 && watched->closed == 1);
            TURN_UNTIL(own, same->ready_calls > 0);
            close_watch(same);
            int own_fds[2];
            tcp_pair(own_fds);
            owner *mine = open_stream(own, own_fds[0], ST_SOCKET);
            own->ops->stream_read_start(mine->stream, ST_READ_COPY);
            CHECK(write(own_fds[1], "child", 5) == 5);
            TURN_UNTIL(own, mine->bytes == 5);
            close_stream(mine);
            own->ops->free(own);
            _exit(0);
        }
        size_t expected = self->bytes + 6;
        CHECK(write(fds[1], "parent", 6) == 6);
        TURN_UNTIL(poller, self->bytes == expected);
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(write(fds[1], "after!", 6) == 6);
        TURN_UNTIL(poller, self->bytes == expected + 6);
    }
    CHECK_EQ(self->ended, 0); /* the children's close(2) was not a shutdown(2) */
    close_stream(self);
    close_watch(watched);
    close(fds[1]);
    close(watch_fds[0]);
    close(watch_fds[1]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(wake_ends_the_wait),
        TEST(wake_storm),
        TEST(signals),
        TEST(threads),
        TEST(free_in_another_thread),
        TEST(free_with_open_streams),
        TEST(peers_see_the_end_at_once),
        TEST(fork),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
