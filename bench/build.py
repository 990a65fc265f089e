"""Compile the C programs of the benchmark with the system's compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent / "bare"
BUILD = Path(__file__).resolve().parent / "build"
CFLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror")


class BuildError(Exception):
    """There is no C compiler, or a source file does not compile."""


def compile_program(name: str, into: Path = BUILD) -> Path:
    """Compile bare/<name>.c and return the program's path. Raises BuildError."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise BuildError("no C compiler: `cc` is not on PATH (Debian, Ubuntu: apt-get install gcc libc6-dev)")
    into.mkdir(parents=True, exist_ok=True)
    program = into / name
    command = [compiler, *CFLAGS, "-o", str(program), str(SOURCES / f"{name}.c")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise BuildError(f"{' '.join(command)} failed with status {run.returncode}:\n{run.stderr}")
    return program


def compiler_version() -> str:
    """The first line of `cc --version`."""
    return subprocess.run(["cc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
