"""Where datagram transports, which are asyncio's, were given a rule of their own."""

from __future__ import annotations

import asyncio
import socket


def test_a_pair_of_datagram_sockets_can_be_written_to_though_the_peer_has_no_name(run):
    """asyncio takes it for a socket that is not connected, and fails to send without an address."""

    async def main():
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        theirs.setblocking(False)
        with theirs:
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=ours)
            assert transport.get_extra_info("peername") == ""
            sent = 0
            while transport.get_write_buffer_size() == 0 and not transport.is_closing():
                transport.sendto(b"%d" % sent)  # until the kernel takes no more: what waits goes another way
                sent += 1
            received = [await loop.sock_recv(theirs, 100) for _ in range(sent)]
            assert received == [b"%d" % number for number in range(sent)]
            assert not transport.is_closing()
            transport.abort()
            await asyncio.sleep(0.01)

    run(main())


def test_a_datagram_socket_that_is_not_connected_needs_an_address(run):
    async def main():
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        assert transport.get_extra_info("peername") is None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.settimeout(10)
            transport.sendto(b"x", peer.getsockname())
            assert peer.recv(100) == b"x"
        transport.abort()
        await asyncio.sleep(0.01)

    run(main())
