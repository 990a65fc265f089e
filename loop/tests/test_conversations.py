"""Random conversations: whatever happens, a protocol hears made, data*, eof?, lost, in this order and once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

from loop.tests.test_streams import connected


async def act(transport, peer, randomness: random.Random) -> None:
    """One thing that a program, its peer or the network does."""
    action = randomness.randrange(7)
    if action == 0:
        transport.write(b"o" * randomness.randrange(1, 100_000))
    elif action == 1:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have been told of an abort
            peer.send(b"i" * randomness.randrange(1, 1000))
    elif action == 2:
        transport.pause_reading()
    elif action == 3:
        transport.resume_reading()
    elif action == 4:
        await asyncio.sleep(randomness.random() * 0.002)
    elif action == 5:
        transport.close()
    else:
        transport.abort()


async def read_to_the_end(peer: socket.socket) -> None:
    try:
        while await asyncio.get_running_loop().sock_recv(peer, 1 << 16):
            pass
    except ConnectionResetError:
        return


async def converse(randomness: random.Random) -> list[str]:
    """What the protocol heard."""
    transport, protocol, peer = await connected(buffer_bytes=randomness.choice((None, 4096)))
    with peer:
        for _ in range(randomness.randrange(6)):
            await act(transport, peer, randomness)
        ending = randomness.randrange(3)
        if ending == 0:
            transport.abort()
        elif ending == 1:
            transport.resume_reading()
            peer.close()
        else:
            transport.close()
            await read_to_the_end(peer)
    if not protocol.lost.done():
        transport.abort()
    await asyncio.wait_for(protocol.lost, 10)
    return protocol.events


def test_a_protocol_hears_of_everything_once_and_in_order(run):
    async def main():
        randomness = random.Random(17)
        for _ in range(10):
            for events in await asyncio.gather(*(converse(randomness) for _ in range(30))):
                assert events[0] == "made"
                assert events[-1] == "lost"
                assert events.count("lost") == 1
                if "eof" in events:
                    assert "data" not in events[events.index("eof") :]

    run(main())
