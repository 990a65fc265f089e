"""Finding, loading and checking plugins: each step has its own error, and its text is kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from stellane.abc import Probe
from stellane.config import Config, Origin, Source
from stellane.errors import (
    ConfigError,
    PluginConflict,
    PluginIncompatible,
    PluginLoadError,
    PluginNotFound,
    PluginUnusable,
)
from stellane.hookspecs import hookimpl
from stellane.plugins import API_LEVEL, GROUPS, PluginLoader, installed

GOOD = "stellane_api_level = 1\n"


class Site:
    """A directory of distributions, the only one that discovery sees."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, distribution: str, version: str, kind: str, name: str, source: str = GOOD, *, value: str = "") -> str:
        """Put in one distribution with one plugin, as an installer would; returns the module's name."""
        module = distribution.replace("-", "_")
        info = self.path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[{GROUPS[kind]}]\n{name} = {value or module}\n")  # type: ignore[index]
        (self.path / f"{module}.py").write_text(source)
        return module


def holds_metadata(folder: Path) -> bool:
    """Whether it is the source folder of a distribution that setuptools installed as editable."""
    return folder.is_dir() and any(folder.glob("*.egg-info"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """What is really installed is hidden, so that each test says all that there is."""
    visible = [entry for entry in sys.path if "site-packages" not in entry and not holds_metadata(Path(entry))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *visible])
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def loader() -> PluginLoader:
    return PluginLoader(Config())


def test_plugin_is_found_by_kind_and_name_and_registered_under_both(site: Site, loader: PluginLoader) -> None:
    site.add("acme-loop", "2.1", "backend", "acme")
    loaded = loader.load("backend", "acme")
    assert loaded.plugin.__name__ == "acme_loop"
    assert str(loaded.installed) == "backend 'acme' (acme-loop 2.1, acme_loop)"
    assert loader.pm.get_plugin("backend:acme") is loaded.plugin
    assert loader.load("backend", "acme") is loaded


def test_one_name_may_be_of_several_kinds(site: Site, loader: PluginLoader) -> None:
    site.add("acme-loop", "1", "backend", "acme")
    site.add("acme-store", "1", "journal", "acme")
    assert loader.load("backend", "acme").plugin is not loader.load("journal", "acme").plugin


def test_listing_imports_nothing(site: Site) -> None:
    site.add("acme-loop", "1", "backend", "acme", "raise SystemExit('imported')\n")
    assert [claim.source for claim in installed("backend")["acme"]] == ["acme-loop 1"]
    assert "acme_loop" not in sys.modules


def test_only_the_named_plugin_is_imported(site: Site, loader: PluginLoader) -> None:
    site.add("acme-loop", "1", "backend", "acme")
    broken = site.add("broken-loop", "1", "backend", "broken", "raise RuntimeError('imported')\n")
    loader.load("backend", "acme")
    assert broken not in sys.modules


def test_distribution_listed_twice_is_no_conflict(
    site: Site, loader: PluginLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editable installation and a source tree both on sys.path, the name spelt in two ways."""
    site.add("acme-loop", "1", "backend", "acme")
    second = Site(site.path / "second")
    second.path.mkdir()
    second.add("Acme_Loop", "1", "backend", "acme")
    monkeypatch.setattr(sys, "path", [str(second.path), *sys.path])
    assert len(installed("backend")["acme"]) == 1
    loader.load("backend", "acme")


def test_damaged_metadata_of_one_distribution_hides_no_other(site: Site) -> None:
    site.add("acme-loop", "1", "backend", "acme")
    damaged = site.path / "half_removed-1.dist-info"
    damaged.mkdir()
    (damaged / "entry_points.txt").write_text("[stellane.backends]\nhalf = half_removed\n")
    found = installed("backend")
    assert set(found) == {"acme", "half"}
    assert found["half"][0].source == "a distribution with damaged metadata"


class TestNotFound:
    def test_names_the_nearest_and_the_installed(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-loop", "1", "backend", "acme")
        site.add("stellane-backend-epoll", "0.1.0", "backend", "epoll")
        with pytest.raises(PluginNotFound) as caught:
            loader.load("backend", "epol")
        assert str(caught.value) == (
            "no backend named 'epol' is installed. Did you mean 'epoll'? "
            "Installed: acme (acme-loop), epoll (stellane-backend-epoll)."
        )
        assert (caught.value.kind, caught.value.name) == ("backend", "epol")
        assert isinstance(caught.value, LookupError)

    @pytest.mark.parametrize(
        ("kind", "name", "distribution"),
        [
            ("backend", "epoll", "stellane-backend-epoll"),
            ("backend", "io_uring", "stellane-backend-iouring"),
            ("backend", "libuv", "stellane-backend-libuv"),
            ("journal", "file", "stellane-journal-file"),
            ("journal", "rocksdb", "stellane-journal-rocksdb"),
            ("protocol", "http", "stellane-protocol-http"),
        ],
    )
    def test_says_what_to_install(
        self, site: Site, loader: PluginLoader, kind: Any, name: str, distribution: str
    ) -> None:
        with pytest.raises(PluginNotFound) as caught:
            loader.load(kind, name)
        assert str(caught.value) == (
            f"no {kind} named '{name}' is installed. Install it with: pip install {distribution}. Installed: none."
        )

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("backend", "custom"),
            ("backend", "stellane"),
            ("scheduler", "priority"),
            ("scheduler", "affinity"),
            ("scheduler", "stealing"),
            ("journal", "mmap"),
            ("journal", "leveldb"),
            ("journal", "sqlite"),
        ],
    )
    def test_words_of_the_specification_are_not_built_yet(
        self, site: Site, loader: PluginLoader, kind: Any, name: str
    ) -> None:
        with pytest.raises(PluginNotFound) as caught:
            loader.load(kind, name)
        assert str(caught.value) == f"{kind} '{name}' is not built yet. Installed: none."

    def test_a_strangers_plugin_may_take_a_name_that_is_not_built_yet(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-threads", "1", "backend", "custom")
        assert loader.load("backend", "custom").installed.distribution == "acme-threads"


def test_conflict_names_both_distributions_and_imports_neither(site: Site, loader: PluginLoader) -> None:
    first = site.add("acme-epoll", "9.0", "backend", "epoll")
    second = site.add("stellane-backend-epoll", "0.1.0", "backend", "epoll")
    before = set(sys.modules)
    with pytest.raises(PluginConflict) as caught:
        loader.load("backend", "epoll")
    assert str(caught.value) == (
        "backend 'epoll' is provided by more than one distribution: "
        "acme-epoll 9.0, stellane-backend-epoll 0.1.0. Uninstall all but one."
    )
    assert not {first, second} & (set(sys.modules) - before)


class TestLoadError:
    def test_names_the_plugin_and_chains_the_cause(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-loop", "1", "backend", "acme", "import liburing_that_is_not_here\n")
        with pytest.raises(PluginLoadError) as caught:
            loader.load("backend", "acme")
        assert str(caught.value) == (
            "backend 'acme' (acme-loop 1, acme_loop) failed to import: ModuleNotFoundError: "
            "No module named 'liburing_that_is_not_here'. Reinstall or upgrade acme-loop."
        )
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)

    def test_plugin_that_exits_on_import_does_not_end_the_process(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-loop", "1", "backend", "acme", "import sys\nsys.exit('no licence')\n")
        with pytest.raises(PluginLoadError, match="failed to import: SystemExit: no licence"):
            loader.load("backend", "acme")

    def test_missing_attribute(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-loop", "1", "backend", "acme", GOOD, value="acme_loop:plugin")
        with pytest.raises(PluginLoadError, match=r"acme_loop:plugin\) failed to import: AttributeError"):
            loader.load("backend", "acme")


class TestIncompatible:
    def test_newer_level_says_which_to_upgrade(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-loop", "9.0", "backend", "future", f"stellane_api_level = {API_LEVEL + 1}\n")
        with pytest.raises(PluginIncompatible) as caught:
            loader.load("backend", "future")
        assert str(caught.value) == (
            "backend 'future' (acme-loop 9.0, acme_loop) was written for plugin API level 2, "
            "this kernel accepts 1..1. Upgrade stellane-kernel."
        )

    def test_older_level_says_which_to_upgrade(self, site: Site, loader: PluginLoader) -> None:
        site.add("acme-loop", "0.1", "backend", "past", "stellane_api_level = 0\n")
        with pytest.raises(PluginIncompatible) as caught:
            loader.load("backend", "past")
        assert str(caught.value) == (
            "backend 'past' (acme-loop 0.1, acme_loop) was written for plugin API level 0, "
            "this kernel accepts 1..1. Upgrade acme-loop."
        )

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("", "has no stellane_api_level; a plugin for this kernel says 1."),
            ("stellane_api_level = '1'\n", "has stellane_api_level = '1', which is not an integer."),
            ("stellane_api_level = True\n", "has stellane_api_level = True, which is not an integer."),
            (GOOD + "stellane_options = dict\n", "which is not a msgspec.Struct class."),
        ],
    )
    def test_module_that_is_no_plugin(self, site: Site, loader: PluginLoader, source: str, said: str) -> None:
        site.add("acme-loop", "1", "backend", "acme", source)
        with pytest.raises(PluginIncompatible) as caught:
            loader.load("backend", "acme")
        assert str(caught.value).startswith("backend 'acme' (acme-loop 1, acme_loop) ")
        assert str(caught.value).endswith(said)

    def test_class_is_not_a_plugin(self, site: Site, loader: PluginLoader) -> None:
        site.add(
            "acme-loop", "1", "backend", "acme", "class Plugin:\n    stellane_api_level = 1\n", value="acme_loop:Plugin"
        )
        with pytest.raises(PluginIncompatible, match="names a class; a plugin is a module or an instance"):
            loader.load("backend", "acme")

    def test_object_that_cannot_be_hashed(self) -> None:
        """pluggy keeps plugins in sets; its own error would name nobody."""
        plugin = SimpleNamespace(stellane_api_level=1)
        with pytest.raises(PluginIncompatible, match=r"backend 'p' .* cannot be hashed"):
            PluginLoader(Config(), passed={("backend", "p"): plugin}).load("backend", "p")

    def test_misspelt_hook_is_refused_and_nothing_of_the_plugin_stays(self, site: Site, loader: PluginLoader) -> None:
        """Its other hooks must not run either: stellane_configured is historic and would."""
        source = GOOD + (
            "from stellane.hookspecs import hookimpl\n"
            "heard = []\n"
            "@hookimpl\ndef stellane_configured(config): heard.append(config)\n"
            "@hookimpl\ndef stellane_create_bakend(options): pass\n"
        )
        module = site.add("acme-loop", "1", "backend", "typo", source)
        loader.pm.hook.stellane_configured.call_historic(kwargs={"config": Config()})
        with pytest.raises(PluginIncompatible) as caught:
            loader.load("backend", "typo")
        assert str(caught.value).startswith(
            "backend 'typo' (acme-loop 1, acme_loop) does not match the hookspecs: "
            "unknown hook 'stellane_create_bakend' in plugin"
        )
        assert loader.pm.get_plugins() == set()
        assert sys.modules[module].heard == []

    def test_argument_that_the_hookspec_does_not_have(self, site: Site, loader: PluginLoader) -> None:
        source = GOOD + (
            "from stellane.hookspecs import hookimpl\n@hookimpl\ndef stellane_create_backend(options, colour): pass\n"
        )
        site.add("acme-loop", "1", "backend", "acme", source)
        with pytest.raises(PluginIncompatible, match=r"does not match the hookspecs: .*'?colour'?"):
            loader.load("backend", "acme")
        assert loader.pm.get_plugins() == set()


class BarePlugin:
    """The least that is a plugin."""

    stellane_api_level = 1


class ProbedPlugin:
    """A plugin whose probe answers, or raises, what it is given."""

    stellane_api_level = 1

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    @hookimpl
    def stellane_probe(self) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class TestProbe:
    def load(self, answer: Any) -> Any:
        return PluginLoader(Config(), passed={("backend", "p"): ProbedPlugin(answer)}).load("backend", "p")

    def test_reason_and_remedy_are_told(self) -> None:
        with pytest.raises(PluginUnusable) as caught:
            self.load(
                Probe(usable=False, reason="io_uring_setup: EPERM", remedy="sysctl -w kernel.io_uring_disabled=0")
            )
        assert str(caught.value) == (
            "backend 'p' (passed as an object, ProbedPlugin) cannot run on this machine: "
            "io_uring_setup: EPERM (try: sysctl -w kernel.io_uring_disabled=0)"
        )

    def test_raising_is_unusable_with_the_exception_as_the_reason(self) -> None:
        with pytest.raises(PluginUnusable, match=r"cannot run on this machine: its probe failed: OSError: no ring$"):
            self.load(OSError("no ring"))

    def test_no_reason_is_said(self) -> None:
        with pytest.raises(PluginUnusable, match="its probe gives no reason"):
            self.load(Probe(usable=False))

    def test_answer_of_another_type_is_incompatible(self) -> None:
        with pytest.raises(PluginIncompatible, match="answered stellane_probe with str, not with a "):
            self.load("fine")

    def test_usable_keeps_its_facts(self) -> None:
        assert self.load(Probe(usable=True, facts={"version": "1.51"})).probe.facts == {"version": "1.51"}

    def test_plugin_without_a_probe_is_usable(self) -> None:
        assert PluginLoader(Config(), passed={("backend", "p"): BarePlugin()}).load("backend", "p").probe.usable

    def test_probe_is_asked_of_this_plugin_alone(self) -> None:
        """Another plugin that is registered already, and unusable by now, has no say."""
        first = ProbedPlugin(Probe(usable=True))
        second = ProbedPlugin(Probe(usable=True, facts={"mine": "yes"}))
        loader = PluginLoader(Config(), passed={("backend", "a"): first, ("scheduler", "b"): second})
        loader.load("backend", "a")
        first.answer = Probe(usable=False)
        assert loader.load("scheduler", "b").probe.facts == {"mine": "yes"}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options as a plugin declares them."""

    path: str
    depth: int = 8
    ratio: float = 1.0

    def __post_init__(self) -> None:
        if self.depth % 2:
            raise ValueError("depth must be even")


class OptionsPlugin:
    """A plugin with options, which keeps what its probe was given."""

    stellane_api_level = 1
    stellane_options = Options

    @hookimpl
    def stellane_probe(self, options: Any) -> Probe:
        return Probe(usable=True, facts={"options": repr(options)})


class TestOptions:
    def load(self, table: dict[str, Any] | None) -> Any:
        config = Config(policy={} if table is None else {"p": table})
        origins = {f"policy.p{key}": Origin(Source.FILE, "s.toml:7") for key in ("", *(f".{k}" for k in table or {}))}
        return PluginLoader(config, origins, {("recovery", "p"): OptionsPlugin()}).load("recovery", "p")

    def test_table_becomes_the_plugins_structure_and_reaches_its_probe(self) -> None:
        loaded = self.load({"path": "/x", "depth": 2})
        assert loaded.options == Options(path="/x", depth=2)
        assert loaded.probe.facts["options"] == repr(loaded.options)

    @pytest.mark.parametrize(
        ("table", "said"),
        [
            (
                {"path": "/x", "dept": 2},
                "s.toml:7: policy.p.dept = 2: unknown key. Did you mean 'depth'? "
                "Known keys of [policy.p]: path, depth, ratio.",
            ),
            ({"path": "/x", "depth": "2"}, 's.toml:7: policy.p.depth = "2": must be an integer.'),
            ({"path": "/x", "ratio": float("inf")}, "s.toml:7: policy.p.ratio = inf: must be a number."),
            ({"depth": 2}, "[policy.p]: policy.p.path is missing; it must be a string."),
            (None, "[policy.p]: policy.p.path is missing; it must be a string."),
            ({"path": "/x", "depth": 3}, "s.toml:7: [policy.p]: depth must be even"),
        ],
    )
    def test_bad_options_are_told_like_the_kernels_own_keys(self, table: dict[str, Any] | None, said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            self.load(table)
        assert str(caught.value) == said

    def test_plugin_without_options_takes_no_table(self) -> None:
        config = Config(backend={"p": {"depth": 1}})
        origins = {"backend.p": Origin(Source.FILE, "s.toml:2")}
        loader = PluginLoader(config, origins, {("backend", "p"): BarePlugin()})
        with pytest.raises(ConfigError) as caught:
            loader.load("backend", "p")
        assert str(caught.value) == (
            "s.toml:2: [backend.p]: backend 'p' (passed as an object, BarePlugin) takes no options. Remove the table."
        )


def test_hook_trace_prints_each_call_and_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    plugin = ProbedPlugin(Probe(usable=True))
    PluginLoader(Config(), passed={("backend", "p"): plugin}, trace=True).load("backend", "p")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "hook stellane_probe(options=None) -> backend:p",
        "hook stellane_probe = [Probe(usable=True, reason='', remedy='', facts={})]",
    ]


def test_kernel_imports_no_plugin() -> None:
    """Importing the plugin system and the factory imports no plugin, not even the built-in ones."""
    code = (
        "import sys, stellane.factory, stellane.cli; "
        "print([m for m in sys.modules if m.startswith(('stellane_', 'stellane.builtin'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
