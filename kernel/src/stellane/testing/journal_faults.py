"""Faults for the journal suite: a small file system that fills up, a sync that fails.

What the machine cannot do is skipped with the reason, never passed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

FULL_DISK_BYTES = 50_331_648
"""Size of the small file system."""

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static int faulty(void) {
    const char *calls = getenv("STELLANE_FAULT_CALLS"), *armed = getenv("STELLANE_FAULT_ARMED");
    int log = open(calls, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (log >= 0) {
        if (write(log, ".", 1) != 1) abort();
        close(log);
    }
    return access(armed, F_OK) == 0;
}

int fsync(int fd) {
    if (faulty()) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    if (faulty()) { errno = EIO; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
"""


@contextlib.contextmanager
def small_file_system(mount_point: Path) -> Iterator[Path]:
    """A tmpfs of FULL_DISK_BYTES at `mount_point`; skips the test where it cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("not run: mounting a small file system needs root")
    mount_point.mkdir()
    options = f"size={FULL_DISK_BYTES},mode=700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount_point)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"not run: a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", "--lazy", str(mount_point)], check=True)


def failing_sync(directory: Path) -> dict[str, str]:
    """Environment variables under which fsync and fdatasync fail while a file exists.

    STELLANE_FAULT_ARMED is that file; STELLANE_FAULT_CALLS grows by a byte with every call.
    Skips the test where there is no C compiler.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("not run: there is no C compiler for the failing fsync")
    source, shim = directory / "failing_sync.c", directory / "failing_sync.so"
    source.write_text(_SHIM)
    command = [compiler, "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(command, check=True)
    return {
        "LD_PRELOAD": str(shim),
        "STELLANE_FAULT_ARMED": str(directory / "armed"),
        "STELLANE_FAULT_CALLS": str(directory / "calls"),
    }


def flip_bit(directory: Path, dice: random.Random) -> tuple[Path, int]:
    """Flip one bit of one byte that is not zero, in one of the files; the file and the bit's number."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size)
    while True:
        # Every byte is as likely as any other, whichever file it is in.
        file = dice.choices(files, [path.stat().st_size for path in files])[0]
        content = bytearray(file.read_bytes())
        used = len(content.rstrip(b"\0"))
        if not used:
            continue
        offset = dice.randrange(used)
        if content[offset]:
            bit = dice.randrange(8)
            content[offset] ^= 1 << bit
            file.write_bytes(content)
            return file, offset * 8 + bit
