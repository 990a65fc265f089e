/* Accepting connections, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "echo.h"
#include "harness.h"

static bool sleeps(st_poller *poller) {
    double begin = now_s();
    return turn(poller, 50) <= 0 && now_s() - begin > 0.04;
}

static void *turn_once(void *poller) {
    turn(poller, 0);
    return NULL;
}

/* A poller that has come from another thread accepts by itself when a poll says so, also on io_uring. */
static st_poller *moved_poller(void) {
    st_poller *poller = new_poller();
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, turn_once, poller), 0);
    pthread_join(thread, NULL);
    turn(poller, 0);
    return poller;
}

static void accepts_per_turn(st_poller *poller) {
    int port, error = 0, fd = listen_tcp(&port), peers[40];
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, 8);
    turn(poller, 0);
    for (int i = 0; i < 40; i++)
        peers[i] = connect_tcp(port);
    while (self->accepted < 40) {
        int before = self->accepted;
        CHECK(turn(poller, 1000) > 0);
        CHECK(self->accepted <= before + 8);
    }
    for (int i = 0; i < 40; i++) {
        int flags = fcntl(self->fds[i], F_GETFL);
        CHECK((flags & O_NONBLOCK) && (fcntl(self->fds[i], F_GETFD) & FD_CLOEXEC));
        close(self->fds[i]);
        close(peers[i]);
    }
    CHECK(sleeps(poller));
    /* Stopped: nobody is told. Started again: nobody is lost. */
    poller->ops->listener_stop(self->listener);
    peers[0] = connect_tcp(port);
    for (int i = 0; i < 3; i++)
        turn(poller, 10);
    CHECK_EQ(self->accepted, 40);
    poller->ops->listener_start(self->listener, 8);
    TURN_UNTIL(poller, self->accepted == 41);
    close(self->fds[40]);
    close(peers[0]);
    stop_server(self, fd);
    poller->ops->free(poller);
}

static void test_accepts_per_turn(void) {
    accepts_per_turn(new_poller());
    accepts_per_turn(moved_poller());
}

static void test_closed_listener_refuses(void) {
    st_poller *poller = new_poller();
    int port, error = 0, fd = listen_tcp(&port);
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, 8);
    turn(poller, 0);
    poller->ops->listener_close(self->listener);
    close(fd);
    /* No turn in between: the port must be free for others at once. */
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == -1 && errno == ECONNREFUSED);
    close(client);
    TURN_UNTIL(poller, self->closed);
    CHECK_EQ(self->accepted, 0);
    free_owner(self);
    poller->ops->free(poller);
}

static void stop_at_each(owner *self, int fd) {
    CHECK(fd >= 0);
    self->poller->ops->listener_stop(self->listener);
}

/* Stopped by its owner with more connections there: they come when it is started again, or see the end with it. */
static void test_stopped_with_more_to_come(void) {
    enum { CLIENTS = 8, TAKEN = 5 };
    st_poller *poller = new_poller();
    int port, error = 0, fd = listen_tcp(&port), clients[CLIENTS];
    char byte;
    owner *self = new_owner(poller);
    self->on_accepted = stop_at_each;
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, 100);
    turn(poller, 0);
    int before = open_descriptors();
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_tcp(port);
    for (int i = 1; i <= TAKEN; i++) {
        TURN_UNTIL(poller, self->accepted == i);
        turn(poller, 0);
        CHECK_EQ(self->accepted, i);
        if (i == TAKEN) /* and does not spin over those that wait */
            CHECK(sleeps(poller));
        close(self->fds[i - 1]);
        if (i < TAKEN)
            poller->ops->listener_start(self->listener, 100);
    }
    poller->ops->listener_close(self->listener);
    close(fd);
    for (int i = 0; i < CLIENTS; i++) { /* at once, without a turn */
        CHECK(read(clients[i], &byte, 1) <= 0);
        close(clients[i]);
    }
    TURN_UNTIL(poller, self->closed);
    CHECK_EQ(open_descriptors(), before - 1);
    free_owner(self);
    poller->ops->free(poller);
}

/* More than a turn takes, again and again, with a stop in between: everyone comes in the order they connected, and nothing is left over to do. */
static void bursts(st_poller *poller) {
    enum { ROUNDS = 6, CLIENTS = 30, A_TURN = 7 };
    int port, error = 0, fd = listen_tcp(&port), clients[CLIENTS];
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, A_TURN);
    for (int round = 0; round < ROUNDS; round++) {
        int before = self->accepted;
        for (int i = 0; i < CLIENTS; i++) {
            clients[i] = connect_tcp(port);
            CHECK(write(clients[i], &i, sizeof i) == sizeof i);
        }
        TURN_UNTIL(poller, self->accepted > before);
        if (round % 2) {
            poller->ops->listener_stop(self->listener);
            for (int i = 0, then = self->accepted; i < 3; i++) {
                turn(poller, 0);
                CHECK_EQ(self->accepted, then);
            }
            poller->ops->listener_start(self->listener, A_TURN);
        }
        TURN_UNTIL(poller, self->accepted == before + CLIENTS);
        for (int i = 0, number; i < CLIENTS; i++) {
            int accepted = self->fds[(before + i) % 256];
            CHECK(read(accepted, &number, sizeof number) == sizeof number);
            CHECK_EQ(number, i);
            CHECK(close(accepted) == 0);
            close(clients[i]);
        }
    }
    CHECK(sleeps(poller));
    CHECK_EQ(self->accepted, ROUNDS * CLIENTS);
    stop_server(self, fd);
    poller->ops->free(poller);
}

static void test_bursts(void) {
    bursts(new_poller());
    bursts(moved_poller());
}

/* Connections that came with the close: nobody is told, and their clients see the end. */
static void test_closed_with_connections_to_come(void) {
    enum { CLIENTS = 5 };
    st_poller *poller = new_poller();
    int port, error = 0, fd = listen_tcp(&port), clients[CLIENTS];
    char byte;
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, 100);
    turn(poller, 0);
    int before = open_descriptors();
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_tcp(port);
    stop_server(self, fd);
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(read(clients[i], &byte, 1) <= 0);
        close(clients[i]);
    }
    CHECK_EQ(open_descriptors(), before - 1);
    poller->ops->free(poller);
}

/* Freed while connections wait for their owner to go on: their clients see the end. */
static void test_freed_with_connections_to_come(void) {
    enum { CLIENTS = 5 };
    int before = open_descriptors(), port, error = 0, fd = listen_tcp(&port), clients[CLIENTS];
    char byte;
    st_poller *poller = new_poller();
    owner *self = new_owner(poller);
    self->on_accepted = stop_at_each;
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, 100);
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_tcp(port);
    TURN_UNTIL(poller, self->accepted == 1);
    turn(poller, 0);
    poller->ops->free(poller);
    CHECK_EQ(self->closed, 1);
    close(self->fds[0]);
    close(fd);
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(read(clients[i], &byte, 1) <= 0);
        close(clients[i]);
    }
    free_owner(self);
    CHECK_EQ(open_descriptors(), before);
}

/* Out of descriptors: told once, no storm, and accepting goes on when it is started again. */
static void accept_without_descriptors(st_poller *poller) {
    int port, error = 0, fd = listen_tcp(&port), peers[5];
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    for (int i = 0; i < 5; i++)
        peers[i] = connect_tcp(port);
    struct rlimit limit, none;
    getrlimit(RLIMIT_NOFILE, &limit);
    none = limit;
    turn(poller, 0); /* the ring needs a descriptor too */
    int lowest = dup(0);
    close(lowest);
    none.rlim_cur = (rlim_t)lowest;
    setrlimit(RLIMIT_NOFILE, &none); /* before it starts: io_uring notes the limit when it begins to accept */
    poller->ops->listener_start(self->listener, 8);
    double cpu = cpu_s();
    TURN_UNTIL(poller, self->accept_error != 0);
    CHECK_EQ(self->accept_error, -EMFILE);
    CHECK_EQ(self->accepted, 0);
    double begin = now_s(); /* and now nothing comes, and nothing spins */
    CHECK_EQ(turn(poller, 100) + turn(poller, 100), 0);
    CHECK(now_s() - begin > 0.18 && cpu_s() - cpu < 0.05);
    setrlimit(RLIMIT_NOFILE, &limit);
    self->accept_error = 0;
    poller->ops->listener_start(self->listener, 8);
    TURN_UNTIL(poller, self->accepted == 5);
    CHECK_EQ(count(poller).accepts, 5);
    for (int i = 0; i < 5; i++) {
        close(self->fds[i]);
        close(peers[i]);
    }
    stop_server(self, fd);
    poller->ops->free(poller);
}

static void test_accept_without_descriptors(void) {
    accept_without_descriptors(new_poller());
    accept_without_descriptors(moved_poller());
}

#define TEST(name) {#name, test_##name}
/* Each of `clients` is told to the owner, taken before the end, or left in the kernel's backlog for another listener. */
static void taken_before_the_end(bool after_a_turn) {
    enum { CLIENTS = 6 };
    st_poller *poller = new_poller();
    int port, error = 0, fd = listen_tcp(&port), clients[CLIENTS], seen = 0, one;
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, fd, self, &error);
    poller->ops->listener_start(self->listener, 1);
    turn(poller, 0);
    int before = open_descriptors();
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = connect_tcp(port);
    if (after_a_turn) /* tells one: the others are more than the owner takes at once */
        TURN_UNTIL(poller, self->accepted == 1);
    for (int i = 0; i < self->accepted; i++, seen++)
        close(self->fds[i]);
    if (poller->ops->listener_take != NULL)
        for (; (one = poller->ops->listener_take(self->listener)) >= 0; seen++)
            close(one);
    poller->ops->listener_close(self->listener);
    for (; (one = accept4(fd, NULL, NULL, SOCK_NONBLOCK)) >= 0; seen++)
        close(one);
    CHECK_EQ(seen, CLIENTS);
    close(fd);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    TURN_UNTIL(poller, self->closed);
    CHECK_EQ(self->accepted, after_a_turn ? 1 : 0);
    CHECK_EQ(open_descriptors(), before - 1);
    free_owner(self);
    poller->ops->free(poller);
}

static void test_taken_before_the_end(void) {
    taken_before_the_end(true);
    taken_before_the_end(false);
}

int main(int argc, char **argv) {
    static const test tests[] = {
        TEST(accepts_per_turn),
        TEST(closed_listener_refuses),
        TEST(accept_without_descriptors),
        TEST(stopped_with_more_to_come),
        TEST(bursts),
        TEST(closed_with_connections_to_come),
        TEST(taken_before_the_end),
        TEST(freed_with_connections_to_come),
    };
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
