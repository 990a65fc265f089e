"""Install distributions of this repository as wheels, as a user would: install_wheels.py FOLDER[EXTRA]...

Wheels are built from copies, without isolation, and kept in .tox/wheels by Python and content: the
environments of the matrix share them, and what two that run at once want is built once. Run it with the
Python of the environment to install into; what the distributions build with must be there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ROOT / ".tox" / "wheels"
MADE = shutil.ignore_patterns("build", "dist", "*.egg-info", "__pycache__", "*.so", "_native.c", "tests")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
CHOICES = ("PROTOCOL_HTTP_NO_EXTENSIONS",)
"""Variables of the environment that change what is built."""


def content(folder: Path) -> str:
    """A digest of every file that goes into the wheel, and of what else decides it."""
    digest = hashlib.sha256(repr([sys.implementation.cache_tag, *map(os.environ.get, CHOICES)]).encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def wheel_of(folder: Path) -> Path:
    """The wheel of a distribution; built when there is none of this content."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = shutil.copytree(folder, Path(scratch) / folder.name, ignore=MADE)
        kept = WHEELS / content(copy)
        with kept.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.is_dir():
                built = Path(scratch) / "wheels"
                command = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(copy)]
                subprocess.run(command, check=True)
                shutil.copytree(built, kept.with_suffix(".new"), dirs_exist_ok=True)
                kept.with_suffix(".new").rename(kept)
    return next(kept.glob("*.whl"))


def main(arguments: list[str]) -> None:
    wanted = []
    WHEELS.mkdir(parents=True, exist_ok=True)
    for argument in arguments:
        folder, bracket, extra = argument.partition("[")
        wanted.append(f"{wheel_of(ROOT / folder)}{bracket}{extra}")
    # Twice: pip takes a wheel of a version that is installed for installed, and what they depend on is not ours.
    subprocess.run([*PIP, "install", *wanted], check=True)
    subprocess.run([*PIP, "install", "--no-deps", "--force-reinstall", *wanted], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
