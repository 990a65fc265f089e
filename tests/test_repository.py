"""The house rules of a repository of many distributions: each of them whole, and all of them of one mind."""

from __future__ import annotations

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import stellane
from stellane import errors, hookspecs
from stellane.plugins import FIRST_PARTY, GROUPS

ROOT = Path(__file__).parents[1]
KERNEL = ROOT / "kernel"
LOOP = ROOT / "loop"
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/pyproject.toml"))
DISTRIBUTIONS = [ROOT, KERNEL, LOOP, *PLUGINS, *EXAMPLES]
README_CHARACTERS_MIN = 300
WORDS = {"iouring": "io_uring"}
"""The config's word of a plugin, where its folder is called otherwise."""

each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)
each_distribution = pytest.mark.parametrize("folder", DISTRIBUTIONS, ids=lambda folder: folder.name)


def project(folder: Path) -> dict[str, Any]:
    """[project] of a distribution."""
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    return found


def imported(path: Path) -> set[str]:
    """The modules a file imports, by full name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def imports_of_plugins(folder: Path) -> set[str]:
    """The plugin packages that the files under a folder import."""
    names = {name.partition(".")[0] for path in folder.rglob("*.py") for name in imported(path)}
    return {name for name in names if name.startswith("stellane_")}


def test_every_folder_of_plugins_is_a_distribution() -> None:
    """A folder without a pyproject.toml would be left out of every other rule."""
    folders = {path for path in (ROOT / "plugins").iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert folders == set(PLUGINS)


@each_plugin
def test_a_plugin_is_whole(folder: Path) -> None:
    """<kind>-<name>: distribution, package, entry point, types, README and tests follow from the folder's name."""
    kind, _, name = folder.name.partition("-")
    package = f"stellane_{kind}_{name}"
    settings = project(folder)
    assert settings["name"] == f"stellane-{folder.name}"
    word = WORDS.get(name, name)
    assert settings["entry-points"] == {GROUPS[kind]: {word: package}}  # type: ignore[index]
    assert (folder / "src" / package / "__init__.py").is_file()
    assert (folder / "src" / package / "py.typed").is_file()
    assert [path.name for path in (folder / "src").iterdir() if path.suffix != ".egg-info"] == [package]
    assert len((folder / "README.md").read_text()) > README_CHARACTERS_MIN, "the README says nothing"
    assert list((folder / "tests").glob("test_*.py"))
    assert FIRST_PARTY[kind, word] == settings["name"]


@each_plugin
def test_backends_and_journals_run_the_shipped_suite(folder: Path) -> None:
    """First-party plugins keep the contract by the same file a stranger writes."""
    suites = {"backend": "stellane.testing.backend", "journal": "stellane.testing.journal"}
    kind = folder.name.partition("-")[0]
    if kind not in suites:
        pytest.skip(f"not run: there is no conformance suite for the kind {kind} yet")
    assert suites[kind] in imported(folder / "tests" / "test_conformance.py")


@each_plugin
def test_a_plugin_has_its_place_in_the_matrix(folder: Path) -> None:
    """tox installs it as a wheel and runs its tests; a backend or journal is a factor by its config word."""
    text = (ROOT / "tox.ini").read_text()
    matrix = configparser.ConfigParser(interpolation=None)
    matrix.read_string(text)
    assert f"plugins/{folder.name}" in matrix["testenv"]["commands_pre"]
    assert f"plugins/{folder.name}/tests" in matrix["testenv"]["commands"]
    kind, _, name = folder.name.partition("-")
    name = WORDS.get(name, name)
    if kind in ("backend", "journal"):
        star = matrix["tox"]["env_list"]
        assert re.search(rf"\b{name}\b", star), f"no environment of the star has the factor {name}"
        assert re.search(rf"\b{name}\b", matrix["tox"]["labels"])


def environments(*which: str) -> set[str]:
    """The environments that tox would run."""
    command = [sys.executable, "-m", "tox", "list", "--no-desc", *which]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_ci_runs_every_factor_of_the_star() -> None:
    """On the oldest Python scripts/test runs everything; on each other one every backend and the kernel alone."""
    star, in_ci = environments("-d"), environments("-m", "ci")
    assert in_ci <= star
    pythons = {name.split("-")[0] for name in star} - {"py311"}
    assert pythons == {"py312", "py313"}
    of_star = {name.partition("-")[2] for name in star}
    missing = {f"{python}-{rest}" for python in pythons for rest in of_star} - in_ci
    # libuv takes the file journal on one Python and RocksDB on the other.
    assert missing == {"py313-libuv-file", "py312-libuv-rocksdb"}


@each_distribution
def test_versions_are_the_same_everywhere(folder: Path) -> None:
    """All distributions are released together."""
    assert project(folder)["version"] == stellane.__version__
    assert project(folder)["requires-python"] == project(ROOT)["requires-python"]
    assert project(folder)["license"] == "Apache-2.0"


@each_plugin
def test_a_plugin_asks_for_this_kernel(folder: Path) -> None:
    """The range is the present minor version."""
    major, minor, _ = stellane.__version__.split(".")
    assert f"stellane-kernel>={major}.{minor},<{major}.{int(minor) + 1}" in project(folder)["dependencies"]


def test_the_metapackage_pins_everything() -> None:
    """It names the kernel and every plugin, as a dependency or in an extra, at exactly this version."""
    settings = project(ROOT)
    named = [*settings["dependencies"], *(pin for extra in settings["optional-dependencies"].values() for pin in extra)]
    pins = [pin.partition(";")[0] for pin in named]
    names = ["stellane-kernel", "stellane-loop", *(f"stellane-{folder.name}" for folder in PLUGINS)]
    assert sorted(pins) == sorted(f"{name}=={stellane.__version__}" for name in names)


def test_the_kernel_imports_no_plugin() -> None:
    """Nor do its tests: they have to pass with no plugin installed."""
    assert imports_of_plugins(KERNEL) == set()


@each_plugin
def test_a_plugin_imports_no_other_plugin(folder: Path) -> None:
    """Each one is useful alone. Its tests may not need another one either. The native loop is no plugin."""
    assert imports_of_plugins(folder) <= {"stellane_" + folder.name.replace("-", "_"), "stellane_loop"}


def test_the_loop_imports_nothing_of_ours() -> None:
    """It is useful alone, under any asyncio program."""
    assert imports_of_plugins(LOOP / "src") <= {"stellane_loop"}
    assert not {name for path in (LOOP / "src").rglob("*.py") for name in imported(path) if is_kernel(name)}


def is_kernel(module: str) -> bool:
    return module == "stellane" or module.startswith("stellane.")


def hook_names() -> list[str]:
    """Every hook of hookspecs.py."""
    return [name for name, value in vars(hookspecs).items() if hasattr(value, "stellane_spec")]


def test_the_hooks_are_found() -> None:
    """The rules below are about something: pluggy marks a specification with an attribute."""
    source = (KERNEL / "src/stellane/hookspecs.py").read_text()
    assert len(hook_names()) == len(re.findall(r"^@hookspec", source, re.MULTILINE)) > 10


@pytest.mark.parametrize("name", hook_names())
def test_a_hook_is_documented(name: str) -> None:
    """What it is for, and when or where it is called: one line is not enough."""
    text = getattr(hookspecs, name).__doc__ or ""
    assert len([line for line in text.splitlines() if line.strip()]) >= 2


@pytest.mark.parametrize("name", hook_names())
def test_a_hook_is_called(name: str) -> None:
    """Some code of the kernel calls it: as pm.hook.<name>, or by its name in a string."""
    sources = [path for path in (KERNEL / "src").rglob("*.py") if path.name != "hookspecs.py"]
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == name:
                return
            if isinstance(node, ast.Constant) and node.value == name:
                return
    pytest.fail(f"nothing in the kernel calls {name}")


def error_tree() -> dict[str, str]:
    """Each class in the docstring of errors.py and the class it stands under ("" for the root)."""
    tree: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^((?:│   |    |├── |└── )*)([A-Z]\w+)(?:  |$)", line)
        if match:
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            tree[match[2]] = path[depth - 1] if depth else ""
    return tree


def test_the_tree_of_errors_is_true() -> None:
    """Every error stands in the docstring of errors.py under its base."""
    classes = {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.StellaneError)
    }
    bases = {name: value.__bases__[0].__name__ for name, value in classes.items()}
    bases["StellaneError"] = ""
    assert error_tree() == bases


@pytest.mark.parametrize("script", ["scripts/install", "scripts/serve", "scripts/test", "scripts/lint", ".ci/run"])
def test_scripts_can_be_run(script: str) -> None:
    """They are executable and know their own interpreter."""
    assert os.access(ROOT / script, os.X_OK)
    assert (ROOT / script).read_text().startswith("#!")


def test_ci_runs_what_the_readme_says() -> None:
    """The README's two commands exist, and CI calls the one for the tests."""
    readme = (ROOT / "README.md").read_text()
    for command in ("scripts/serve", "scripts/test"):
        assert command in readme
    assert "scripts/test" in (ROOT / ".ci/run").read_text()


def test_every_requirement_has_a_reason() -> None:
    """Each group of lines in requirements-dev.txt stands under a comment."""
    reason = ""
    for line in (ROOT / "requirements-dev.txt").read_text().splitlines():
        if line.startswith("#"):
            reason = line
        elif not line:
            reason = ""
        else:
            assert reason, f"no reason is given for {line}"
