"""Slow methods of protocols are noticed like other slow callbacks, though the poll calls them."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

SLOW_S = 0.1


class SlowToConnect(asyncio.Protocol):
    def connection_made(self, transport):
        time.sleep(1.2 * SLOW_S)


class SlowToReceive(asyncio.Protocol):
    def data_received(self, data):
        time.sleep(1.2 * SLOW_S)


class SlowInItsBuffer(asyncio.BufferedProtocol):
    def get_buffer(self, sizehint):
        return bytearray(100)

    def buffer_updated(self, nbytes):
        time.sleep(1.2 * SLOW_S)


async def accept_and_receive(protocol_factory):
    """One connection to a server of such protocols, and a message to it."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol_factory, "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname()) as client:
        client.send(b"hello")
        while not loop.statistics().receives:
            await asyncio.sleep(0.001)
    server.close()
    await asyncio.sleep(0.01)


SLOW_METHODS = [
    (SlowToConnect, "connection_made"),
    (SlowToReceive, "data_received"),
    (SlowInItsBuffer, "buffer_updated"),
]


@pytest.mark.parametrize(("protocol", "method"), SLOW_METHODS)
def test_a_slow_method_is_reported_by_its_name(run, protocol, method):
    async def main():
        reports = []
        asyncio.get_running_loop().report_slow_callbacks(SLOW_S, reports.append)
        await accept_and_receive(protocol)
        [report] = [report for report in reports if method in repr(report.handle)]
        assert report.took_s >= SLOW_S
        assert report.task is None

    run(main())


@pytest.mark.parametrize(("protocol", "method"), SLOW_METHODS)
def test_debug_mode_warns_of_a_slow_method(run, caplog, protocol, method):
    async def main():
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = SLOW_S
        with caplog.at_level(logging.WARNING, "asyncio"):
            await accept_and_receive(protocol)
        assert [method in record.getMessage() for record in caplog.records].count(True) == 1

    run(main())


def test_the_slow_connection_made_of_a_client_is_reported_once(run):
    async def main():
        loop = asyncio.get_running_loop()
        reports = []
        loop.report_slow_callbacks(SLOW_S, reports.append)
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await loop.create_connection(SlowToConnect, sock=ours)
            transport.abort()
            await asyncio.sleep(0.01)
        assert len(reports) == 1

    run(main())
