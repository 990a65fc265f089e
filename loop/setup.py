"""Builds the extension: the C core and the Cython unit on top of it, in one shared object."""

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent
PACKAGE = Path("src/stellane_loop")
FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-fwrapv", "-Wall", "-Wextra", "-Wno-unused-parameter"]
ALTERNATIVE = 'Without it Stellane runs on asyncio\'s own loop: backend = "asyncio" in stellane.config.toml.'

if not sys.platform.startswith("linux"):
    raise SystemExit(
        f"stellane-loop is for Linux: it waits by epoll or io_uring, which {sys.platform} lacks. {ALTERNATIVE}"
    )


class BuildExtension(build_ext):
    """Says what to install when the compiler is missing, where distutils would only name the command."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:
            raise SystemExit(
                f"stellane-loop could not be compiled: {error}\n"
                "It needs a C compiler and this Python's headers (Debian: apt-get install gcc libc6-dev python3-dev).\n"
                f"{ALTERNATIVE}"
            ) from error


core = sorted(path.relative_to(HERE).as_posix() for path in (HERE / PACKAGE / "core").glob("*.c"))
headers = [path.relative_to(HERE).as_posix() for path in (HERE / PACKAGE).rglob("*") if path.suffix in {".h", ".pxi"}]
has_uring = any(Path(path).name == "st_uring.c" for path in core)

setup(
    cmdclass={"build_ext": BuildExtension},
    ext_modules=[
        Extension(
            "stellane_loop._native",
            [(PACKAGE / "_native.pyx").as_posix(), *core],
            include_dirs=[PACKAGE.as_posix()],
            define_macros=[("STELLANE_HAVE_URING", "1")] if has_uring else [],
            depends=headers,
            extra_compile_args=FLAGS,
        )
    ],
)
