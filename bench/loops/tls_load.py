"""The TLS echo load generator; it talks to the harness as bare/generator.h says.

usage: tls_load.py PORT CONNECTIONS WARMUP_MS RUN_MS MESSAGE_BYTES

In Python, unlike the others: its speed does not enter the figure, which is the server's CPU time,
and so nothing but Python's own TLS is needed. All connections send, then all are read and checked.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import json
import random
import socket
import ssl
import time

from bench.loops.tls import client_context

STALL_S = 5.0
SPREAD = 4093


class Generator:
    """Blocking TLS connections in a closed loop."""

    def __init__(self, port: int, connections: int, message_bytes: int) -> None:
        self._pattern = random.Random(1).randbytes(message_bytes + SPREAD)
        self._message_bytes = message_bytes
        context = client_context()
        self._connections = [self._connect(context, port) for _ in range(connections)]
        self._sent = 0

    @staticmethod
    def _connect(context: ssl.SSLContext, port: int) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), timeout=STALL_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return context.wrap_socket(plain, server_hostname="localhost")

    def round(self, latencies: list[float]) -> None:
        """One message on each connection. Raises OSError or ValueError for anything but its echo."""
        in_flight = []
        for connection in self._connections:
            self._sent += 17
            start = self._sent % SPREAD
            message = self._pattern[start : start + self._message_bytes]
            in_flight.append((connection, message, time.perf_counter()))
            connection.sendall(message)
        for connection, message, began in in_flight:
            echo = connection.recv(self._message_bytes)
            while len(echo) < self._message_bytes:
                more = connection.recv(self._message_bytes - len(echo))
                if not more:
                    raise ConnectionError("the server closed the connection with a request in flight")
                echo += more
            if echo != message:
                raise ValueError("the echo is not the bytes that were sent")
            latencies.append(time.perf_counter() - began)

    def run(self, ms: int) -> tuple[list[float], float]:
        """Load for that long: latencies and the time it took, seconds."""
        latencies: list[float] = []
        start = time.perf_counter()
        while not latencies or time.perf_counter() - start < ms / 1000:
            self.round(latencies)
        return latencies, time.perf_counter() - start


def main(port: int, connections: int, warmup_ms: int, run_ms: int, message_bytes: int) -> int:
    """Load the server; the exit status."""
    try:
        generator = Generator(port, connections, message_bytes)
        generator.run(warmup_ms)
        print("ready", flush=True)
        if not sys.stdin.readline():
            return 2
        cpu_s = time.process_time()
        latencies, elapsed_s = generator.run(run_ms)
    except (OSError, ValueError) as error:
        print(f"tls_load: {error}", file=sys.stderr)
        return 1
    latencies.sort()
    result = {
        "requests": len(latencies),
        "elapsed_s": elapsed_s,
        "cpu_s": time.process_time() - cpu_s,
        "connections_lost": 0,
        "p50_us": latencies[len(latencies) // 2] * 1e6,
        "p99_us": latencies[len(latencies) * 99 // 100] * 1e6,
        "errors": {},
        "first_error": "",
    }
    print(json.dumps(result), flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
