"""`stellane run` as a user starts it, on the backend and journal the environment selects."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BACKENDS = ("asyncio", "epoll", "io_uring", "libuv")
APPS = Path(__file__).parent / "serving" / "apps"


class StellaneProcess:
    """One `stellane run`. Its output is kept; `url` is known once the banner is out."""

    def __init__(self, arguments: list[str], environ: dict[str, str], directory: Path) -> None:
        self.output = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stellane", "run", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=directory,
            env={**os.environ, **environ},
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line

    def wait_for(self, pattern: str, timeout_s: float = 20.0) -> re.Match[str]:
        """Wait until the output matches; fails with the output when it does not."""
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self._process.poll() is not None
            if ended:
                self._reader.join(5)
            if match := re.search(pattern, self.output):
                return match
            assert not ended, f"it ended without {pattern!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.output}"
            time.sleep(0.02)

    @property
    def url(self) -> str:
        return self.wait_for(r"http://[0-9.:]+\d")[0]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def workers(self) -> list[int]:
        """Process ids of the workers that are alive."""
        return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 20.0) -> int:
        """The exit code."""
        code = self._process.wait(timeout_s)
        self._reader.join(5)
        return code

    def stop(self) -> int:
        if self._process.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError(f"the server did not stop:\n{self.output}") from None
        finally:
            assert self._process.stdout is not None
            self._process.stdout.close()


@pytest.fixture(params=[os.environ["STELLANE_TEST_BACKEND"]] if "STELLANE_TEST_BACKEND" in os.environ else BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """Every first-party backend, or the one of STELLANE_TEST_BACKEND."""
    return str(request.param)


@pytest.fixture
def journal_engine() -> str:
    """The journal engine of STELLANE_TEST_JOURNAL, or the default one."""
    return os.environ.get("STELLANE_TEST_JOURNAL", "file")


@pytest.fixture
def extension(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Installs a module as a stranger's extension `listener`; gives the environment that loads it."""

    def install(module: str) -> dict[str, str]:
        site = tmp_path / "site"
        information = site / "acme_listener-1.0.dist-info"
        information.mkdir(parents=True)
        (site / "acme_listener.py").write_text(module)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-listener\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text("[stellane.extensions]\nlistener = acme_listener\n")
        return {"PYTHONPATH": str(site), "STELLANE_RUNTIME_EXTENSIONS": "listener"}

    return install


@pytest.fixture
def stellane(tmp_path: Path) -> Iterator[Callable[..., StellaneProcess]]:
    """`stellane("apps/x.py:app", "--backend", …)`: a running server, stopped at the end."""
    running: list[StellaneProcess] = []

    def start(
        target: str, *arguments: str, environ: dict[str, Any] | None = None, ready: bool = True
    ) -> StellaneProcess:
        target = str(APPS / target) if not target.startswith("/") else target
        process = StellaneProcess([target, "--port", "0", *arguments], environ or {}, tmp_path)
        running.append(process)
        process.wait_for(r"(?m)^journal ")
        return process

    yield start
    for process in running:
        process.stop()
