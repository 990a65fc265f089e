"""The C core under test by C programs: both pollers through the seam, plain and under sanitizers.

The programs are in `c/`; each prints a line for every test it ran. The fuzzer gets a few seconds here. Five minutes
for each poller, which is what a release gets, are

    STELLANE_TEST_FUZZ_S=300 scripts/test loop/tests/test_core_c.py -k fuzz

and a run that failed is repeated with the seed it printed: `STELLANE_TEST_FUZZ_SEED=...`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "c"
CORE = Path(__file__).parent.parent / "src" / "stellane_loop" / "core"
COMPILER = os.environ.get("CC", "gcc")
FUZZ_S = float(os.environ.get("STELLANE_TEST_FUZZ_S", "4"))
PROGRAM_S_MAX = 120.0
VARIANTS = {
    "plain": ["-O2"],
    "sanitized": ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
}
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Werror"]

# What the library does to a program that runs as root or in a container is not under test; leaks are.
ENVIRONMENT = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0", "UBSAN_OPTIONS": "print_stacktrace=1"}

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"not run: no C compiler ({COMPILER})")


def compiled(arguments: list[str], folder: Path) -> None:
    """Run the compiler in `folder`; its complaints are the test's failure."""
    result = subprocess.run([COMPILER, *WARNINGS, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(arguments)}\n{result.stderr}"


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """`build(program, variant)`: the path of the built program. The core is compiled once for each variant."""
    folders: dict[str, Path] = {}

    def build_one(program: str, variant: str) -> Path:
        folder = folders.get(variant)
        if folder is None:
            folder = folders[variant] = tmp_path_factory.mktemp(f"core-{variant}")
            empty = folder / "empty.c"
            empty.write_text("int main(void) { return 0; }\n")
            trial = subprocess.run(
                [COMPILER, *VARIANTS[variant], str(empty), "-o", "empty"], cwd=folder, capture_output=True, check=False
            )
            if trial.returncode != 0:
                pytest.skip(f"not run: {COMPILER} has no sanitizers here (Debian: apt-get install gcc)")
            sources = [str(path) for path in (*sorted(CORE.glob("*.c")), HERE / "harness.c", HERE / "echo.c")]
            compiled([*VARIANTS[variant], "-DST_TESTING", f"-I{CORE}", "-c", *sources], folder)
        target = folder / program
        if not target.exists():
            objects = sorted(path.name for path in folder.glob("*.o"))
            source = str(HERE / f"{program}.c")
            options = [*VARIANTS[variant], "-DST_TESTING", f"-I{CORE}", f"-I{HERE}"]
            compiled([*options, source, *objects, "-lpthread", "-o", program], folder)
        return target

    return build_one


@pytest.fixture(scope="session")
def uring(build: Callable[[str, str], Path]) -> str | None:
    """None where io_uring is to be had, else why not, in the probe's words."""
    result = subprocess.run(
        [build("test_probe", "plain"), "io_uring", "usable"], capture_output=True, text=True, check=False
    )
    return None if result.returncode == 0 else result.stdout.strip().splitlines()[0]


def run(program: Path, *arguments: str, timeout_s: float = PROGRAM_S_MAX) -> str:
    """Run a test program to its end and return what it printed; its failures are the test's."""
    result = subprocess.run(
        [program, *arguments],
        cwd=program.parent,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )
    assert result.returncode == 0, f"{program.name} {' '.join(arguments)}\n{result.stdout}"
    return result.stdout


def needed(poller: str, uring: str | None) -> None:
    """Skip, saying why, what needs io_uring where there is none."""
    if poller == "io_uring" and uring is not None:
        pytest.skip(f"not run: {uring}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("poller", ["epoll", "io_uring"])
@pytest.mark.parametrize(
    "program",
    [
        "test_streams",
        "test_sends",
        "test_urgent",
        "test_quiet",
        "test_short_sends",
        "test_listeners",
        "test_watches",
        "test_numbers",
        "test_spin",
        "test_life",
        "test_forks",
    ],
)
def test_pollers(program: str, poller: str, variant: str, build: Callable[[str, str], Path], uring: str | None) -> None:
    """Both pollers do the same, seen through the seam."""
    needed(poller, uring)
    run(build(program, variant), poller)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "program",
    [
        "test_ring",
        "test_uring",
        "test_attached",
        "test_backlog",
        "test_moves",
        "test_rare",
        "test_files",
        "test_files_end",
    ],
)
def test_io_uring(program: str, variant: str, build: Callable[[str, str], Path], uring: str | None) -> None:
    """Rings too small, older kernels, starvation, restrictions; files whatever goes wrong."""
    needed("io_uring", uring)
    run(build(program, variant), "io_uring")


@pytest.mark.parametrize("variant", VARIANTS)
def test_epoll(variant: str, build: Callable[[str, str], Path]) -> None:
    """Its tables, its waits, and what is given back where it can not be made."""
    run(build("test_epoll", variant), "epoll")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("program", ["test_adapt", "test_machine", "test_queue"])
def test_without_a_poller(program: str, variant: str, build: Callable[[str, str], Path]) -> None:
    """When a loop looks before it sleeps and waits for several events; its queues."""
    run(build(program, variant), "epoll")


def test_probe(build: Callable[[str, str], Path], uring: str | None) -> None:
    """Each thing that can block io_uring is told from the others."""
    needed("io_uring", uring)
    print(run(build("test_probe", "sanitized"), "io_uring"))


@pytest.mark.parametrize("poller", ["epoll", "io_uring"])
def test_fuzz(poller: str, build: Callable[[str, str], Path], uring: str | None) -> None:
    """Random connects, writes, stops, closes, aborts and thread moves: every byte arrives, nothing is left."""
    needed(poller, uring)
    seed = os.environ.get("STELLANE_TEST_FUZZ_SEED")
    arguments = [poller, str(FUZZ_S), *([seed] if seed else [])]
    print(run(build("fuzz", "sanitized"), *arguments, timeout_s=FUZZ_S + PROGRAM_S_MAX))
