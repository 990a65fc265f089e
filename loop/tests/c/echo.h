/* An echo server on a poller, and clients that check what comes back. */
#ifndef ECHO_H
#define ECHO_H

#include "harness.h"

extern int echo_connections; /* open now */
owner *echo_server(st_poller *poller, int *port, int *fd);
void stop_server(owner *server, int fd);
/* `connections` clients in another thread write `bytes` each before any of them reads, `rounds` times. */
st_poller_statistics serve(st_poller *poller, int connections, int rounds, size_t bytes);

#endif
