"""Plain connections that become connections of TLS."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from loop.tests.conftest import Transcript
from loop.tests.tls_peers import Manual, Recorder, end, failures


async def upgraded(tls, plain: bytes, make=Recorder) -> tuple[Any, Any, asyncio.Server]:
    """As pair, but begun in plain text, which both sides have read."""
    loop = asyncio.get_running_loop()
    made: list[Any] = []

    def accepted():
        made.append(make())
        return made[-1]

    server = await loop.create_server(accepted, "127.0.0.1", 0)
    _, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
    client.transport.write(plain)
    while not made:
        await asyncio.sleep(0.001)
    await made[0].hears(len(plain))
    made[0].transport, client.transport = await asyncio.gather(
        loop.start_tls(made[0].transport, made[0], tls[0], server_side=True),
        loop.start_tls(client.transport, client, tls[1], server_hostname="127.0.0.1"),
    )
    return made[0], client, server


def test_a_plain_connection_becomes_one_of_tls(seen, tls):
    async def scenario() -> Transcript:
        ours, theirs, server = await upgraded(tls, b"STARTTLS")
        theirs.transport.write(b"q" * 20_000)
        await ours.hears(20_008)
        ours.transport.write(b"answer")
        await theirs.hears(6)
        theirs.transport.close()
        await asyncio.gather(ours.ended, theirs.ended)
        server.close()
        return [ours.heard, theirs.heard, ours.told, theirs.told]

    assert seen(scenario)[0] == b"STARTTLS" + b"q" * 20_000


def test_a_connection_upgraded_takes_the_short_way(run, tls):
    async def main() -> None:
        ours, theirs, server = await upgraded(tls, b"STARTTLS")
        theirs.transport.write(b"abc")
        await ours.hears(11)
        for protocol in (ours, theirs):
            assert len(protocol.transport._ssl_protocol._ssl_buffer) == 0
        await end(server, ours, theirs)

    run(main())


@pytest.mark.parametrize("context", [None, "no context", True])
def test_start_tls_refuses_what_is_no_context(seen, context):
    async def scenario() -> Transcript:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        with pytest.raises(TypeError, match="sslcontext is expected") as caught:
            await loop.start_tls(transport, client, context)
        await end(server, client)
        return [str(caught.value)]

    seen(scenario)


def test_a_handshake_that_fails_closes_what_was_plain(seen, tls):
    async def scenario() -> Transcript:
        failures()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        with pytest.raises(ConnectionAbortedError, match="handshake is taking longer") as caught:
            await loop.start_tls(transport, client, tls[1], ssl_handshake_timeout=0.05)
        assert transport.is_closing()
        server.close()
        return [str(caught.value)]

    seen(scenario)


def test_who_stops_waiting_for_the_handshake_closes_the_connection(seen, tls):
    async def scenario() -> Transcript:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Recorder, "127.0.0.1", 0)
        transport, client = await loop.create_connection(Recorder, *server.sockets[0].getsockname())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.start_tls(transport, client, tls[1], server_hostname="127.0.0.1"), 0.05)
        assert transport.is_closing()
        server.close()
        return [client.told]

    seen(scenario)


def test_a_handshake_sent_with_the_last_of_the_plain_text_is_not_lost(run, tls):
    """The client does not wait for an answer to STARTTLS: its first message is read with it."""

    async def main() -> None:
        heard = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            while not reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0.001)
            await writer.start_tls(tls[0])
            heard.set_result(await reader.readline())
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        client = Manual(tls[1], reader, writer)
        with pytest.raises(ssl.SSLWantReadError):
            client.tls.do_handshake()
        writer.write(b"STARTTLS\n" + client.outgoing.read())
        await client.until(client.tls.do_handshake)
        client.tls.write(b"hello\n")
        client.send()
        assert await heard == b"hello\n"
        writer.close()
        server.close()

    run(main())
