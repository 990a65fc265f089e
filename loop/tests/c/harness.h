/* What the C tests share: a poller chosen by name, owners that write down what they were told, sockets. */
#ifndef HARNESS_H
#define HARNESS_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "st_poller.h"

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition))                                                                                             \
            fail(__FILE__, __LINE__, #condition);                                                                     \
    } while (0)
#define CHECK_EQ(left, right) check_equal(__FILE__, __LINE__, #left " == " #right, (long long)(left), (long long)(right))

_Noreturn void fail(const char *file, int line, const char *what);
void check_equal(const char *file, int line, const char *what, long long left, long long right);

typedef struct owner owner;
struct owner {
    st_poller *poller;
    st_stream *stream;
    st_listener *listener;
    st_watch *watch;
    void *extra;
    char *data; /* everything received */
    size_t bytes, capacity;
    uint64_t hash; /* of everything received, when keep is false */
    bool discard;
    int data_calls, ended;
    ssize_t end_result;
    size_t sent; /* reported */
    int sends_over;
    ssize_t send_error;
    int ready_calls;
    unsigned ready_events;
    int accepted, accept_error;
    int fds[256];
    int files_done;
    int64_t file_result;
    int closed;
    char *into; /* where ST_READ_INTO goes */
    size_t into_bytes;
    int buffer_calls, refuse_buffer;
    void (*on_buffer)(owner *);
    void (*on_data)(owner *, char *, ssize_t);
    void (*on_sent)(owner *, ssize_t, size_t);
    void (*on_accepted)(owner *, int);
    void (*on_ready)(owner *, unsigned);
    void (*on_file_done)(owner *);
    void (*on_closed)(owner *);
};

/* Which poller, and with which ring: from the command line. */
extern const char *poller_name;
extern unsigned ring_entries, ring_buffers, ring_buffer_bytes;
extern int blocks; /* block_begin minus block_end */
extern int waited; /* how often a turn has said that its wait is over */

const st_sink *test_sink(void);
st_poller *new_poller(void);
/* Turns until the condition holds; fails after 10 s. */
#define TURN_UNTIL(poller, condition)                                                                                 \
    do {                                                                                                              \
        double until_ = now_s() + 10;                                                                                 \
        while (!(condition)) {                                                                                        \
            turn(poller, 50);                                                                                         \
            if (now_s() > until_)                                                                                     \
                fail(__FILE__, __LINE__, "within 10 s: " #condition);                                                 \
        }                                                                                                             \
    } while (0)
int turn(st_poller *poller, int timeout_ms);
double now_s(void);
double cpu_s(void);

owner *new_owner(st_poller *poller);
void free_owner(owner *owner);
owner *open_stream(st_poller *poller, int fd, int kind);
void close_stream(owner *owner); /* and turns until `closed`, then frees */
owner *open_watch(st_poller *poller, int fd, unsigned events);
void close_watch(owner *owner); /* likewise */
ssize_t send_bytes(owner *owner, const void *bytes, size_t n);

extern int segment_bytes; /* of connections to come; 0: as the system likes */
int listen_tcp(int *port);
int connect_tcp(int port);           /* blocking client */
void tcp_pair(int fds[2]);           /* [0] is nonblocking: ours; [1] blocking: the peer */
void unix_pair(int fds[2]);
uint64_t hash_bytes(uint64_t hash, const char *data, size_t n); /* FNV-1a; begin with 0 */
void fill_pattern(char *data, size_t n, uint64_t seed);
void read_exactly(int fd, char *data, size_t n);
int open_descriptors(void);
st_poller_statistics count(st_poller *poller);

typedef struct test {
    const char *name;
    void (*run)(void);
} test;
/* argv: poller [test...]; every test runs in a process of its own, with a time limit. Returns the exit status. */
int run_tests(int argc, char **argv, const test *tests, size_t count);

#endif
