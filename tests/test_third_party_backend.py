"""A backend that somebody else wrote: installed from its own distribution, tested, and served on.

`examples/backend-select` is treated as a stranger's package: it is built, installed beside the
kernel's wheels in an environment of its own, and nothing is imported from the checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "backend-select"
INSTALL_TIMEOUT_S = 300
RUN_TIMEOUT_S = 120
START_TIMEOUT_S = 20.0

pytestmark = pytest.mark.slow


class Stranger:
    """A virtual environment with the kernel, the HTTP protocol and the example, all as wheels."""

    def __init__(self, home: Path) -> None:
        venv.create(home / "venv", with_pip=False)
        self.scripts = home / "venv" / "bin"
        self.work = home / "work"
        # The example's tests and the program to serve, away from the checkout and its settings.
        shutil.copytree(EXAMPLE, self.work / "backend-select", ignore=shutil.ignore_patterns("src"))
        shutil.copy(ROOT / "examples" / "hello.py", self.work)

    @property
    def environ(self) -> dict[str, str]:
        """No setting from outside."""
        ours = ("STELLANE_", "PYTHON", "PYTEST_")
        return {name: value for name, value in os.environ.items() if not name.startswith(ours)}

    def install(self, *arguments: str) -> None:
        """Install with the running environment's pip; making another pip would take longer than all the rest."""
        command = [sys.executable, "-m", "pip", "--python", str(self.scripts / "python"), "install", "--quiet"]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            wanted = " ".join(arguments)
            pytest.fail(f"pip could not install {wanted}; it needs an index it can reach:\n{done.stderr[-2000:]}")

    def run(self, *command: str, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment to its end."""
        return subprocess.run(
            [str(self.scripts / command[0]), *command[1:]],
            cwd=directory or self.work,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
            check=False,
        )

    @contextlib.contextmanager
    def serving(self, *arguments: str) -> Iterator[tuple[str, Path]]:
        """`stellane run …`: its URL, once it has one, and the file with its output."""
        log = self.work / "output"
        with log.open("w") as output:
            process = subprocess.Popen(
                [str(self.scripts / "stellane"), "run", *arguments],
                cwd=self.work,
                env=self.environ,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while (match := re.search(r"http://[\d.]+:\d+", log.read_text())) is None:
                assert process.poll() is None, f"it ended:\n{log.read_text()}"
                assert time.monotonic() < deadline, f"no address in:\n{log.read_text()}"
                time.sleep(0.02)
            yield match[0], log
            process.send_signal(signal.SIGTERM)
            assert process.wait(START_TIMEOUT_S) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    environment = Stranger(tmp_path_factory.mktemp("stranger"))
    # Without isolation pip builds the wheels with one set of tools, not with a download of them for each.
    environment.install("hatchling>=1.27", "setuptools>=77", "cython>=3.1,<4")
    environment.install(
        "--no-build-isolation", f"{ROOT}/kernel[testing]", f"{ROOT}/plugins/protocol-http", str(EXAMPLE)
    )
    return environment


def test_it_is_installed_and_nothing_is_imported_from_the_checkout(stranger: Stranger) -> None:
    """Kernel and example are the installed wheels."""
    done = stranger.run(
        "python", "-c", "import stellane, stellane_backend_select as s; print(stellane.__file__, s.__file__)"
    )
    assert done.returncode == 0, done.stderr
    for path in done.stdout.split():
        assert path.startswith(str(stranger.scripts.parent)), path


def test_it_passes_the_shipped_conformance_suite(stranger: Stranger) -> None:
    """Its own tests, as its author runs them, are green with either system call."""
    done = stranger.run("python", "-m", "pytest", "-q", "tests", directory=stranger.work / "backend-select")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100, "two classes of more than fifty tests each"


def test_stellane_plugins_shows_it(stranger: Stranger) -> None:
    """Naming the entry point is all it takes to be known, and its probe says what it found."""
    done = stranger.run("stellane", "plugins", "--probe", "--json")
    assert done.returncode == 0, done.stderr
    (found,) = [plugin for plugin in json.loads(done.stdout) if plugin["name"] == "select"]
    assert (found["kind"], found["distribution"]) == ("backend", "stellane-backend-select")


@pytest.mark.parametrize("call", ["poll", "select"])
def test_it_serves_when_the_configuration_names_it(stranger: Stranger, call: str) -> None:
    """A server runs on it, with its own options, and says so."""
    config = stranger.work / "stellane.config.toml"
    config.write_text(f'[runtime]\nbackend = "select"\n[backend.select]\ncall = "{call}"\n')
    with stranger.serving("hello.py:server", "--port", "0", "--config", str(config)) as (url, log):
        with urllib.request.urlopen(f"{url}/hello/stranger", timeout=START_TIMEOUT_S) as answer:
            assert (answer.status, answer.read()) == (200, b"Hello stranger\n")
        assert "select" in log.read_text()


def test_its_options_are_validated(stranger: Stranger) -> None:
    """A wrong option names the file, the key and what is allowed."""
    config = stranger.work / "wrong.toml"
    config.write_text('[runtime]\nbackend = "select"\n[backend.select]\ncall = "epoll"\n')
    done = stranger.run("stellane", "config", "check", "--config", str(config))
    assert done.returncode != 0
    for word in ("wrong.toml", "backend.select.call", "epoll", "poll"):
        assert word in done.stderr
