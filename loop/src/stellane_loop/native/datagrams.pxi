# Datagrams of the internet, received and sent without a socket object.

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recvfrom(int, void *, size_t, int, sockaddr *, socklen_t *)
    ssize_t sendto(int, const void *, size_t, int, const sockaddr *, socklen_t)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int, const char *, void *)
    unsigned short htons(unsigned short)
    unsigned int htonl(unsigned int)

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object, Py_ssize_t *) except NULL

from libc.string cimport memcmp, strlen

cdef enum:
    DATAGRAM_BYTES_MAX = 65536
    DATAGRAMS_PER_EVENT_MAX = 32  # then the loop's other work has its turn
    FLOW_MAX = 0xFFFFF


cdef class DatagramSocket:
    """The descriptor of a nonblocking AF_INET or AF_INET6 datagram socket, whose owner keeps it open."""

    cdef int fd, family
    # Whom the last datagram came from: who answers has its address as it was given, and it need not be read again.
    cdef sockaddr_in6 sender
    cdef socklen_t sender_length
    cdef object sender_name

    def __init__(self, int fd, int family):
        self.fd = fd
        self.family = family

    def receive(self, LoopCore loop not None, transport):
        """Give the protocol what has come: at most 32 datagrams, or an error. What is left the poller finds again.

        What the protocol raises is passed on, and what came behind that is left as well.
        """
        cdef sockaddr_in6 name
        cdef socklen_t length
        cdef ssize_t n
        cdef int left
        cdef char *buffer = loop.shared_buffer()
        for left in range(DATAGRAMS_PER_EVENT_MAX):
            length = sizeof(name)
            n = recvfrom(self.fd, buffer, DATAGRAM_BYTES_MAX, MSG_DONTWAIT, <sockaddr *>&name, &length)
            if n < 0:
                if errno != EAGAIN and errno != EINTR:
                    transport._protocol.error_received(OSError(errno, os.strerror(errno)))
                return
            if length != self.sender_length or memcmp(&name, &self.sender, length):
                self.sender_name = internet_address(&name)
                self.sender = name
                self.sender_length = length
            transport._protocol.datagram_received(PyBytes_FromStringAndSize(buffer, n), self.sender_name)
            if transport._closing:
                return

    def send(self, bytes data not None, address):
        """1: it left, to `address` or, if that is None, to where the socket is connected. Below 0: -errno.

        0 where it can not be sent now, or the address is not one in numbers: asyncio knows what to do.
        """
        cdef sockaddr_in6 name
        cdef socklen_t length = 0
        cdef ssize_t n
        if address is not None:
            if address is self.sender_name:
                name = self.sender
                length = self.sender_length
            else:
                length = numeric_address(self.family, address, &name)
                if not length:
                    return 0
        n = sendto(self.fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), MSG_DONTWAIT | MSG_NOSIGNAL,
                   <sockaddr *>&name if length else NULL, length)
        if n >= 0:
            return 1
        return 0 if errno == EAGAIN or errno == EINTR else -errno


cdef socklen_t numeric_address(int family, address, sockaddr_in6 *six) except? 0:
    """The address as the kernel takes it, and its length; 0: the socket module has to look at it."""
    cdef sockaddr_in *four = <sockaddr_in *>six
    cdef const char *host
    cdef Py_ssize_t bytes_
    if type(address) is not tuple or not 2 <= len(address) <= (2 if family == AF_INET else 4):
        return 0
    if type(address[0]) is not str or not (<str>address[0]).isascii():
        return 0
    for number in address[1:]:
        if type(number) is not int:
            return 0
    if not 0 <= address[1] <= 0xFFFF:
        return 0
    host = PyUnicode_AsUTF8AndSize(address[0], &bytes_)
    if <size_t>bytes_ != strlen(host):
        return 0
    memset(six, 0, sizeof(six[0]))
    if family == AF_INET:
        four.sin_family = <unsigned short>AF_INET
        four.sin_port = htons(<unsigned short>address[1])
        return sizeof(four[0]) if inet_pton(AF_INET, host, &four.sin_addr) == 1 else 0
    six.sin6_family = <unsigned short>AF_INET6
    six.sin6_port = htons(<unsigned short>address[1])
    if len(address) > 2:
        if not 0 <= address[2] <= FLOW_MAX:
            return 0
        six.sin6_flowinfo = htonl(<unsigned int>address[2])
    if len(address) > 3:
        if not 0 <= address[3] <= 0xFFFFFFFF:
            return 0
        six.sin6_scope_id = <unsigned int>address[3]
    return sizeof(six[0]) if inet_pton(AF_INET6, host, &six.sin6_addr) == 1 else 0
