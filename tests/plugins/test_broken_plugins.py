"""Distributions broken on purpose, really installed by pip beside the kernel: each has its own error.

None of them stops a program that selects another plugin.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DISTS = sorted(path.parent for path in Path(__file__).parent.glob("dists/*/pyproject.toml"))
INSTALL_TIMEOUT_S = 300

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Environment:
    """A virtual environment with the kernel and every fixture distribution as ordinary wheels."""

    scripts: Path
    work: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment, with no setting from outside."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("STELLANE_", "PYTHON"))}
        return subprocess.run(
            [str(self.scripts / command[0]), *command[1:]],
            cwd=self.work,
            env=clean,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def python(self, code: str) -> str:
        """What `code` prints; it must succeed."""
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def pip_install(python: Path, *arguments: str) -> None:
    # The pip of the running environment installs into the other one: `ensurepip` would take longer than all the rest.
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False)
    if done.returncode != 0:
        pytest.fail(
            f"pip could not install {' '.join(arguments)}; this test needs pip and a package index it can reach:\n"
            f"{done.stderr[-2000:]}",
            pytrace=False,
        )


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    home = tmp_path_factory.mktemp("broken-plugins")
    venv.create(home / "venv", with_pip=False)
    scripts = home / "venv" / "bin"
    # Without isolation pip builds eight wheels with one hatchling, not with eight downloads of it.
    pip_install(scripts / "python", "hatchling>=1.27")
    pip_install(scripts / "python", "--no-build-isolation", str(ROOT / "kernel"), *map(str, DISTS))
    work = home / "work"
    work.mkdir()
    return Environment(scripts, work)


@pytest.fixture(scope="session")
def reports(environment: Environment) -> dict[str, list[dict[str, Any]]]:
    """What `stellane plugins --probe --json` says, by plugin name."""
    done = environment.run("stellane", "plugins", "--probe", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, list[dict[str, Any]]] = {}
    for report in json.loads(done.stdout):
        found.setdefault(report["name"], []).append(report)
    return found


TEXTS = {
    "raises": (
        "PluginLoadError",
        "backend 'raises' (fixture-raises 1.0, fixture_raises) failed to import: ModuleNotFoundError: "
        "No module named 'library_that_nobody_installed'. Reinstall or upgrade fixture-raises.",
    ),
    "twice": (
        "PluginConflict",
        "backend 'twice' is provided by more than one distribution: "
        "fixture-duplicate-one 1.0, fixture-duplicate-two 2.0. Uninstall all but one.",
    ),
    "old": (
        "PluginIncompatible",
        "backend 'old' (fixture-old-level 0.3, fixture_old_level) was written for plugin API level 0, "
        "this kernel accepts 1..1. Upgrade fixture-old-level.",
    ),
    "misspelt": (
        "PluginIncompatible",
        "backend 'misspelt' (fixture-misspelt 1.0, fixture_misspelt) does not match the hookspecs: "
        "unknown hook 'stellane_create_bakend' in plugin",
    ),
    "unusable": (
        "PluginUnusable",
        "backend 'unusable' (fixture-unusable 1.0, fixture_unusable) cannot run on this machine: "
        "/dev/stellane-fixture: No such file or directory (try: modprobe stellane_fixture)",
    ),
}


@pytest.mark.parametrize("name", TEXTS)
class TestEachBrokenPlugin:
    def test_probe_shows_its_error(self, reports: dict[str, list[dict[str, Any]]], name: str) -> None:
        error, text = TEXTS[name]
        for report in reports[name]:
            assert (report["usable"], report["error"]) == (False, error)
            assert report["reason"].startswith(text)

    def test_selecting_it_is_fatal_with_that_error(self, environment: Environment, name: str) -> None:
        error, text = TEXTS[name]
        (environment.work / "selected.toml").write_text(f'[runtime]\nbackend = "{name}"\n')
        done = environment.run("stellane", "config", "check", "--config", "selected.toml")
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: {text}")
        assert "Traceback" not in done.stderr

        code = (
            "from stellane.config import Config, RuntimeConfig\n"
            "from stellane.errors import PluginError\n"
            "from stellane.factory import RuntimeFactory\n"
            f"factory = RuntimeFactory(Config(runtime=RuntimeConfig(backend={name!r})))\n"
            "try: factory.create_backend()\n"
            "except PluginError as error: print(type(error).__name__, error.kind, error.name)\n"
            "print(factory.choices, factory.pm.get_plugins())"
        )
        assert environment.python(code).splitlines() == [f"{error} backend {name}", "[] set()"]


def test_every_fixture_is_listed_without_being_imported(environment: Environment) -> None:
    done = environment.run("stellane", "plugins", "--json")
    assert done.returncode == 0
    listed = {(report["name"], report["distribution"], report["version"]) for report in json.loads(done.stdout)}
    assert listed >= {
        ("raises", "fixture-raises", "1.0"),
        ("twice", "fixture-duplicate-one", "1.0"),
        ("twice", "fixture-duplicate-two", "2.0"),
        ("old", "fixture-old-level", "0.3"),
        ("misspelt", "fixture-misspelt", "1.0"),
        ("unusable", "fixture-unusable", "1.0"),
        ("short", "fixture-options", "1.0"),
    }


def test_neither_of_two_claimants_is_imported(environment: Environment) -> None:
    code = (
        "import builtins\n"
        "from stellane.config import Config\n"
        "from stellane.errors import PluginConflict\n"
        "from stellane.plugins import PluginLoader\n"
        "try: PluginLoader(Config()).load('backend', 'twice')\n"
        "except PluginConflict: print(hasattr(builtins, 'fixture_duplicate_was_imported'))"
    )
    assert environment.python(code) == "False"


@pytest.mark.parametrize("backend", ["asyncio", "auto"])
def test_broken_plugins_that_are_not_selected_stop_nothing(environment: Environment, backend: str) -> None:
    """With all of them installed, a factory makes a backend that runs, and imports none of them."""
    code = (
        "import asyncio, sys\n"
        "from stellane.config import Config, RuntimeConfig\n"
        "from stellane.factory import RuntimeFactory\n"
        f"factory = RuntimeFactory(Config(runtime=RuntimeConfig(backend={backend!r})))\n"
        "backend = factory.create_backend()\n"
        "async def main():\n"
        "    await asyncio.sleep(0)\n"
        "    print(backend.is_running(), factory.choices[0].name)\n"
        "    backend.stop()\n"
        "backend.schedule(main())\n"
        "backend.run()\n"
        "print([name for name in sys.modules if name.startswith('fixture_')])"
    )
    assert environment.python(code).splitlines() == ["True asyncio", "[]"]


def test_sound_plugin_beside_them_is_usable(reports: dict[str, list[dict[str, Any]]]) -> None:
    assert [(report["usable"], report["error"]) for report in reports["short"]] == [(True, "")]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("waiting_max = 3\n", "3"),
        ("", "10"),
        ("waiting_max = 0\n", "o.toml:4: scheduler.short.waiting_max = 0: must be an integer from 1 to 100."),
        ("waiting_max = 'x'\n", 'o.toml:4: scheduler.short.waiting_max = "x": must be an integer from 1 to 100.'),
        (
            "wating_max = 3\n",
            "o.toml:4: scheduler.short.wating_max = 3: unknown key. Did you mean 'waiting_max'? "
            "Known keys of [scheduler.short]: waiting_max.",
        ),
    ],
)
def test_options_are_validated_by_the_plugins_own_structure(environment: Environment, table: str, said: str) -> None:
    (environment.work / "o.toml").write_text(f"[runtime]\nscheduler = 'short'\n[scheduler.short]\n{table}")
    code = (
        "from pathlib import Path\n"
        "from stellane.config import load\n"
        "from stellane.errors import ConfigError\n"
        "from stellane.factory import RuntimeFactory\n"
        "loaded = load(Path('o.toml'))\n"
        "try: print(RuntimeFactory(loaded.config, loaded.origins).create_scheduler().statistics().capacity)\n"
        "except ConfigError as error: print(error)"
    )
    assert environment.python(code) == said
