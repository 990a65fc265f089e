"""The style of the house, as far as a program can judge it. Each rule is shown to catch what it forbids."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDERS = ("kernel", "loop", "plugins", "examples", "tests", "bench", "scripts", "docs", ".ci")
TEXTS = {".py", ".pxd", ".pxi", ".pyx", ".md", ".toml", ".ini", ".txt", ".c", ".h", ".yaml", ".yml", ""}
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
SLEEP_S_MAX = 2.5
"""A Date field changes every second, so a test of one that went stale has to block for two."""
VAGUE_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}
# Written in pieces, so that this file keeps its own rule.
MACHINE_PATHS = re.compile(
    "|".join(["/" + "work/", "/" + "root/", "/" + r"home/\w", "/tmp/" + r"\w/", "/opt/" + "pypi"])
)
LEFT_OVER = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK"]))
EXPLAINED = re.compile(r"[Mm]ore than 500 lines")


def texts() -> list[Path]:
    """Every text file of the repository that people write."""
    found = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXTS - {""}]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix in TEXTS]
    hidden = {"__pycache__", "build", "results", ".venv", ".tox", ".stellane", ".hypothesis"}
    return sorted(path for path in found if not hidden & set(path.relative_to(ROOT).parts))


PYTHON = [path for path in texts() if path.suffix == ".py"]
MADE_BY_CYTHON = "_native.c"
CODE = [
    path
    for path in texts()
    if path.suffix in {".py", ".pxd", ".pxi", ".pyx", ".c", ".h"} and path.name != MADE_BY_CYTHON
]


def offences(paths: Iterable[Path], check: Callable[[str], Any]) -> dict[str, Any]:
    """What `check` finds in the files, by file; nothing where it finds nothing."""
    found = {str(path.relative_to(ROOT)): check(path.read_text()) for path in paths}
    return {name: what for name, what in found.items() if what}


def too_long(source: str) -> str:
    """Why a file is too long, or nothing."""
    lines = source.count("\n")
    top = "\n".join(source.splitlines()[:20])
    if lines <= FILE_LINES_MAX or EXPLAINED.search(top):
        return ""
    return f"{lines} lines; split it, or say at its top why it has more than {FILE_LINES_MAX}"


def long_functions(source: str) -> list[str]:
    """The functions with too many lines."""
    return [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES_MAX
    ]


def long_sleeps(source: str) -> list[str]:
    """Blocking sleeps of more than SLEEP_S_MAX. (An asynchronous one may be there to be cancelled.)"""
    return [
        f"line {node.lineno} sleeps {node.args[0].value} s"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("sleep", "time.sleep")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, int | float)
        and node.args[0].value > SLEEP_S_MAX
    ]


def personal(source: str) -> list[str]:
    """Paths of one machine, and notes of unfinished work."""
    return [match[0] for pattern in (MACHINE_PATHS, LEFT_OVER) for match in pattern.finditer(source)]


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Each module that is imported, and whether only for type checking."""
    tree = ast.parse(source)
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in for_types
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, node in for_types


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def outside_abc(source: str) -> list[str]:
    """What a contract imports of ours besides contracts; the configuration's types are allowed as types."""
    return [
        module
        for module, for_types in imports(source)
        if is_in(module, "stellane")
        and not is_in(module, "stellane.abc")
        and not (for_types and is_in(module, "stellane.config"))
    ]


def outside_supervisor(source: str) -> list[str]:
    """What a supervisor must not import: it runs no user code and no event loop."""
    forbidden = ("asyncio", "stellane.app", "stellane.runtime", "stellane.builtin")
    return [module for module, _ in imports(source) if any(is_in(module, package) for package in forbidden)]


def test_files_are_short() -> None:
    """500 lines at most, unless the top of the file gives the reason."""
    assert offences(CODE, too_long) == {}


def test_functions_are_short() -> None:
    """70 lines at most, docstring included."""
    assert offences(PYTHON, long_functions) == {}


def test_modules_are_named_after_what_they_hold() -> None:
    """Not after the fact that somebody needed a place."""
    assert [path for path in PYTHON if path.stem in VAGUE_NAMES] == []


def test_nothing_is_of_one_machine_and_nothing_is_left_over() -> None:
    """No path of a machine, no note of unfinished work."""
    assert offences(texts(), personal) == {}


def test_tests_do_not_sleep() -> None:
    """They poll with a deadline."""
    assert offences((path for path in PYTHON if path.name.startswith("test_")), long_sleeps) == {}


def test_contracts_depend_on_nothing() -> None:
    """abc/ imports abc/, and stellane.config for its types."""
    assert offences((ROOT / "kernel/src/stellane/abc").glob("*.py"), outside_abc) == {}


def test_the_supervisor_stays_small() -> None:
    """supervisor/ imports neither applications nor an event loop."""
    assert offences((ROOT / "kernel/src/stellane/supervisor").glob("*.py"), outside_supervisor) == {}


def test_the_rules_catch_what_they_forbid() -> None:
    """Each check above, on a sample that breaks it and on one that does not."""
    assert too_long("x = 1\n" * 501) != ""
    assert too_long('"""More than 500 lines: a table."""\n' + "x = 1\n" * 501) == ""
    assert long_functions("def f():\n" + "    x = 1\n" * 70) == ["f has 71 lines"]
    assert long_functions("def f():\n" + "    x = 1\n" * 69) == []
    assert personal("see /" + "root/x") == ["/" + "root/"]
    assert personal("# TO" + "DO: later") == ["TO" + "DO"]
    assert personal("see /usr/share/doc, to do later") == []
    assert long_sleeps("import time\ntime.sleep(3)") == ["line 2 sleeps 3 s"]
    assert long_sleeps("time.sleep(0.1)") == []
    assert outside_abc("from stellane.errors import StellaneError") == ["stellane.errors"]
    assert outside_abc("from stellane.config import Config") == ["stellane.config"]
    assert outside_abc("if TYPE_CHECKING:\n    from stellane.config import Config") == []
    assert outside_supervisor("import asyncio\nfrom stellane.app.server import Server") == [
        "asyncio",
        "stellane.app.server",
    ]
    assert len(PYTHON) > 100
