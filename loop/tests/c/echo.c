#define _GNU_SOURCE
#include "echo.h"

#include <pthread.h>
#include <unistd.h>

/* Owners send back what they get, one send at a time. */
static void echo_on(owner *self) {
    if (self->bytes == 0)
        return;
    self->stream->sent_awaited = self->extra != NULL;
    if (self->extra != NULL)
        return;
    char *copy = malloc(self->bytes);
    size_t n = self->bytes;
    memcpy(copy, self->data, n);
    self->bytes = 0;
    ssize_t sent = send_bytes(self, copy, n);
    if (sent == 0)
        self->extra = copy; /* until it is over */
    else
        free(copy);
}

static void echo_sent(owner *self, ssize_t n, size_t rest) {
    if (n >= 0 && rest > 0)
        return;
    free(self->extra);
    self->extra = NULL;
    if (n >= 0)
        echo_on(self);
}

int echo_connections;

static void echo_closed(owner *self) {
    echo_connections--;
    free(self->extra);
    free_owner(self);
}

static void echo_data(owner *self, char *data, ssize_t n) {
    (void)data;
    if (n <= 0)
        self->poller->ops->stream_close(self->stream, 0);
    else
        echo_on(self);
}

static void echo_accepted(owner *self, int fd) {
    if (fd < 0)
        return;
    owner *connection = open_stream(self->poller, fd, ST_SOCKET);
    connection->on_data = echo_data;
    connection->on_sent = echo_sent;
    connection->on_closed = echo_closed;
    echo_connections++;
    CHECK_EQ(self->poller->ops->stream_read_start(connection->stream, ST_READ_COPY), 0);
}

owner *echo_server(st_poller *poller, int *port, int *fd) {
    int error = 0;
    owner *server = new_owner(poller);
    *fd = listen_tcp(port);
    server->listener = poller->ops->listener_open(poller, *fd, server, &error);
    CHECK_EQ(error, 0);
    server->on_accepted = echo_accepted;
    CHECK_EQ(poller->ops->listener_start(server->listener, 100), 0);
    return server;
}

void stop_server(owner *server, int fd) {
    server->poller->ops->listener_close(server->listener);
    close(fd);
    TURN_UNTIL(server->poller, server->closed);
    free_owner(server);
}

typedef struct clients {
    int port, count, rounds;
    size_t bytes;
    int failed;
    int done;
    st_poller *poller;
} clients;

/* Blocking clients that all write before any of them reads. */
static void *clients_run(void *argument) {
    clients *self = argument;
    int *fds = calloc((size_t)self->count, sizeof *fds);
    char *data = malloc(self->bytes), *answer = malloc(self->bytes);
    for (int i = 0; i < self->count; i++)
        fds[i] = connect_tcp(self->port);
    for (int round = 0; round < self->rounds; round++) {
        for (int i = 0; i < self->count; i++) {
            fill_pattern(data, self->bytes, (uint64_t)(round * 1000 + i));
            if (write(fds[i], data, self->bytes) != (ssize_t)self->bytes)
                self->failed++;
        }
        for (int i = 0; i < self->count; i++) {
            fill_pattern(data, self->bytes, (uint64_t)(round * 1000 + i));
            read_exactly(fds[i], answer, self->bytes);
            if (memcmp(data, answer, self->bytes) != 0)
                self->failed++;
        }
    }
    for (int i = 0; i < self->count; i++)
        close(fds[i]);
    free(fds);
    free(data);
    free(answer);
    __atomic_store_n(&self->done, 1, __ATOMIC_SEQ_CST);
    self->poller->ops->wake(self->poller);
    return NULL;
}

st_poller_statistics serve(st_poller *poller, int connections, int rounds, size_t bytes) {
    int port, fd;
    owner *server = echo_server(poller, &port, &fd);
    clients load = {.port = port, .count = connections, .rounds = rounds, .bytes = bytes, .poller = poller};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, clients_run, &load) == 0);
    double until = now_s() + 30;
    while (!__atomic_load_n(&load.done, __ATOMIC_SEQ_CST) || echo_connections > 0) {
        turn(poller, 1000);
        CHECK(now_s() < until);
    }
    pthread_join(thread, NULL);
    CHECK_EQ(load.failed, 0);
    stop_server(server, fd);
    st_poller_statistics counted = count(poller);
    CHECK_EQ(counted.in_flight, 0);
    return counted;
}
