"""A protocol's callback that forks and returns in both processes."""

from __future__ import annotations

import asyncio
import os
import socket

from stellane_loop import Loop

DEADLINE_S = 30
ERROR_RAISED = 17


class Forking(asyncio.Protocol):
    """Forks at the first bytes; the parent waits for the child's end."""

    def __init__(self, done):
        self.done = done
        self.received = b""
        self.child_status = None
        self.in_child = False

    def data_received(self, data):
        self.received += data
        if self.child_status is None and not self.in_child:
            child = os.fork()
            if child == 0:
                self.in_child = True
                return
            self.child_status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if self.received.endswith(b"."):
            self.done.set_result(None)


def test_the_child_gets_an_error_and_the_parent_goes_on(poller):
    loop = Loop(poller)
    protocol = None

    async def main():
        nonlocal protocol
        ours, peer = socket.socketpair()
        with peer:
            done = loop.create_future()
            transport, protocol = await loop.create_connection(lambda: Forking(done), sock=ours)
            peer.send(b"first")
            await asyncio.sleep(0.01)
            peer.send(b", second.")
            await asyncio.wait_for(done, DEADLINE_S)
            transport.close()

    try:
        loop.run_until_complete(main())
    except BaseException as exc:
        if protocol is not None and protocol.in_child:
            os._exit(ERROR_RAISED if isinstance(exc, OSError) else 1)
        raise
    finally:
        if protocol is not None and protocol.in_child:
            os._exit(2)
    loop.close()
    assert protocol.child_status == ERROR_RAISED
    assert protocol.received == b"first, second."
