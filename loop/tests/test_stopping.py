"""What was written before a loop stops leaves, whether or not the loop ever turns again."""

from __future__ import annotations

import asyncio
import socket

PAIRS = 64
"""So many that a poller which sends in batches would keep them for its next turn."""


def test_writes_of_the_last_turn_leave(loop) -> None:
    pairs = [socket.socketpair() for _ in range(PAIRS)]
    answering = []

    class Answer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)
            answering.append(self.transport)
            if len(answering) == PAIRS:
                loop.stop()

    async def connect() -> None:
        for ours, _ in pairs:
            ours.setblocking(False)
            await loop.connect_accepted_socket(Answer, ours)

    loop.run_until_complete(connect())
    for _, theirs in pairs:
        theirs.settimeout(5)
        theirs.sendall(b"to be answered")
    loop.run_forever()
    for _, theirs in pairs:
        assert theirs.recv(100) == b"to be answered"
        theirs.close()
    for transport in answering:
        transport.abort()
    loop.run_until_complete(asyncio.sleep(0))
