"""What a person is told whose machine cannot build the loop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("Cython", reason="not run: building needs Cython")
pytest.importorskip("setuptools", reason="not run: building needs setuptools")

LOOP = Path(__file__).parents[1]
# setuptools first: it is to believe that this is Linux
ON_ANOTHER_SYSTEM = (
    "import runpy, sys, setuptools.command.build_ext; sys.platform = 'darwin';"
    "runpy.run_path('setup.py', run_name='__main__')"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The distribution with next to nothing to compile: the messages do not depend on how much there is."""
    copy = tmp_path / "loop"
    shutil.copytree(LOOP, copy, ignore=shutil.ignore_patterns("tests", "build", "*.so", "*.egg-info", "_native.c"))
    (copy / "src/stellane_loop/_native.pyx").write_text("# cython: language_level=3\n")
    for part in (copy / "src/stellane_loop/core").glob("*.c"):
        part.write_text("typedef int nothing;\n")
    return copy


def build(source: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_without_a_compiler_it_says_what_to_install_and_what_to_use_instead(source: Path) -> None:
    ended = build(source, "setup.py", "build_ext", CC="/nowhere/cc")
    assert ended.returncode != 0
    assert "stellane-loop could not be compiled" in ended.stderr
    assert "apt-get install gcc" in ended.stderr
    assert 'backend = "asyncio"' in ended.stderr


def test_off_linux_it_says_what_to_use_instead(source: Path) -> None:
    ended = build(source, "-c", ON_ANOTHER_SYSTEM, "build_ext")
    assert ended.returncode != 0
    assert "stellane-loop is for Linux" in ended.stderr
    assert 'backend = "asyncio"' in ended.stderr


@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="not run: no C compiler here")
def test_with_a_compiler_it_builds(source: Path) -> None:
    ended = build(source, "setup.py", "build_ext")
    assert ended.returncode == 0, ended.stderr
    assert list(source.glob("build/**/_native*.so"))
