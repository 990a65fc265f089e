"""The command line's base: `stellane config`, `stellane plugins`, and how errors reach a person."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from stellane.cli import COMMANDS, main
from stellane.config.loader import KEYS
from stellane.errors import ConfigError, JournalLocked, PluginNotFound, StellaneError, TargetError

EXTENSION = """\
import click
from stellane.hookspecs import hookimpl
stellane_api_level = 1
@hookimpl
def stellane_add_cli_commands(group):
    @group.command(%r)
    def greet():
        "Say hello."
        click.echo("hello")
"""


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration but the test's own."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    # wide enough that rich folds no line of a table
    monkeypatch.setenv("COLUMNS", "300")


def stellane(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def install(directory: Path, distribution: str, group: str, name: str, source: str) -> None:
    module = distribution.replace("-", "_")
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
    (directory / f"{module}.py").write_text(source)


def run_installed(directory: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """`stellane` in a process of its own, with the distributions in `directory` installed."""
    return subprocess.run(
        [sys.executable, "-c", "from stellane.cli import main; main()", *arguments],
        env={"PYTHONPATH": str(directory), "PATH": "", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestShow:
    def test_each_key_with_its_value_and_origin(self, monkeypatch: pytest.MonkeyPatch) -> None:
        Path("stellane.config.toml").write_text("[server]\nport = 1\n[backend.libuv]\ndebug = '[red]'\n")
        monkeypatch.setenv("STELLANE_SERVER_HOST", "::1")
        lines = [line.split() for line in stellane("config", "show").output.splitlines()]
        assert lines[0] == ["key", "value", "from"]
        assert ["server.port", "1", "stellane.config.toml:2"] in lines
        assert ["server.host", '"::1"', "environment", "STELLANE_SERVER_HOST"] in lines
        assert ["server.uds", '""', "default"] in lines
        assert ["backend.libuv.debug", '"[red]"', "stellane.config.toml:4"] in lines
        assert {line[0] for line in lines[1:]} == {*KEYS, "backend.libuv.debug"}

    def test_json(self) -> None:
        Path("other.toml").write_text("[recovery]\nmethods = ['POST']\n")
        shown = json.loads(stellane("config", "show", "--config", "other.toml", "--json").output)
        assert shown["file"] == "other.toml"
        assert shown["settings"]["recovery.methods"] == {"value": ["POST"], "source": "file", "detail": "other.toml:2"}
        assert shown["settings"]["server.port"] == {"value": 8000, "source": "default", "detail": ""}

    def test_no_file(self) -> None:
        assert json.loads(stellane("config", "show", "--json").output)["file"] is None


class TestCheck:
    def test_error_is_one_message_on_standard_error_and_exit_code_2(self) -> None:
        Path("stellane.config.toml").write_text("[server]\nport = -1\n")
        done = stellane("config", "check")
        assert done.exit_code == 2
        assert done.stdout == ""
        assert done.stderr == "Error: stellane.config.toml:2: server.port = -1: must be an integer from 0 to 65535.\n"

    def test_plugins_that_are_selected_are_tried(self) -> None:
        Path("stellane.config.toml").write_text("[runtime]\nbackend = 'custom'\n")
        done = stellane("config", "check")
        assert done.exit_code == 2
        where = 'Error: runtime.backend = "custom" (stellane.config.toml:2): '
        assert done.stderr.startswith(where + "backend 'custom' is not built yet. Installed: ")

    def test_good_configuration_tells_its_choices(self, tmp_path: Path) -> None:
        usable = "stellane_api_level = 1\n"
        install(tmp_path / "site", "acme-loop", "stellane.backends", "acme", usable)
        install(tmp_path / "site", "acme-wire", "stellane.protocols", "wire", usable)
        Path("stellane.config.toml").write_text("[runtime]\nbackend = 'acme'\nprotocol = 'wire'\n")
        done = run_installed(tmp_path / "site", "config", "check")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines() == [
            "stellane.config.toml is valid and can be used here.",
            '  backend acme (acme-loop 1.0): runtime.backend = "acme" (stellane.config.toml:2)',
            f'  scheduler fifo (stellane-kernel {version()}): runtime.scheduler = "fifo" (default)',
            '  protocol wire (acme-wire 1.0): runtime.protocol = "wire" (stellane.config.toml:3)',
        ]


def version() -> str:
    return stellane("--version").output.split()[-1]


class TestPlugins:
    def test_table_from_metadata_alone(self, tmp_path: Path) -> None:
        install(tmp_path / "site", "broken-loop", "stellane.backends", "broken", "raise RuntimeError('no')\n")
        done = run_installed(tmp_path / "site", "plugins")
        assert done.returncode == 0
        rows = [line.split() for line in done.stdout.splitlines()]
        assert rows[0] == ["kind", "name", "distribution", "version", "usable", "why"]
        assert ["backend", "broken", "broken-loop", "1.0", "not", "tried"] in rows
        assert ["scheduler", "fifo", "stellane-kernel", version(), "not", "tried"] in rows

    def test_probe_shows_broken_ones_and_goes_on(self, tmp_path: Path) -> None:
        install(tmp_path / "site", "broken-loop", "stellane.backends", "broken", "raise RuntimeError('no')\n")
        install(tmp_path / "site", "acme-loop", "stellane.backends", "acme", "stellane_api_level = 1\n")
        done = run_installed(tmp_path / "site", "plugins", "--probe", "--json")
        assert done.returncode == 0
        reports = {(report["kind"], report["name"]): report for report in json.loads(done.stdout)}
        assert reports["backend", "broken"] == {
            "kind": "backend",
            "name": "broken",
            "distribution": "broken-loop",
            "version": "1.0",
            "entry_point": "broken_loop",
            "usable": False,
            "error": "PluginLoadError",
            "reason": "backend 'broken' (broken-loop 1.0, broken_loop) failed to import: RuntimeError: no. "
            "Reinstall or upgrade broken-loop.",
            "facts": {},
        }
        assert reports["backend", "acme"]["usable"] is True
        assert reports["recovery", "replay"]["usable"] is True

    def test_conflict_shows_both_without_a_probe(self, tmp_path: Path) -> None:
        for distribution in ("acme-loop", "other-loop"):
            install(tmp_path / "site", distribution, "stellane.backends", "acme", "stellane_api_level = 1\n")
        done = run_installed(tmp_path / "site", "plugins", "--json")
        both = [report for report in json.loads(done.stdout) if report["name"] == "acme"]
        assert [report["distribution"] for report in both] == ["acme-loop", "other-loop"]
        assert {report["error"] for report in both} == {"PluginConflict"}


class TestExtensionCommands:
    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        install(tmp_path / "site", "acme-hello", "stellane.extensions", "hello", EXTENSION % "greet")
        return tmp_path / "site"

    def test_named_extension_adds_its_command(self, site: Path) -> None:
        assert run_installed(site, "greet", STELLANE_CLI_EXTENSIONS="hello").stdout == "hello\n"
        shown = run_installed(site, "--help", STELLANE_CLI_EXTENSIONS="hello").stdout
        assert "greet    Say hello." in shown

    def test_unnamed_extension_is_not_loaded(self, site: Path) -> None:
        done = run_installed(site, "greet")
        assert done.returncode == 2
        assert "No such command 'greet'" in done.stderr

    def test_missing_extension_is_one_clear_message(self, site: Path) -> None:
        done = run_installed(site, "greet", STELLANE_CLI_EXTENSIONS="helo")
        assert done.returncode == 2
        assert done.stderr == (
            "Error: no extension named 'helo' is installed. Did you mean 'hello'? Installed: hello (acme-hello).\n"
        )

    def test_built_in_command_cannot_be_taken(self, site: Path) -> None:
        install(site, "acme-taker", "stellane.extensions", "taker", EXTENSION % "run")
        done = run_installed(site, "greet", STELLANE_CLI_EXTENSIONS="taker")
        assert done.returncode == 2
        assert done.stderr == (
            "Error: extension 'taker' (acme-taker 1.0, acme_taker) adds the command 'run', which is already there. "
            "Take it out of STELLANE_CLI_EXTENSIONS.\n"
        )


def test_help_imports_no_command() -> None:
    code = (
        "import sys\nfrom stellane.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted(m for m in sys.modules if m.startswith('stellane.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_built_in_command_has_help(name: str) -> None:
    done = stellane(name, "--help")
    assert (done.exit_code, done.exception) == (0, None)
    assert done.output.startswith(f"Usage: main {name} ")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("told"), 2),
        (TargetError("told"), 2),
        (PluginNotFound("told", kind="backend", name="x"), 2),
        (JournalLocked("told"), 1),
        (StellaneError("told"), 1),
    ],
)
def test_error_of_ours_ends_with_its_text_and_code(
    monkeypatch: pytest.MonkeyPatch, error: StellaneError, code: int
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(click.Group, "invoke", fail)
    done = stellane("config")
    assert (done.exit_code, done.stdout, done.stderr) == (code, "", "Error: told\n")


def test_error_that_is_not_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(click.Group, "invoke", fail)
    assert isinstance(stellane("config").exception, ZeroDivisionError)
