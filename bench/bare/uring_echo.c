/*
 * The bare echo server over io_uring, one thread, on the raw system calls: every byte is sent back,
 * in order.
 *
 * One io_uring_enter a turn submits and waits. Connections are accepted and received by one multishot
 * operation each, into a ring of provided buffers, and echoed from the very buffer they came in,
 * which goes back into the ring when its send is over. One send is in flight per connection: two could
 * overtake each other. A client that does not read keeps its buffers, and when none are left receives
 * wait until a buffer comes back: a measure of cost, not a server for strangers.
 *
 * usage: uring_echo PORT BUFFER_BYTES      (127.0.0.1; 0 picks a free port; the port is printed)
 */
#define _GNU_SOURCE
#include "uring_turns.h"

enum {
    BUFFERS = 512, /* power of two */
    GROUP = 1,
    NONE = -1,
};

struct connection {
    int fd;
    bool receiving, sending, broken, starved;
    int first, last; /* buffers to echo, oldest first; `first` is the one being sent */
    uint32_t sent;   /* bytes of `first` that have left */
    struct connection *next_starved;
};

static struct io_uring_buf_ring *buffers;
static char *memory;
static uint32_t buffer_bytes, buffer_len[BUFFERS];
static uint16_t buffers_tail;
static int buffer_next[BUFFERS];
static unsigned held; /* buffers that hold bytes to echo */
static struct connection *starved;

static void arm_receive(struct connection *c) {
    struct io_uring_sqe *sqe = new_sqe(IORING_OP_RECV, c->fd, c, RECEIVE);
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    push_sqe();
    c->receiving = true;
}

static void arm_send(struct connection *c) {
    struct io_uring_sqe *sqe = new_sqe(IORING_OP_SEND, c->fd, c, SEND);
    sqe->addr = (uintptr_t)(memory + (size_t)c->first * buffer_bytes + c->sent);
    sqe->len = buffer_len[c->first] - c->sent;
    sqe->msg_flags = MSG_NOSIGNAL | MSG_WAITALL;
    push_sqe();
    c->sending = true;
}

static void give_back(int id) {
    struct io_uring_buf *buf = &buffers->bufs[buffers_tail & (BUFFERS - 1)];
    buf->addr = (uintptr_t)(memory + (size_t)id * buffer_bytes);
    buf->len = buffer_bytes;
    buf->bid = (uint16_t)id;
    __atomic_store_n(&buffers->tail, ++buffers_tail, __ATOMIC_RELEASE);
}

/* The buffer that was sent is free again; a receive that found none may go on. */
static void drop_first(struct connection *c) {
    give_back(c->first);
    held--;
    c->first = c->first == c->last ? NONE : buffer_next[c->first];
    c->sent = 0;
    struct connection *waiting = starved;
    if (waiting == NULL) return;
    starved = waiting->next_starved;
    waiting->starved = false;
    arm_receive(waiting);
}

/* Close once the kernel holds nothing of the connection. */
static void close_if_over(struct connection *c) {
    if (c->receiving || c->sending || c->starved || (c->first != NONE && !c->broken)) return;
    while (c->first != NONE) drop_first(c);
    close(c->fd);
    free(c);
}

static void on_connection(int fd) {
    struct connection *c = calloc(1, sizeof *c);
    if (c == NULL) die("uring_echo: calloc");
    c->fd = fd;
    c->first = NONE;
    arm_receive(c);
}

static void on_receive(struct connection *c, const struct io_uring_cqe *cqe) {
    if (cqe->res > 0) {
        int id = (int)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
        buffer_len[id] = (uint32_t)cqe->res;
        held++;
        if (c->first == NONE)
            c->first = id;
        else
            buffer_next[c->last] = id;
        c->last = id;
        if (!c->sending) arm_send(c);
    }
    if (cqe->flags & IORING_CQE_F_MORE) return;
    c->receiving = false;
    if (!c->broken && (cqe->res > 0 || (cqe->res == -ENOBUFS && held == 0))) {
        arm_receive(c);
    } else if (cqe->res == -ENOBUFS && !c->broken) { /* a held buffer will come back, and then it is armed */
        c->starved = true;
        c->next_starved = starved;
        starved = c;
    } else {
        close_if_over(c);
    }
}

static void on_send(struct connection *c, int result) {
    c->sending = false;
    if (result < 0) {
        c->broken = true;
        shutdown(c->fd, SHUT_RDWR); /* ends the receive; a close alone would not */
    } else {
        c->sent += (uint32_t)result;
        if (c->sent == buffer_len[c->first]) drop_first(c);
    }
    if (c->first != NONE && !c->broken) arm_send(c);
    close_if_over(c);
}

static void provide_buffers(int real_ring_fd) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    buffers = mmap(NULL, BUFFERS * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE, flags, -1, 0);
    memory = mmap(NULL, (size_t)BUFFERS * buffer_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    struct io_uring_buf_reg reg = {.ring_addr = (uintptr_t)buffers, .ring_entries = BUFFERS, .bgid = GROUP};
    if (buffers == MAP_FAILED || memory == MAP_FAILED ||
        syscall(SYS_io_uring_register, real_ring_fd, IORING_REGISTER_PBUF_RING, &reg, 1) < 0)
        die("uring_echo: provide buffers");
    for (int id = 0; id < BUFFERS; id++) give_back(id);
}

static void begin_turn(void) {}

int main(int argc, char **argv) {
    listener = listen_on(port_argument(argc, argv, 3), 0);
    buffer_bytes = (uint32_t)strtoul(argv[2], NULL, 10);
    if (buffer_bytes < 512 || buffer_bytes > 1048576) {
        fprintf(stderr, "uring_echo: BUFFER_BYTES is '%s', and must be from 512 to 1048576\n", argv[2]);
        return 2;
    }
    provide_buffers(map_ring());
    run();
}
