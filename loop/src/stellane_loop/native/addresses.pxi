# Socket addresses as the socket module gives them, without a socket object.

from libc.string cimport memcpy, memset

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
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    unsigned short ntohs(unsigned short) nogil
    unsigned int ntohl(unsigned int) nogil


cdef extern from "<arpa/inet.h>":
    const char *inet_ntop(int, const void *, char *, socklen_t) nogil


cdef struct internet_addresses:
    # What the kernel said of both ends, until somebody asks: as Python's objects they are most of an idle connection.
    sockaddr_in6 own, peer  # or sockaddr_in; of family 0 where it said nothing


cdef object internet_address(sockaddr_in6 *six):
    """(host, port) or (host, port, flow, scope); None where nothing is known."""
    cdef char text[64]
    cdef sockaddr_in *four = <sockaddr_in *>six
    if six.sin6_family == AF_INET:
        inet_ntop(AF_INET, &four.sin_addr, text, 64)
        return (text.decode("ascii"), ntohs(four.sin_port))
    if six.sin6_family == AF_INET6:
        inet_ntop(AF_INET6, &six.sin6_addr, text, 64)
        return (text.decode("ascii"), ntohs(six.sin6_port), ntohl(six.sin6_flowinfo), six.sin6_scope_id)
    return None


cdef bint ask_addresses(int fd, internet_addresses *found) noexcept:
    """Ask while the connection is young: a reset one no longer knows its peer. False: of another family."""
    cdef sockaddr_storage storage
    cdef socklen_t length = sizeof(storage)
    memset(found, 0, sizeof(found[0]))
    if getsockname(fd, <sockaddr *>&storage, &length) == 0:
        if storage.ss_family != AF_INET and storage.ss_family != AF_INET6:
            return False
        memcpy(&found.own, &storage, sizeof(found.own))
    length = sizeof(storage)
    if getpeername(fd, <sockaddr *>&storage, &length) == 0:
        memcpy(&found.peer, &storage, sizeof(found.peer))
    return True


cdef dict named_addresses(internet_addresses *found):
    return {"sockname": internet_address(&found.own), "peername": internet_address(&found.peer)}


cdef dict addresses_of(int fd):
    """sockname and peername; each is None where the kernel does not know it."""
    cdef internet_addresses found
    return named_addresses(&found) if ask_addresses(fd, &found) else other_addresses_of(fd)


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
