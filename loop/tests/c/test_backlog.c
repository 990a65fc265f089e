/* Connections that io_uring has accepted and their owner has not taken yet. */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "echo.h"
#include "harness.h"
#include "st_uring.h"

/* A flood of connections, of which one a turn is wanted: the kernel's backlog holds them, not we, and all of them come. */
static void test_flood_of_connections(void) {
    enum { CLIENTS = 700, A_TURN = 20, SLACK = 64 };
    st_poller *poller = new_poller();
    int port, clients[CLIENTS], listening = listen_tcp(&port), error = 0;
    struct rlimit files = {4096, 4096};
    setrlimit(RLIMIT_NOFILE, &files);
    owner *server = new_owner(poller);
    server->listener = poller->ops->listener_open(poller, listening, server, &error);
    CHECK_EQ(poller->ops->listener_start(server->listener, 1), 0);
    turn(poller, 0);
    unsigned held_most = 0;
    int connected = 0, flooded_turns = 0, number;
    st_uring_listener *inside = (st_uring_listener *)server->listener;
    for (int before = 0; server->accepted < CLIENTS; before = server->accepted) {
        for (int i = 0; i < A_TURN && connected < CLIENTS; i++, connected++) {
            clients[connected] = connect_tcp(port);
            CHECK(write(clients[connected], &connected, sizeof connected) == sizeof connected);
        }
        turn(poller, 1000);
        CHECK(server->accepted - before <= 1);
        if (server->accepted > before) { /* in the order they came */
            CHECK(read(server->fds[before % 256], &number, sizeof number) == sizeof number);
            CHECK_EQ(number, before);
            CHECK_EQ(close(server->fds[before % 256]), 0);
        }
        flooded_turns = inside->flooded ? flooded_turns + 1 : 0;
        if (flooded_turns > 5 && inside->held_count > 0) /* nobody is asked for more */
            CHECK(inside->operation == ST_OP_NONE);
        held_most = inside->held_count > held_most ? inside->held_count : held_most;
    }
    CHECK(inside->flooded);
    turn(poller, 0);
    uint64_t operation = inside->operation;
    poller->ops->listener_start(server->listener, 10);
    turn(poller, 0);
    CHECK(operation != ST_OP_NONE && inside->operation == operation); /* as wanted already */
    int last = connect_tcp(port);
    TURN_UNTIL(poller, server->accepted == CLIENTS + 1);
    CHECK(!inside->flooded); /* fewer than are wanted: over */
    close(last);
    close(server->fds[CLIENTS % 256]);
    printf("     %u held at most\n", held_most);
    CHECK(held_most <= ST_ACCEPTS_HELD_MAX + SLACK);
    for (int i = 0; i < CLIENTS; i++)
        close(clients[i]);
    stop_server(server, listening);
    poller->ops->free(poller);
}

/* Connections that were accepted when the poller ends, and nobody was told of: their clients see the end. */
static void test_accepted_and_not_told(void) {
    st_poller *poller = new_poller();
    int port, error = 0, listening = listen_tcp(&port);
    char byte;
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, listening, self, &error);
    poller->ops->listener_start(self->listener, 10);
    turn(poller, 0);
    int before = open_descriptors(), client = connect_tcp(port);
    CHECK_EQ(st_ring_enter(&((st_uring *)poller)->ring, 1, 1000000000, 0), 0);
    CHECK_EQ(open_descriptors(), before + 2);
    poller->ops->free(poller);
    CHECK_EQ(self->accepted, 0);
    CHECK_EQ(read(client, &byte, 1), 0);
    free_owner(self);
    close(client);
    close(listening);
}

/* What waits for its owner needs no more room however often it comes, and asking again for what is under way costs nothing. */
static void test_held_connections_need_no_more_room(void) {
    enum { ROUNDS = 5, CLIENTS = 30 };
    st_poller *poller = new_poller();
    int port, error = 0, listening = listen_tcp(&port), clients[CLIENTS];
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, listening, self, &error);
    st_uring_listener *inside = (st_uring_listener *)self->listener;
    poller->ops->listener_start(self->listener, 4);
    turn(poller, 0);
    uint64_t operation = inside->operation;
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < CLIENTS; i++)
            clients[i] = connect_tcp(port);
        TURN_UNTIL(poller, self->accepted == (round + 1) * CLIENTS);
        for (int i = 0; i < CLIENTS; i++) {
            close(self->fds[(round * CLIENTS + i) % 256]);
            close(clients[i]);
        }
        poller->ops->listener_start(self->listener, 4);
        turn(poller, 0);
        CHECK(inside->operation == operation && !inside->flooded);
    }
    CHECK(inside->held_capacity > 0 && inside->held_capacity < 2 * CLIENTS + 10);
    /* A poll that fails says so, as an accept does. */
    inside->armed_poll = true;
    st_uring_acceptable(inside, -ENOMEM);
    CHECK(self->accept_error == -ENOMEM && !inside->accepting);
    stop_server(self, listening);
    poller->ops->free(poller);
}

/* Who has stopped is not told of an accept that failed before it did. */
static void test_failed_and_not_told(void) {
    st_poller *poller = new_poller();
    int port, error = 0, listening = listen_tcp(&port), lowest;
    owner *self = new_owner(poller);
    self->listener = poller->ops->listener_open(poller, listening, self, &error);
    turn(poller, 0);
    struct rlimit limit, few;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    few = limit;
    lowest = dup(0);
    CHECK(close(lowest) == 0);
    few.rlim_cur = (rlim_t)lowest + 1; /* one more, for the client */
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0); /* before it starts: io_uring notes the limit when it begins to accept */
    poller->ops->listener_start(self->listener, 8);
    turn(poller, 0);
    int client = connect_tcp(port);
    CHECK_EQ(st_ring_enter(&((st_uring *)poller)->ring, 1, 1000000000, 0), 0);
    CHECK_EQ(st_ring_ready(&((st_uring *)poller)->ring), 1);
    poller->ops->listener_stop(self->listener);
    turn(poller, 0);
    turn(poller, 0);
    CHECK(self->accepted == 0 && self->accept_error == 0);
    CHECK_EQ(count(poller).in_flight, 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    poller->ops->listener_start(self->listener, 8);
    TURN_UNTIL(poller, self->accepted == 1);
    close(self->fds[0]);
    close(client);
    stop_server(self, listening);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {TEST(flood_of_connections), TEST(accepted_and_not_told), TEST(failed_and_not_told),
                                 TEST(held_connections_need_no_more_room)};
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
