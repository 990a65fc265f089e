"""Starlette and FastAPI apps, unchanged, on every backend, driven by httpx and by curl."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

APPS = ["starlette_app.py:app", "fastapi_app.py:app"]
UPLOAD_BYTES = 20_000_000
LATER_MAX = 20


@pytest.fixture(params=APPS)
def server(request: pytest.FixtureRequest, backend: str, stellane: Any) -> Any:
    process = stellane(request.param, "--backend", backend)
    process.wait_for(rf"(?m)^backend +{backend} ")
    return process


def test_an_app_runs_unchanged(server: Any) -> None:
    """Routing, lifespan state, streaming, uploads, background tasks, errors: one server for all of it."""
    with httpx.Client(base_url=server.url, timeout=20) as client:
        assert client.get("/hello/Ada").text == "Hello Ada, by the lifespan"
        assert client.get("/hello/%C3%A9t%C3%A9").text == "Hello été, by the lifespan"
        assert client.get("/nowhere").status_code == 404
        assert client.put("/upload").status_code == 405
        with client.stream("GET", "/stream") as response:
            assert response.headers["transfer-encoding"] == "chunked"
            assert b"".join(response.iter_bytes()) == b"".join(b"%d\n" % n for n in range(100))
        body = os.urandom(UPLOAD_BYTES)
        expected = {"sha256": hashlib.sha256(body).hexdigest(), "size": UPLOAD_BYTES}
        assert client.post("/upload", content=body).json() == expected
        chunks = (body[start : start + 100_000] for start in range(0, UPLOAD_BYTES, 100_000))
        assert client.post("/upload", content=chunks).json() == expected
        assert client.get("/broken").status_code == 500
        server.wait_for("RuntimeError: on purpose")
        # Several: on a busy machine any one answer may come after the background task has ended.
        orders: list[str] = []
        waited = True
        while waited and len(orders) < LATER_MAX:
            orders.append(str(len(orders)))
            assert client.post(f"/later?id={orders[-1]}").status_code == 200
            waited = orders[-1] in client.get("/done").json()
        assert not waited, "the response waited for the background task"
        assert client.get("/hello/meanwhile").status_code == 200
        deadline = time.monotonic() + 5
        while client.get("/done").json() != orders:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_hundred_concurrent_slow_clients(server: Any) -> None:
    """Each one sends its body in pieces; together they take about as long as one."""

    async def one(client: httpx.AsyncClient, number: int) -> str:
        async def body() -> Any:
            for _ in range(10):
                yield b"x" * number
                await asyncio.sleep(0.03)

        return (await client.post("/slow", content=body())).text

    async def everybody() -> list[str]:
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(base_url=server.url, timeout=30, limits=limits) as client:
            return await asyncio.gather(*(one(client, number) for number in range(1, 101)))

    start = time.monotonic()
    assert asyncio.run(everybody()) == [str(number * 10) for number in range(1, 101)]
    assert time.monotonic() - start < 15


def test_fastapi_validation_and_threads(backend: str, stellane: Any) -> None:
    """What FastAPI adds: models, 422, `def` endpoints in threads, HTTPException."""
    server = stellane("fastapi_app.py:app", "--backend", backend)
    with httpx.Client(base_url=server.url, timeout=20) as client:
        item = {"name": "pen", "price": 1.5}
        assert client.post("/items", json=item).json() == item
        assert client.post("/items", json={"name": "pen"}).status_code == 422
        assert client.get("/threaded").json() == "from a thread"
        assert client.get("/refused").json() == {"detail": "a teapot"}
        assert client.get("/openapi.json").json()["openapi"].startswith("3.")


def test_curl(server: Any, tmp_path: Path) -> None:
    """curl speaks to it: GET, HEAD, upload with Expect: 100-continue, HTTP/1.0, keep-alive."""
    curl = shutil.which("curl")
    assert curl is not None, "curl is needed: apt-get install curl"

    def run(*arguments: str) -> str:
        command = [curl, "-sS", "--max-time", "20", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert run(f"{server.url}/hello/curl") == "Hello curl, by the lifespan"
    assert run("--http1.0", f"{server.url}/hello/curl") == "Hello curl, by the lifespan"
    body = tmp_path / "body"
    body.write_bytes(os.urandom(UPLOAD_BYTES))
    digest = hashlib.sha256(body.read_bytes()).hexdigest()
    assert digest in run("-H", "Expect: 100-continue", "--data-binary", f"@{body}", f"{server.url}/upload")
    assert digest in run("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{body}", f"{server.url}/upload")
    assert "0\n1\n2\n" in run(f"{server.url}/stream")
    verbose = subprocess.run(
        [curl, "-sSv", f"{server.url}/hello/a", f"{server.url}/hello/b"], check=True, capture_output=True, text=True
    )
    assert "Re-using existing" in verbose.stderr


def test_in_flight_requests_finish_at_sigterm(server: Any) -> None:
    """A graceful stop: the answer of a request in hand still comes, with Connection: close."""
    responses: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: responses.append(httpx.post(f"{server.url}/slow", content=b"abc")))
    thread.start()
    server.wait_for("slow has the body")
    assert server.stop() == 0
    thread.join()
    assert responses[0].text == "3"
    assert responses[0].headers["connection"] == "close"
