"""TLS and what is below it: OpenSSL that takes its time, objects in its place, memory, another transport."""

from __future__ import annotations

import asyncio
import socket
import ssl

import pytest
from loop.tests.conftest import Transcript
from loop.tests.leaks import contexts
from loop.tests.tls_peers import Echo, Recorder, end, pair


class Reluctant:
    """A connection of OpenSSL's that takes what it likes of each write: a renegotiation has it wait for the peer."""

    def __init__(self, tls, taken: list[int | None]) -> None:
        self.read, self.pending = tls.read, tls.pending
        self.tls, self.taken = tls, taken

    def write(self, data) -> int:
        most = self.taken.pop(0) if self.taken else len(data)
        if most is None:
            raise ssl.SSLWantReadError
        return self.tls.write(data[:most])


@pytest.mark.parametrize("taken", [[None], [3], [3, None, 2], [1] * 12])
def test_what_openssl_does_not_take_at_once_follows_in_order(run, tls, taken):
    async def main() -> None:
        ours, theirs, server = await pair(tls)
        protocol = ours.transport._ssl_protocol
        reluctant = Reluctant(protocol._sslobj, list(taken))
        protocol._know(reluctant, protocol._incoming, protocol._outgoing)
        protocol._sslobj = reluctant
        ours.transport.writelines([b"abcdefgh", b"ijk", b"lmnopqrstuv"])
        ours.transport.write(b"wx")
        ours.transport.write(b"yz")
        await theirs.hears(26)
        assert theirs.heard == b"abcdefghijklmnopqrstuvwxyz"
        assert ours.transport.get_write_buffer_size() == 0
        await end(server, ours, theirs)

    run(main())


def test_what_waits_for_the_peer_follows_what_the_peer_sends(run, tls):
    async def main() -> None:
        ours, theirs, server = await pair(tls)
        protocol = ours.transport._ssl_protocol
        reluctant = Reluctant(protocol._sslobj, [None, None])  # asyncio's way tries once more at once
        protocol._know(reluctant, protocol._incoming, protocol._outgoing)
        protocol._sslobj = reluctant
        ours.transport.write(b"abc")
        assert ours.transport.get_write_buffer_size() == 3
        theirs.transport.write(b"go on")
        await theirs.hears(3)
        assert theirs.heard == b"abc"
        assert ours.transport.get_write_buffer_size() == 0
        await end(server, ours, theirs)

    run(main())


def test_what_openssl_has_to_say_while_it_reads_is_sent(run, tls):
    """As the answer to a change of keys, which Python can not ask a peer for: a record stands in the way of one."""

    async def main() -> None:
        ours, theirs, server = await pair(tls)
        ours.transport._ssl_protocol._sslobj.write(b"abc")
        theirs.transport.write(b"change")
        await theirs.hears(3)
        assert theirs.heard == b"abc"
        await end(server, ours, theirs)

    run(main())


class Narrow:
    """In the place of an SSLObject, with what asyncio asks of one and no more."""

    def __init__(self, tls: ssl.SSLObject) -> None:
        for name in ("do_handshake", "read", "write", "unwrap", "getpeercert", "cipher", "compression"):
            setattr(self, name, getattr(tls, name))


class Wide(ssl.SSLObject):
    """An SSLObject whose methods are somebody's."""

    writes = 0

    def write(self, data) -> int:
        Wide.writes += 1
        return super().write(data)


@pytest.mark.parametrize("kind", ["narrow", "wide"])
def test_a_context_may_make_objects_of_its_own(seen, tls, kind):
    def narrow(wrap):
        return lambda *arguments, **options: Narrow(wrap(*arguments, **options))

    async def scenario() -> Transcript:
        contexts_made = contexts()
        for context in contexts_made:
            if kind == "narrow":
                context.wrap_bio = narrow(context.wrap_bio)
            else:
                context.sslobject_class = Wide
        Wide.writes = 0
        ours, theirs, server = await pair(contexts_made, Echo)
        for number in range(1, 4):
            theirs.transport.write(b"a" * 20_000)
            await theirs.hears(number * 20_000)
        await end(server, ours, theirs)
        return [theirs.heard, Wide.writes]

    assert (seen(scenario)[1] > 0) == (kind == "wide")


def test_a_connection_holds_no_buffer_of_its_own(run, tls):
    async def main() -> None:
        ours, theirs, server = await pair(tls)
        theirs.transport.write(b"abc" * 10_000)
        await ours.hears(30_000)
        for protocol in (ours, theirs):
            assert len(protocol.transport._ssl_protocol._ssl_buffer) == 0
            assert protocol.transport._ssl_protocol.max_size == 256 * 1024
        await end(server, ours, theirs)

    run(main())


class SendsInItsOwnWay(socket.socket):
    """A socket whose methods are somebody's: the loop uses asyncio's transport for it."""

    def send(self, *arguments):
        return super().send(*arguments)


def test_tls_over_asyncios_transport_lends_it_memory(run, tls):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=tls[0])
        own = SendsInItsOwnWay()
        own.setblocking(False)
        await loop.sock_connect(own, server.sockets[0].getsockname())
        _, client = await loop.create_connection(Recorder, sock=own, ssl=tls[1], server_hostname="127.0.0.1")
        assert type(client.transport._ssl_protocol._transport).__name__ == "_SelectorSocketTransport"
        client.transport.write(b"abc")
        await client.hears(3)
        assert client.heard == b"abc"
        client.transport.close()
        await client.ended
        server.close()

    run(main())
