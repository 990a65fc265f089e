"""Datagram transports: what a program sees is what it sees on asyncio's own loop, and one rule of our own."""

from __future__ import annotations

import asyncio
import socket

import pytest
from loop.tests.conftest import Transcript


class Recorder(asyncio.DatagramProtocol):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: Transcript = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, addr):
        self.told.append((data, addr))

    def error_received(self, exc):
        self.told.append(("error", type(exc), exc.errno))

    def connection_lost(self, exc):
        self.told.append(("lost", exc))

    async def hears(self, count: int) -> None:
        while len(self.told) < count:
            await asyncio.sleep(0.001)

    async def ends(self) -> None:
        self.transport.abort()
        while not any(what[0] == "lost" for what in self.told if what):
            await asyncio.sleep(0.001)


async def endpoint(protocol=Recorder, host="127.0.0.1", **arguments):
    arguments = arguments or {"local_addr": (host, 0)}
    _, made = await asyncio.get_running_loop().create_datagram_endpoint(protocol, **arguments)
    return made


def name_of(protocol: Recorder):
    return protocol.transport.get_extra_info("sockname")


def peer(host: str = "127.0.0.1") -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_DGRAM)
    try:
        found.bind((host, 0))
    except OSError as error:
        found.close()
        pytest.skip(f"not run: {host} is no address of this machine: {error}")
    found.settimeout(10)
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_each_datagram_comes_whole_and_from_whom_it_came(run, host):
    """More than one event's worth, from peers in turn, of every size there is; and each is answered."""
    sizes = [0, 1, 1472, 1473, 9000, 65507, *range(2, 60)]

    class Answering(Recorder):
        def datagram_received(self, data, addr):
            super().datagram_received(data, addr)
            self.transport.sendto(b"%d" % len(data), addr)

    async def main():
        with peer(host) as one, peer(host) as two:
            answering = await endpoint(Answering, host)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            two.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            answering.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            expected = []
            for number, size in enumerate(sizes):
                sender = (one, two)[number % 3 == 0]
                data = bytes([number]) * size
                sender.sendto(data, name_of(answering))
                expected.append((data, sender.getsockname()))
            await answering.hears(len(sizes))
            assert answering.told == expected
            for data, name in expected:
                asked = one if name == one.getsockname() else two
                assert asked.recvfrom(100) == (b"%d" % len(data), name_of(answering))
            answering.transport.close()
            await answering.hears(len(sizes) + 1)
            assert answering.told[-1] == ("lost", None)

    run(main())


IPV6_FLOWINFO, IPV6_FLOWINFO_SEND, IPV6_AUTOFLOWLABEL = 11, 33, 70
"""Of linux/in6.h; the socket module does not name them."""

ADDRESSES = {
    "ipv4": ("127.0.0.1", lambda port: ("127.0.0.1", port)),
    "a name": ("127.0.0.1", lambda port: ("localhost", port)),
    "a short form": ("127.0.0.1", lambda port: ("127.1", port)),
    "no port": ("127.0.0.1", lambda _port: ("127.0.0.1",)),
    "a list": ("127.0.0.1", lambda port: ["127.0.0.1", port]),
    "nothing": ("127.0.0.1", lambda _port: None),
    "port as text": ("127.0.0.1", lambda port: ("127.0.0.1", str(port))),
    "port too large": ("127.0.0.1", lambda port: ("127.0.0.1", port + 65536)),
    "port below 0": ("127.0.0.1", lambda _port: ("127.0.0.1", -1)),
    "a zero in the host": ("127.0.0.1", lambda port: ("127.0.0.1\0.x", port)),
    "not even text": ("127.0.0.1", lambda port: ("\udc80", port)),
    "of the other family": ("127.0.0.1", lambda port: ("::1", port)),
    "ipv6": ("::1", lambda port: ("::1", port)),
    "ipv6 with flow": ("::1", lambda port: ("::1", port, 7)),
    "ipv6 with scope": ("::1", lambda port: ("::1", port, 0, 0)),
    "another scope": ("::1", lambda port: ("fe80::1", port, 0, 1)),
    "flow too large": ("::1", lambda port: ("::1", port, 1 << 20, 0)),
    "flow below 0": ("::1", lambda port: ("::1", port, -1, 0)),
    "scope too large": ("::1", lambda port: ("::1", port, 0, 1 << 32)),
    "scope below 0": ("::1", lambda port: ("::1", port, 0, -1)),
    "five parts": ("::1", lambda port: ("::1", port, 0, 0, 0)),
    "ipv4 to ipv6": ("::1", lambda port: ("127.0.0.1", port)),
}


@pytest.mark.parametrize("case", ADDRESSES)
def test_an_address_means_what_it_means_to_the_socket_module(seen, case):
    host, address = ADDRESSES[case]

    async def scenario():
        failures = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: failures.append(repr(context["exception"])))
        with peer(host) as other:
            sending = await endpoint(host=host)
            if ":" in host:  # or the flow would not be seen, and each socket would have one of the kernel's
                flows = sending.transport.get_extra_info("socket")
                flows.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO_SEND, 1)
                flows.setsockopt(socket.IPPROTO_IPV6, IPV6_AUTOFLOWLABEL, 0)
                other.setsockopt(socket.IPPROTO_IPV6, IPV6_FLOWINFO, 1)
            for data in (b"plain", bytearray(b"an array"), memoryview(b"a view")):
                if not sending.transport.is_closing():
                    sending.transport.sendto(data, address(other.getsockname()[1]))
            other.settimeout(0.02)
            arrived = []
            try:
                while True:
                    arrived.append(other.recvmsg(100, 100)[:2])
            except TimeoutError:
                pass
            told, closing = [str(what) for what in sending.told], sending.transport.is_closing()
            await sending.ends()
            return [arrived, told, failures, closing]

    seen(scenario)


@pytest.mark.parametrize("data", [b"", None, "text", 7, bytearray()], ids=repr)
def test_what_can_not_be_sent_is_told_as_by_asyncio(seen, data):
    async def scenario():
        with peer() as other:
            sending = await endpoint()
            other.settimeout(0.02)
            try:
                sending.transport.sendto(data, other.getsockname())
                return [other.recv(100)]
            except TypeError as error:
                return [str(error)]
            except TimeoutError:
                return ["nothing came"]
            finally:
                await sending.ends()

    seen(scenario)


def test_a_connected_endpoint_sends_to_its_peer_alone_and_hears_that_it_is_gone(seen):
    async def scenario():
        with peer() as other, peer() as third:
            name = other.getsockname()
            sending = await endpoint(remote_addr=name)
            sending.transport.sendto(b"to the peer")
            sending.transport.sendto(b"by name", name)
            with pytest.raises(ValueError, match="Invalid address"):
                sending.transport.sendto(b"to another", third.getsockname())
            arrived = [other.recv(100), other.recv(100)]
        # Now nobody is there: the first send learns it, and the second tells.
        sending.transport.sendto(b"lost")
        told = 0
        while not sending.told and told < 3:
            told += 1
            sending.transport.sendto(b"refused")
        await sending.hears(1)
        errors = {what[1] for what in sending.told}
        await sending.ends()
        sending.transport.sendto(b"to nobody")
        return [arrived, errors, sending.told[-1]]

    assert seen(scenario) == [[b"to the peer", b"by name"], {ConnectionRefusedError}, ("lost", None)]


def test_an_error_that_is_received_is_told_once(run):
    async def main():
        with peer() as other:
            waiting = await endpoint(remote_addr=other.getsockname())
        waiting.transport.sendto(b"for nobody")
        await waiting.hears(1)
        await asyncio.sleep(0.02)
        assert waiting.told == [("error", ConnectionRefusedError, 111)]
        await waiting.ends()

    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
def test_nothing_is_received_after_the_protocol_has_closed(seen, end):
    class Closing(Recorder):
        def datagram_received(self, data, addr):
            self.told.append(data)
            getattr(self.transport, end)()

    async def scenario():
        with peer() as other:
            closing = await endpoint(Closing)
            for data in (b"first", b"second", b"third"):
                other.sendto(data, name_of(closing))
            await closing.hears(2)
            await asyncio.sleep(0.01)
            closing.transport._read_ready()  # the descriptor is somebody else's by now
            return closing.told

    assert seen(scenario) == [b"first", ("lost", None)]


def test_what_a_protocol_raises_does_not_lose_the_next_datagram(seen):
    class Failing(Recorder):
        def datagram_received(self, data, addr):
            self.told.append(data)
            raise OSError(5, data.decode())

    async def scenario():
        failures = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: failures.append(repr(context["exception"])))
        with peer() as other:
            failing = await endpoint(Failing)
            for data in (b"first", b"second", b"third"):
                other.sendto(data, name_of(failing))
            await failing.hears(3)
            await asyncio.sleep(0.01)
            await failing.ends()
            return [failing.told[:3], failures]

    assert seen(scenario)[1] == ["OSError(5, 'first')", "OSError(5, 'second')", "OSError(5, 'third')"]


def test_what_is_sent_while_something_waits_stays_behind_it(seen):
    async def scenario():
        with peer() as other:
            sending = await endpoint()
            transport, name = sending.transport, other.getsockname()
            # Loopback always takes a datagram, so one that did not leave is put there by hand.
            transport._buffer.append((b"first", name))
            asyncio.get_running_loop()._add_writer(transport._sock_fd, transport._sendto_ready)
            transport.sendto(b"second", name)
            await asyncio.sleep(0.01)
            arrived = [other.recv(100), other.recv(100)]
            await sending.ends()
            return arrived

    assert seen(scenario) == [b"first", b"second"]


def test_another_protocol_gets_what_comes_from_then_on(run):
    async def main():
        later = Recorder()

        class Leaving(Recorder):
            def datagram_received(self, data, addr):
                super().datagram_received(data, addr)
                self.transport.set_protocol(later)

        with peer() as other:
            first = await endpoint(Leaving)
            for data in (b"first", b"second", b"third"):
                other.sendto(data, name_of(first))
            await later.hears(2)
            assert [data for data, _ in first.told] == [b"first"]
            assert [data for data, _ in later.told] == [b"second", b"third"]
            later.transport = first.transport
            await later.ends()

    run(main())


def test_a_flood_leaves_time_for_the_rest(run):
    """32 datagrams an event: the callback that was scheduled meanwhile runs before the flood has been read."""

    async def main():
        loop = asyncio.get_running_loop()
        order = []

        class Flooded(Recorder):
            def datagram_received(self, data, addr):
                self.told.append(data)
                if len(self.told) == 1:
                    loop.call_soon(order.append, "callback")
                order.append("datagram")

        with peer() as other:
            flooded = await endpoint(Flooded)
            for _ in range(100):
                other.sendto(b"x", name_of(flooded))
            await flooded.hears(100)
            assert order.index("callback") == 32
            await flooded.ends()

    run(main())


def test_a_socket_with_ways_of_its_own_is_asked_by_its_own_methods(run):
    class Own(socket.socket):
        calls: Transcript = []  # noqa: RUF012

        def recvfrom(self, *arguments):
            self.calls.append("recvfrom")
            return super().recvfrom(*arguments)

        def sendto(self, *arguments):
            self.calls.append("sendto")
            return super().sendto(*arguments)

    async def main():
        own = Own(socket.AF_INET, socket.SOCK_DGRAM)
        own.bind(("127.0.0.1", 0))
        with peer() as other:
            protocol = await endpoint(sock=own)
            protocol.transport.sendto(b"asked", other.getsockname())
            other.sendto(other.recv(100), own.getsockname())
            await protocol.hears(1)
            assert own.calls == ["sendto", "recvfrom"]
            await protocol.ends()

    run(main())


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


def test_an_endpoint_is_made_where_a_test_has_put_a_function_in_the_place_of_socket_socket(run, monkeypatch):
    async def main():
        with peer() as ours, peer() as other:
            ours.setblocking(False)
            kept = ours.dup()
            monkeypatch.setattr(socket, "socket", lambda *_: None)
            protocol = await endpoint(sock=kept)
            protocol.transport.sendto(b"asked", other.getsockname())
            assert other.recv(100) == b"asked"
            await protocol.ends()

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
