"""HTTP/2 is not spoken here: what floods servers that speak it costs this one an answer and no more.

The floods begin with the preface (RFC 9113 section 3.4), or come behind a request that asks for `Upgrade: h2c`, which
a server may ignore (RFC 9110 section 7.8).
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from pathlib import Path
from resource import getpagesize
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
import pytest
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, RstStreamFrame, WindowUpdateFrame

from stellane.abc import Exchange
from stellane.testing.leaks import Resources
from stellane_protocol_http import bounds

REQUEST = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "a")]
ROUNDS = 2000
WINDOW_MAX = 2**31 - 1
H2C = (
    b"GET /%b HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
)
FED_BYTES_MAX = 2 * 262_144 + bounds.PIPELINE_BUFFER_BYTES
"""What the parser may get of one connection: a transport of asyncio reads up to 262,144 bytes before it can be told
that this is enough."""
GROWTH_BYTES_MAX = 32 * 1_048_576


def _preface() -> bytes:
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    return bytes(client.data_to_send())


def _request(stream: int, *flags: str) -> Frame:
    # Nothing goes into the table of names, so that each head can be sent any number of times.
    block = hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*field) for field in REQUEST])
    return HeadersFrame(stream, data=block, flags=flags)


def _frames(*frames: Frame) -> bytes:
    return b"".join(frame.serialize() for frame in frames)


def _rapid_reset() -> bytes:
    """CVE-2023-44487: requests that are taken back at once."""
    return b"".join(
        _frames(_request(stream, "END_HEADERS", "END_STREAM"), RstStreamFrame(stream, error_code=8))
        for stream in range(1, 2 * ROUNDS, 2)
    )


def _continuation_flood() -> bytes:
    """CVE-2024-27316 and others: a head that never ends."""
    return _frames(_request(1, "END_STREAM"), *[ContinuationFrame(1, data=b"\x10\x01a\x01b" * 10)] * ROUNDS)


def _made_you_reset() -> bytes:
    """CVE-2025-8671: requests that the server itself has to reset, for data behind their end."""
    return b"".join(
        _frames(_request(stream, "END_HEADERS", "END_STREAM"), DataFrame(stream, data=b"late"))
        for stream in range(1, 2 * ROUNDS, 2)
    )


def _window_overflow() -> bytes:
    """RFC 9113 section 6.9.1: windows opened further than they go."""
    update = [WindowUpdateFrame(stream, window_increment=WINDOW_MAX) for stream in (1, 0)]
    return _frames(_request(1, "END_HEADERS"), *update * ROUNDS)


def _hpack_bomb() -> bytes:
    """CVE-2016-6581: each byte of a head stands for a field of 4,000."""
    block = hpack.Encoder().encode([*REQUEST, ("x", "a" * 4000)])
    reference = b"\xbe"  # RFC 7541 section 6.1: the newest entry of the table
    last = ContinuationFrame(1, data=reference, flags=["END_HEADERS"])
    return _frames(HeadersFrame(1, data=block), *[ContinuationFrame(1, data=reference * 16_000)] * 7, last)


FLOODS = {
    flood.__name__.strip("_"): flood()
    for flood in (_rapid_reset, _continuation_flood, _made_you_reset, _window_overflow, _hpack_bomb)
}


def test_the_floods_are_what_they_say() -> None:
    """A server of HTTP/2 runs thousands of requests for the one kind, and cuts the connection for the other."""

    def judged(name: str) -> list[h2.events.Event]:
        server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        return list(server.receive_data(_preface() + FLOODS[name]))

    for name in ("rapid_reset", "made_you_reset"):
        events = judged(name)
        for kind in (h2.events.RequestReceived, h2.events.StreamReset):
            assert sum(type(event) is kind for event in events) == ROUNDS, name
    for name, error in (
        ("continuation_flood", h2.exceptions.ProtocolError),
        ("window_overflow", h2.exceptions.FlowControlError),
        ("hpack_bomb", h2.exceptions.DenialOfServiceError),
    ):
        with pytest.raises(error):
            judged(name)


class CountingCodec:
    """A parser, and how many bytes it was given."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.fed_bytes = 0

    def receive_event(self, data: bytes) -> Any:
        self.fed_bytes += len(data)
        return self._inner.receive_event(data)

    def receive_data(self, data: bytes) -> None:
        self.fed_bytes += len(data)
        self._inner.receive_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Flooder(threading.Thread):
    """A client that sends a flood, takes the answers to it, and floods on until the server cuts it off."""

    def __init__(self, server: Any, start: bytes, flood: bytes, answers: int) -> None:
        super().__init__(daemon=True)
        self.client = server.connect()
        self.statuses: list[int] = []
        self.cut_off = False
        self._start_bytes = start + flood
        self._flood = flood
        self._answers = answers

    def run(self) -> None:
        self.client.send(self._start_bytes)
        self.statuses = [self.client.response().status for _ in range(self._answers)]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and not self.cut_off:
            try:
                self.client.send(self._flood)
            except OSError:
                self.cut_off = True
        self.client.sock.close()


class Server:
    """A running server, the requests its handlers have begun, and the parsers of its connections."""

    def __init__(self, serve: Any) -> None:
        self.begun: list[bytes] = []
        self.parsers: list[CountingCodec] = []
        self.released = asyncio.Event()
        self.running = serve(self._handle)
        protocol = self.running.protocol
        connect = protocol.codec_in_use.connect

        def counted() -> CountingCodec:
            self.parsers.append(CountingCodec(connect()))
            return self.parsers[-1]

        protocol.codec_in_use = dataclasses.replace(protocol.codec_in_use, connect=counted)

    async def _handle(self, exchange: Exchange) -> None:
        self.begun.append(exchange.path)
        if exchange.path == b"/slow":
            await self.released.wait()
        exchange.respond(200, (), b"")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()


def test_a_flood_costs_an_answer(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No request of it runs, little of it is parsed, none is kept; others are served, and nothing is left behind."""
    monkeypatch.setattr(bounds, "LINGER_S", 0.2)
    server = Server(serve)
    before, resident_bytes = Resources.now(), _resident_bytes()
    direct = [Flooder(server.running, _preface(), flood, 1) for flood in FLOODS.values()]
    upgrades = [Flooder(server.running, H2C % b"upgrade" + _preface(), flood, 2) for flood in FLOODS.values()]
    for flooder in direct + upgrades:
        flooder.start()
    most_bytes, others = 0, 0
    bystander = server.running.connect()
    while others < 3 or any(flooder.is_alive() for flooder in direct + upgrades):
        bystander.send(b"GET /other HTTP/1.1\r\nHost: a\r\n\r\n")
        assert bystander.response().status == 200
        others += 1
        most_bytes = max(most_bytes, _resident_bytes())
        time.sleep(0.01)
    bystander.sock.close()
    assert [flooder.statuses for flooder in direct] == [[505]] * len(FLOODS)
    # Behind a request that the server has answered as HTTP/1.1 the preface is one more line that is no request.
    assert all(flooder.statuses[0] == 200 and flooder.statuses[1] in (400, 505) for flooder in upgrades)
    assert all(flooder.cut_off for flooder in direct + upgrades)
    assert sorted(server.begun) == [b"/other"] * others + [b"/upgrade"] * len(FLOODS)
    assert most_bytes - resident_bytes < GROWTH_BYTES_MAX
    assert max(parser.fed_bytes for parser in server.parsers) <= FED_BYTES_MAX
    assert before.leaked(deadline_s=5) == []
    assert server.running.call(server.running.protocol.statistics).connections == 0
    assert not server.running.tasks


def test_a_flood_behind_a_slow_request_waits_in_the_system(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender is held up; when the request has its answer, the flood is refused."""
    monkeypatch.setattr(bounds, "LINGER_S", 0.2)
    server = Server(serve)
    client = server.running.connect()
    client.send(H2C % b"slow" + _preface())
    client.sock.settimeout(0.3)

    def flood() -> None:
        for _ in range(2000):  # more than the buffers of both sockets hold
            client.send(FLOODS["rapid_reset"])

    with pytest.raises(TimeoutError):
        flood()
    assert max(parser.fed_bytes for parser in server.parsers) <= FED_BYTES_MAX
    server.running.call(server.released.set)
    client.sock.settimeout(5)
    assert client.response().status == 200
    assert client.response().status in (400, 505)
    assert server.begun == [b"/slow"]
