"""Make `bench` importable wherever pytest is started from, and compile its programs once."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

# A part of the checkout, not a distribution.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.build import compile_program


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C programs, compiled with the benchmark's own flags (warnings are errors)."""
    if shutil.which("cc") is None:
        pytest.skip("not run: the benchmark's programs need a C compiler (cc)")
    directory = tmp_path_factory.mktemp("build")
    for name in ("epoll_server", "uring_server", "load", "epoll_echo", "uring_echo", "echo_load"):
        compile_program(name, directory)
    return directory
