/* The listening socket of a reference server: 127.0.0.1, the port printed once it listens. */
#ifndef LISTEN_H
#define LISTEN_H
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

/* The first argument, a port; ends the program when it is none, or there are not `count` arguments. */
static unsigned short port_argument(int argc, char **argv, int count) {
    char *rest = "";
    long port = argc == count ? strtol(argv[1], &rest, 10) : -1;
    if (port >= 0 && port <= 65535 && *rest == '\0') return (unsigned short)port;
    fprintf(stderr, "usage: %s PORT%s   (0 to 65535; 0 picks a free port)\n", argv[0], count > 2 ? " BUFFER_BYTES" : "");
    exit(2);
}

static int listen_on(unsigned short port, int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    int one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, len) < 0 || listen(fd, 2048) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &len) < 0) {
        perror("listen on 127.0.0.1");
        exit(1);
    }
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

#endif
