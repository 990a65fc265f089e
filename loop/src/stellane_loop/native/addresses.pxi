# Socket addresses as the socket module gives them, without a socket object.

cdef extern from "<sys/socket.h>":
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_storage:
        unsigned short ss_family
    int getsockname(int, sockaddr *, socklen_t *) nogil
    int getpeername(int, sockaddr *, socklen_t *) nogil
    int AF_INET, AF_INET6


cdef extern from "<netinet/in.h>":
    struct in_addr:
        pass
    struct in6_addr:
        pass
    struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    unsigned short ntohs(unsigned short) nogil
    unsigned int ntohl(unsigned int) nogil


cdef extern from "<arpa/inet.h>":
    const char *inet_ntop(int, const void *, char *, socklen_t) nogil


cdef object internet_address(sockaddr_storage *storage):
    """(host, port) or (host, port, flow, scope); None for another family."""
    cdef char text[64]
    cdef sockaddr_in *four = <sockaddr_in *>storage
    cdef sockaddr_in6 *six = <sockaddr_in6 *>storage
    if storage.ss_family == AF_INET:
        inet_ntop(AF_INET, &four.sin_addr, text, 64)
        return (text.decode("ascii"), ntohs(four.sin_port))
    if storage.ss_family == AF_INET6:
        inet_ntop(AF_INET6, &six.sin6_addr, text, 64)
        return (text.decode("ascii"), ntohs(six.sin6_port), ntohl(six.sin6_flowinfo), six.sin6_scope_id)
    return None


cdef dict addresses_of(int fd):
    """sockname and peername, asked for while the connection is young: a reset one no longer knows its peer."""
    cdef sockaddr_storage storage
    cdef socklen_t length
    cdef dict extra = {}
    length = sizeof(storage)
    if getsockname(fd, <sockaddr *>&storage, &length) == 0:
        extra["sockname"] = internet_address(&storage)
        if extra["sockname"] is None:
            return other_addresses_of(fd)
    else:
        extra["sockname"] = None
    length = sizeof(storage)
    extra["peername"] = None
    if getpeername(fd, <sockaddr *>&storage, &length) == 0:
        extra["peername"] = internet_address(&storage)
    return extra


cdef dict other_addresses_of(int fd):
    sock = socket.socket(fileno=fd)
    try:
        extra = {"sockname": sock.getsockname()}
        try:
            extra["peername"] = sock.getpeername()
        except OSError:
            extra["peername"] = None
    finally:
        sock.detach()
    return extra
