"""traps.toml is whole, and the tests it names exist."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRAPS = tomllib.loads(Path(__file__).with_name("traps.toml").read_text())


@cache
def named_in(path: Path) -> set[str]:
    """The test functions of a file of Python or of C."""
    text = path.read_text()
    if path.suffix == ".c":
        return {f"test_{name}" for name in re.findall(r"\bTEST\((\w+)\)[ ,]", text)}
    return {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}


def test_every_trap_is_there_once():
    assert [int(number) for number in TRAPS] == list(range(1, 49))


@pytest.mark.parametrize("number", TRAPS)
def test_a_trap_has_its_tests_or_says_why_not(number):
    entry = TRAPS[number]
    assert entry["trap"]
    assert ("tests" in entry) != ("open" in entry), "one of the two"
    for test in entry.get("tests", []):
        path, _, name = test.partition("::")
        assert name in named_in(ROOT / path), f"{test} is not there"
