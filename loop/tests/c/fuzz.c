/* Random connects, writes, stops, closes, aborts, watches and thread moves against a poller, with every byte checked.
 *
 *     fuzz epoll|io_uring SECONDS [SEED]
 *
 * Each direction of each connection carries bytes that are known from the connection and their position, so whatever is
 * lost, repeated, reordered or delivered to another connection is seen. Memory of a send is freed as soon as the
 * poller says so; built with a sanitizer, a later access is seen too. An epoch ends with settling: all that was
 * written arrives, nothing stays in flight, no descriptor is left. Prints its seed, which repeats a run's choices.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "st_ring.h"

enum { CONNECTIONS_MAX = 60, SEND_BYTES_MAX = 200000, MORE_BYTES_MAX = 600, ACTIONS_PER_EPOCH = 4000 };

typedef struct connection {
    owner *owner; /* ours; NULL until accepted, and after `closed` */
    int peer;     /* theirs, nonblocking; -1: closed */
    uint16_t port;
    bool used, closing, broken; /* broken: someone aborted, so an end may come anywhere */
    bool our_shutdown, peer_shutdown, ended;
    uint64_t sent, received;           /* by us: accepted by stream_send, and seen in stream_data */
    uint64_t peer_sent, peer_received; /* by them */
    char *sending;
    char into[3000];
} connection;

static connection connections[CONNECTIONS_MAX];
static owner *listener;
static int listening, port;
static st_poller *poller;
static uint64_t state;
static uint64_t bytes_moved, connections_made, moves;

static uint64_t random_below(uint64_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % limit;
}

static char byte_at(uint16_t which, int direction, uint64_t offset) {
    uint64_t x = (offset + 1) * 0x9e3779b97f4a7c15ULL ^ ((uint64_t)which << 32) ^ (uint64_t)direction;
    return (char)(x >> 29);
}

static void check_bytes(const connection *at, int direction, uint64_t offset, const char *data, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (data[i] != byte_at(at->port, direction, offset + i)) {
            fprintf(stderr, "connection %u direction %d: wrong byte at %llu\n", at->port, direction,
                    (unsigned long long)(offset + i));
            _exit(1);
        }
    bytes_moved += n;
}

static void on_data(owner *self, char *data, ssize_t n) {
    connection *at = self->extra;
    CHECK(!at->closing);
    if (n <= 0) {
        at->ended = true;
        CHECK(n == 0 || at->broken);
        if (n == 0 && !at->broken)
            CHECK(at->received == at->peer_sent && at->peer_shutdown);
        return;
    }
    check_bytes(at, 0, at->received, data, (size_t)n);
    at->received += (uint64_t)n;
    if (random_below(10) == 0)
        poller->ops->stream_read_stop(self->stream);
}

static void on_sent(owner *self, ssize_t n, size_t rest) {
    connection *at = self->extra;
    CHECK(!at->closing && at->sending != NULL);
    if (n >= 0 && rest > 0)
        return;
    CHECK(n >= 0 || at->broken);
    free(at->sending);
    at->sending = NULL;
}

static void on_closed(owner *self) {
    connection *at = self->extra;
    CHECK(at->closing);
    free(at->sending);
    at->sending = NULL;
    at->owner = NULL;
    free_owner(self);
}

static void on_accepted(owner *self, int fd) {
    struct sockaddr_in from;
    socklen_t bytes = sizeof from;
    (void)self;
    CHECK(fd >= 0);
    if (getpeername(fd, (struct sockaddr *)&from, &bytes) != 0) {
        close(fd); /* aborted before we came to it */
        return;
    }
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        connection *at = &connections[i];
        if (!at->used || at->port != ntohs(from.sin_port) || at->owner != NULL || at->closing)
            continue;
        at->owner = open_stream(poller, fd, ST_SOCKET);
        at->owner->discard = true;
        at->owner->extra = at;
        at->owner->into = at->into;
        at->owner->into_bytes = 1 + random_below(sizeof at->into);
        at->owner->on_data = on_data;
        at->owner->on_sent = on_sent;
        at->owner->on_closed = on_closed;
        return;
    }
    close(fd);
}

static void connect_one(connection *at) {
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons((uint16_t)port)};
    socklen_t bytes = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), small = 32768;
    CHECK(fd >= 0);
    if (random_below(4) == 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    }
    CHECK(connect(fd, (struct sockaddr *)&address, sizeof address) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &bytes) == 0);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    *at = (connection){.used = true, .peer = fd, .port = ntohs(address.sin_port)};
    connections_made++;
}

static void our_send(connection *at) {
    if (at->owner == NULL || at->closing || at->sending != NULL || at->our_shutdown)
        return;
    size_t n = 1 + random_below(random_below(3) ? 500 : SEND_BYTES_MAX), from = 0;
    char *data = malloc(n + MORE_BYTES_MAX);
    for (size_t i = 0; i < n + MORE_BYTES_MAX; i++)
        data[i] = byte_at(at->port, 1, at->sent + i);
    struct iovec parts[7];
    int count = 1 + (int)random_below(7);
    for (int i = 0; i < count; i++) {
        size_t length = i == count - 1 ? n - from : random_below(n - from + 1);
        parts[i] = (struct iovec){data + from, length};
        from += length;
    }
    ssize_t result = poller->ops->stream_send(at->owner->stream, parts, count);
    CHECK(result == 0 || result == (ssize_t)n || (result < 0 && at->broken));
    if (result >= 0)
        at->sent += n;
    if (result != 0) {
        free(data);
        return;
    }
    at->sending = data;
    at->owner->stream->sent_awaited = (uint8_t)random_below(2);
    size_t more = 1 + random_below(MORE_BYTES_MAX / 2);
    for (size_t left = MORE_BYTES_MAX; poller->ops->stream_send_more != NULL && left > more && random_below(4);) {
        if (poller->ops->stream_send_more(at->owner->stream, data + n, more) != 0)
            return;
        at->sent += more;
        n += more;
        left -= more;
    }
}

static void peer_write(connection *at, size_t n) {
    static char data[SEND_BYTES_MAX];
    if (at->peer < 0 || at->peer_shutdown)
        return;
    for (size_t i = 0; i < n; i++)
        data[i] = byte_at(at->port, 0, at->peer_sent + i);
    ssize_t written = send(at->peer, data, n, MSG_NOSIGNAL);
    if (written > 0)
        at->peer_sent += (uint64_t)written;
}

static void peer_read(connection *at, size_t n) {
    static char data[SEND_BYTES_MAX];
    if (at->peer < 0)
        return;
    ssize_t got = recv(at->peer, data, n, 0);
    if (got > 0) {
        check_bytes(at, 1, at->peer_received, data, (size_t)got);
        at->peer_received += (uint64_t)got;
        CHECK(at->peer_received <= at->sent);
    }
}

static void our_close(connection *at) {
    if (at->owner == NULL || at->closing)
        return;
    at->closing = at->broken = true; /* what has begun to leave is dropped */
    poller->ops->stream_close(at->owner->stream, 0);
}

static void peer_close(connection *at, bool abort_it) {
    struct linger linger = {1, 0};
    if (at->peer < 0)
        return;
    at->broken = true;
    if (abort_it)
        setsockopt(at->peer, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(at->peer);
    at->peer = -1;
}

static void *turn_elsewhere(void *argument) {
    int turns = *(int *)argument;
    for (int i = 0; i < turns; i++)
        turn(poller, 1);
    return NULL;
}

/* Not on io_uring: of what completes after the last turn of a run, more than a ring of four entries has room for is lost to
 * another thread. The poller says so, and with a loop's ring it takes thousands of completions. */
static void begin_run(void) {
    if (strcmp(poller_name, "epoll") == 0)
        poller->ops->begin(poller);
}

static void end_run(void) {
    if (strcmp(poller_name, "epoll") == 0)
        poller->ops->settle(poller);
}

static void act(void) {
    connection *at = &connections[random_below(CONNECTIONS_MAX)];
    uint64_t action = random_below(100);
    if (at->used && at->owner == NULL && at->closing && at->peer < 0)
        at->used = false;
    if (!at->used) {
        if (action < 30)
            connect_one(at);
    } else if (action < 20) {
        peer_write(at, 1 + random_below(random_below(4) ? 1000 : SEND_BYTES_MAX));
    } else if (action < 40) {
        peer_read(at, 1 + random_below(SEND_BYTES_MAX));
    } else if (action < 55) {
        our_send(at);
    } else if (action < 75 && at->owner != NULL && !at->closing) {
        poller->ops->stream_read_start(at->owner->stream, random_below(2) ? ST_READ_COPY : ST_READ_INTO);
    } else if (action < 80 && at->owner != NULL && !at->closing) {
        poller->ops->stream_read_stop(at->owner->stream);
    } else if (action < 82) {
        our_close(at);
    } else if (action < 84) {
        peer_close(at, random_below(2));
    } else if (action == 84 && at->peer >= 0 && !at->peer_shutdown) {
        shutdown(at->peer, SHUT_WR);
        at->peer_shutdown = true;
    } else if (action == 85 && at->owner != NULL && !at->closing && !at->our_shutdown) {
        at->our_shutdown = true;
        poller->ops->stream_shutdown(at->owner->stream);
    } else if (action == 86) {
        poller->ops->wake(poller);
        end_run();
        begin_run();
    } else if (action == 87 && random_below(6) == 0) {
        pthread_t thread;
        int turns = (int)random_below(4);
        moves++;
        end_run();
        pthread_create(&thread, NULL, turn_elsewhere, &turns);
        pthread_join(thread, NULL);
        begin_run();
    } else {
        turn(poller, (int)random_below(2));
    }
}

static bool settled(const connection *at) {
    if (!at->used)
        return true;
    if (at->closing)
        return at->owner == NULL;
    if (at->owner == NULL)
        return at->broken; /* aborted while it waited to be accepted */
    if (at->broken)
        return at->ended || at->peer >= 0;
    return at->received == at->peer_sent && at->sending == NULL && at->peer_received == at->sent &&
           at->ended == at->peer_shutdown;
}

static void settle(void) {
    double until = now_s() + 20;
    for (bool done = false; !done;) {
        done = true;
        for (int i = 0; i < CONNECTIONS_MAX; i++) {
            connection *at = &connections[i];
            if (!at->used)
                continue;
            if (at->owner != NULL && !at->closing)
                poller->ops->stream_read_start(at->owner->stream, ST_READ_COPY);
            peer_read(at, SEND_BYTES_MAX);
            done = done && settled(at);
            if (now_s() > until && !settled(at)) {
                fprintf(stderr, "connection %u: sent %llu, they got %llu; they sent %llu, we got %llu; owner %d peer %d "
                                "closing %d ended %d broken %d shutdowns %d %d\n", at->port, (unsigned long long)at->sent, (unsigned long long)at->peer_received,
                        (unsigned long long)at->peer_sent, (unsigned long long)at->received, at->owner != NULL,
                        at->peer, at->closing, at->ended, at->broken, at->our_shutdown, at->peer_shutdown);
                CHECK(settled(at));
            }
        }
        turn(poller, done ? 0 : 1);
    }
}

static void epoch(double until) {
    int before = open_descriptors(), error = 0;
    ring_entries = random_below(2) ? 4u << random_below(4) : 0;
    ring_buffers = random_below(2) ? 2u << random_below(5) : 0;
    ring_buffer_bytes = random_below(2) ? 64u << random_below(6) : 0;
    /* Now and then a kernel that knows less: cooperative completions, or the array of submissions. */
    st_ring_refused_flags = random_below(3) ? 0 : random_below(2) ? ST_SETUP_SINGLE_ISSUER : ST_SETUP_NO_SQARRAY;
    poller = new_poller();
    listening = listen_tcp(&port);
    listener = new_owner(poller);
    listener->listener = poller->ops->listener_open(poller, listening, listener, &error);
    listener->on_accepted = on_accepted;
    CHECK_EQ(error, 0);
    poller->ops->listener_start(listener->listener, 1 + (unsigned)random_below(20));
    begin_run();
    for (int i = 0; i < ACTIONS_PER_EPOCH && now_s() < until; i++)
        act();
    settle();
    bool freed_open = random_below(2);
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (freed_open && connections[i].owner != NULL)
            connections[i].closing = true; /* `closed` comes from free */
        else
            our_close(&connections[i]);
        peer_close(&connections[i], false);
    }
    poller->ops->listener_close(listener->listener);
    close(listening);
    if (!freed_open) {
        for (int i = 0; i < CONNECTIONS_MAX; i++)
            TURN_UNTIL(poller, connections[i].owner == NULL);
        TURN_UNTIL(poller, listener->closed);
        CHECK_EQ(count(poller).in_flight, 0);
    }
    poller->ops->free(poller);
    CHECK_EQ(listener->closed, 1);
    free_owner(listener);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        CHECK(connections[i].owner == NULL);
    memset(connections, 0, sizeof connections);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        connections[i].peer = -1;
    CHECK_EQ(open_descriptors(), before);
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: %s epoll|io_uring SECONDS [SEED]\n", argv[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    poller_name = argv[1];
    uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : (uint64_t)(now_s() * 1e6);
    state = seed * 2 + 1;
    printf("%s, seed %llu\n", poller_name, (unsigned long long)seed);
    fflush(stdout);
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        connections[i].peer = -1;
    double until = now_s() + strtod(argv[2], NULL);
    int epochs = 0;
    for (; now_s() < until; epochs++)
        epoch(until);
    printf("%d epochs, %llu connections, %llu bytes, %llu thread moves\n", epochs, (unsigned long long)connections_made,
           (unsigned long long)bytes_moved, (unsigned long long)moves);
    return connections_made == 0;
}
