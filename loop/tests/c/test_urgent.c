/* TCP's urgent mark, the same for every poller: argv[1] names it. */
#define _GNU_SOURCE
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"

/* A receive that ends at the urgent mark leaves bytes behind it, which do not wait for more to come. */
static void test_urgent_mark(void) {
    st_poller *poller = new_poller();
    int fds[2], ready = 0;
    tcp_pair(fds);
    owner *self = open_stream(poller, fds[0], ST_SOCKET);
    CHECK(send(fds[1], "abc", 3, 0) == 3 && send(fds[1], "X", 1, MSG_OOB) == 1 && send(fds[1], "def", 3, 0) == 3);
    /* All of it is here before the first receive, which then is the one that ends at the mark. */
    for (double until = now_s() + 10; ready < 3 && now_s() < until;)
        CHECK(ioctl(fds[0], FIONREAD, &ready) == 0);
    usleep(20000);
    poller->ops->stream_read_start(self->stream, ST_READ_COPY);
    TURN_UNTIL(poller, self->bytes == 6);
    CHECK(memcmp(self->data, "abcdef", 6) == 0);
    CHECK_EQ(self->data_calls, 2);
    close_stream(self);
    close(fds[1]);
    poller->ops->free(poller);
}

#define TEST(name) {#name, test_##name}
int main(int argc, char **argv) {
    static const test tests[] = {TEST(urgent_mark)};
    return run_tests(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
