"""Finding, loading and checking plugins. Nothing is imported until it is asked for by name.

A plugin is a module or object that an entry point names; the entry point's group is its kind
and the entry point's name is the word in the configuration. Loading goes: find, one
distribution only, import, API level, hooks, options, probe, register. Each step has its own
error, and a plugin that fails at one is not registered at all.

pluggy's own `load_setuptools_entrypoints` is not used: it imports everything installed, its
errors do not name the culprit, and of two plugins of one name it silently drops one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import importlib_metadata as metadata
import msgspec
import pluggy

from stellane import hookspecs
from stellane.abc import Probe
from stellane.config.loader import Origin, plugin_options
from stellane.config.schema import Config
from stellane.errors import (
    ConfigError,
    PluginConflict,
    PluginIncompatible,
    PluginLoadError,
    PluginNotFound,
    PluginUnusable,
    StellaneError,
)
from stellane.nearest import did_you_mean

Kind = Literal["backend", "scheduler", "journal", "recovery", "protocol", "extension"]

GROUPS: dict[Kind, str] = {
    "backend": "stellane.backends",
    "scheduler": "stellane.schedulers",
    "journal": "stellane.journals",
    "recovery": "stellane.recovery",
    "protocol": "stellane.protocols",
    "extension": "stellane.extensions",
}
"""The entry-point group of each kind."""

OPTION_SECTIONS: dict[Kind, str] = {
    "backend": "backend",
    "scheduler": "scheduler",
    "journal": "journal",
    "recovery": "policy",
    "protocol": "protocol",
    "extension": "extension",
}
"""The section of the configuration with the options of each kind: [<section>.<name>]."""

API_LEVEL = 1
API_LEVEL_MIN = 1

API_LEVELS: dict[Kind, range] = dict.fromkeys(GROUPS, range(API_LEVEL_MIN, API_LEVEL + 1))
"""The levels of each kind's contract that this kernel accepts.

A level rises when a contract changes its meaning or gains something a plugin must do. A new
hook, or a new argument of a hook, does not raise it: pluggy lets a plugin take fewer.
"""

FIRST_PARTY: dict[tuple[str, str], str] = {
    ("backend", "epoll"): "stellane-backend-epoll",
    ("backend", "io_uring"): "stellane-backend-iouring",
    ("backend", "libuv"): "stellane-backend-libuv",
    ("journal", "file"): "stellane-journal-file",
    ("journal", "rocksdb"): "stellane-journal-rocksdb",
    ("protocol", "http"): "stellane-protocol-http",
    ("backend", "asyncio"): "stellane-kernel",
    ("scheduler", "fifo"): "stellane-kernel",
    ("recovery", "replay"): "stellane-kernel",
}
"""The distribution to install for the names the project itself provides."""

NOT_BUILT: dict[Kind, tuple[str, ...]] = {
    "backend": ("custom", "stellane"),
    "scheduler": ("priority", "affinity", "stealing"),
    "journal": ("mmap", "leveldb", "sqlite"),
}
"""Names of the specification whose plugin does not exist yet."""


@dataclass(frozen=True, slots=True)
class Installed:
    """One entry point of one distribution, known from metadata alone."""

    kind: Kind
    name: str
    distribution: str
    version: str
    value: str
    """What it names: "module" or "module:attribute"."""
    entry_point: metadata.EntryPoint | None = None
    """None for an object that was passed in."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r} ({self.source}, {self.value})"

    @property
    def source(self) -> str:
        """Distribution and version."""
        return f"{self.distribution} {self.version}".rstrip()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A plugin that has passed every check and is registered."""

    installed: Installed
    plugin: Any
    options: Any
    probe: Probe

    @property
    def key(self) -> str:
        """The name it is registered under: "backend:epoll"."""
        return f"{self.installed.kind}:{self.installed.name}"


def installed(kind: Kind) -> dict[str, list[Installed]]:
    """Every plugin of a kind, by name, from metadata alone. Two of one name are a conflict."""
    found: dict[str, list[Installed]] = {}
    # importlib_metadata lists a distribution once, even where an editable installation and its
    # source tree both stand on sys.path: two claims are two distributions.
    for entry_point in metadata.entry_points(group=GROUPS[kind]):
        distribution, version = _distribution(entry_point)
        found.setdefault(entry_point.name, []).append(
            Installed(kind, entry_point.name, distribution, version, entry_point.value, entry_point)
        )
    for claims in found.values():
        claims.sort(key=lambda claim: claim.distribution)
    return dict(sorted(found.items()))


def conflict(claims: list[Installed]) -> PluginConflict:
    """The error for a name that several distributions claim."""
    kind, name = claims[0].kind, claims[0].name
    who = ", ".join(claim.source for claim in claims)
    return PluginConflict(
        f"{kind} {name!r} is provided by more than one distribution: {who}. Uninstall all but one.",
        kind=kind,
        name=name,
    )


class PluginLoader:
    """Loads plugins by kind and name into one pluggy manager, `pm`.

    `passed` are plugins given as objects, by (kind, name); they come before installed ones.
    """

    def __init__(
        self,
        config: Config,
        origins: Mapping[str, Origin] | None = None,
        passed: Mapping[tuple[str, str], Any] | None = None,
        *,
        trace: bool = False,
    ) -> None:
        self.pm = _manager(trace=trace)
        self._trace = trace
        self._config = config
        self._origins = origins or {}
        self._passed = dict(passed or {})
        self._installed: dict[Kind, dict[str, list[Installed]]] = {}
        self._loaded: dict[tuple[Kind, str], Loaded] = {}

    def known(self, kind: Kind) -> dict[str, list[Installed]]:
        """Every plugin of a kind that could be loaded, by name; objects passed in among them."""
        if kind not in self._installed:
            found = installed(kind)
            for (passed_kind, name), plugin in self._passed.items():
                if passed_kind == kind:
                    found[name] = [Installed(kind, name, "passed as an object", "", _object_name(plugin))]
            self._installed[kind] = found
        return self._installed[kind]

    def load(self, kind: Kind, name: str) -> Loaded:
        """The checked and registered plugin; a second call gives the same one.

        Raises one of the five PluginErrors, or ConfigError for its options.
        """
        if (kind, name) not in self._loaded:
            self._loaded[kind, name] = self._load(self.find(kind, name))
        return self._loaded[kind, name]

    def find(self, kind: Kind, name: str) -> Installed:
        """The one installed plugin of this name. Raises PluginNotFound, PluginConflict."""
        claims = self.known(kind).get(name)
        if not claims:
            raise PluginNotFound(_not_found(kind, name, self.known(kind)), kind=kind, name=name)
        if len(claims) > 1:
            raise conflict(claims)
        return claims[0]

    def ask(self, loaded: Loaded, hook: str, **arguments: Any) -> Any:
        """Call `hook` on this one plugin; None when it does not implement it."""
        return _ask(self.pm, loaded.plugin, hook, **arguments)

    def _load(self, found: Installed) -> Loaded:
        plugin = self._import(found)
        _check_shape(found, plugin)
        alone = self._check_hooks(found, plugin)
        options = self._options(found, plugin)
        probe = self._probe(found, alone, plugin, options)
        if not probe.usable:
            remedy = f" (try: {probe.remedy})" if probe.remedy else ""
            reason = probe.reason or "its probe gives no reason"
            raise PluginUnusable(
                f"{found} cannot run on this machine: {reason}{remedy}", kind=found.kind, name=found.name
            )
        loaded = Loaded(found, plugin, options, probe)
        self._register(loaded)
        return loaded

    def _import(self, found: Installed) -> Any:
        if found.entry_point is None:
            return self._passed[found.kind, found.name]
        try:
            return found.entry_point.load()
        except (Exception, SystemExit) as error:
            raise PluginLoadError(
                f"{found} failed to import: {_said(error)}. Reinstall or upgrade {found.distribution}.",
                kind=found.kind,
                name=found.name,
            ) from error

    def _check_hooks(self, found: Installed, plugin: Any) -> pluggy.PluginManager:
        # On a manager of its own first: registering runs stellane_configured at once when the
        # configuration is already known, and nothing of a plugin that does not fit may run.
        alone = _manager(trace=self._trace)
        try:
            alone.register(plugin, name=f"{found.kind}:{found.name}")
            alone.check_pending()
        except Exception as error:
            raise _incompatible(found, f"does not match the hookspecs: {_one_line(error)}") from error
        return alone

    def _options(self, found: Installed, plugin: Any) -> Any:
        section = OPTION_SECTIONS[found.kind]
        declared = getattr(plugin, "stellane_options", None)
        if declared is None:
            tables: dict[str, dict[str, Any]] = getattr(self._config, section)
            if tables.get(found.name):
                where = self._origins.get(f"{section}.{found.name}", Origin())
                raise ConfigError(f"{where}: [{section}.{found.name}]: {found} takes no options. Remove the table.")
            return None
        if not (isinstance(declared, type) and issubclass(declared, msgspec.Struct)):
            raise _incompatible(found, f"has stellane_options = {declared!r}, which is not a msgspec.Struct class")
        return plugin_options(declared, section, found.name, self._config, self._origins)

    def _probe(self, found: Installed, alone: pluggy.PluginManager, plugin: Any, options: Any) -> Probe:
        try:
            answer = _ask(alone, plugin, "stellane_probe", options=options)
        except (Exception, SystemExit) as error:
            return Probe(usable=False, reason=f"its probe failed: {_said(error)}")
        if answer is None:
            return Probe(usable=True)
        if not isinstance(answer, Probe):
            raise _incompatible(
                found, f"answered stellane_probe with {type(answer).__name__}, not with a stellane.abc.Probe"
            )
        return answer

    def _register(self, loaded: Loaded) -> None:
        found = loaded.installed
        if any(loaded.plugin is registered for registered in self.pm.get_plugins()):
            # one module may serve several kinds or names; pluggy knows it once
            return
        try:
            self.pm.register(loaded.plugin, name=loaded.key)
        except (Exception, SystemExit) as error:
            self.pm.unregister(name=loaded.key)
            if isinstance(error, StellaneError):
                raise
            raise PluginUnusable(
                f"{found} refused the configuration: {_said(error)}", kind=found.kind, name=found.name
            ) from error


def _manager(*, trace: bool) -> pluggy.PluginManager:
    manager = pluggy.PluginManager("stellane")
    manager.add_hookspecs(hookspecs)
    if trace:
        from stellane.hook_trace import trace_hooks  # noqa: PLC0415 - a tool for people, not needed to serve

        trace_hooks(manager)
    return manager


def _ask(manager: pluggy.PluginManager, plugin: Any, hook: str, **arguments: Any) -> Any:
    others = [other for other in manager.get_plugins() if other is not plugin]
    answers = manager.subset_hook_caller(hook, others)(**arguments)
    return answers[0] if answers else None


def _check_shape(found: Installed, plugin: Any) -> None:
    if isinstance(plugin, type):
        raise _incompatible(found, "names a class; a plugin is a module or an instance")
    if type(plugin).__hash__ is None:
        raise _incompatible(found, "cannot be hashed; a plugin is a module or an instance that compares by identity")
    level = getattr(plugin, "stellane_api_level", None)
    accepted = API_LEVELS[found.kind]
    if level is None:
        raise _incompatible(found, f"has no stellane_api_level; a plugin for this kernel says {accepted[-1]}")
    if not isinstance(level, int) or isinstance(level, bool):
        raise _incompatible(found, f"has stellane_api_level = {level!r}, which is not an integer")
    if level not in accepted:
        newer = "stellane-kernel" if level > accepted[-1] else found.distribution
        raise _incompatible(
            found,
            f"was written for plugin API level {level}, this kernel accepts {accepted[0]}..{accepted[-1]}. "
            f"Upgrade {newer}",
        )


def _incompatible(found: Installed, what: str) -> PluginIncompatible:
    return PluginIncompatible(f"{found} {what}.", kind=found.kind, name=found.name)


def _not_found(kind: Kind, name: str, known: Mapping[str, list[Installed]]) -> str:
    here = ", ".join(f"{word} ({', '.join(claim.distribution for claim in known[word])})" for word in known)
    text = f"no {kind} named {name!r} is installed."
    if name in NOT_BUILT.get(kind, ()):
        text = f"{kind} {name!r} is not built yet."
    elif distribution := FIRST_PARTY.get((kind, name)):
        text += f" Install it with: pip install {distribution}."
    else:
        names = {*known, *(word for first_party_kind, word in FIRST_PARTY if first_party_kind == kind)}
        text += did_you_mean(name, names)
    return f"{text} Installed: {here or 'none'}."


def _distribution(entry_point: metadata.EntryPoint) -> tuple[str, str]:
    distribution = entry_point.dist
    try:
        if distribution is not None and distribution.name:
            return str(distribution.name), str(distribution.version)
    except Exception:  # noqa: S110 - damaged metadata of one stranger must not hide every other plugin
        pass
    return "a distribution with damaged metadata", ""


def _object_name(plugin: Any) -> str:
    return str(getattr(plugin, "__name__", type(plugin).__qualname__))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
