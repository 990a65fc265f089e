"""RuntimeFactory: the one place where configuration becomes parts, with every choice explained."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pluggy

from stellane.abc import Backend, Capability, JournalEngine, Protocol, RecoveryPolicy, Scheduler
from stellane.config import Config, Origin
from stellane.config.keys import show
from stellane.errors import (
    ConfigError,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    PluginUnusable,
    StellaneError,
)
from stellane.nearest import did_you_mean
from stellane.plugins import FIRST_PARTY, GROUPS, OPTION_SECTIONS, Kind, Loaded, PluginLoader

AUTO_BACKENDS = ("epoll", "libuv", "asyncio")
"""What backend = "auto" tries, the fastest first by `bench.loops`. The last is part of the kernel.

io_uring is not among them: on the kernels measured it is not the faster one for every workload (large
messages), and where it is slower it must not be chosen without being asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One plugin that was selected, and why."""

    kind: Kind
    name: str
    distribution: str
    version: str
    why: str


class RuntimeFactory:
    """Loads the plugins that `config` names and makes the parts of one worker from them.

    `origins` says where each setting came from (`LoadedConfig.origins`). `plugins` maps
    (kind, name) to a plugin object, for tests and for programs that bring their own; such a
    plugin comes before an installed one of the same name. Nothing is imported before the part
    is asked for. A selected plugin that cannot be used raises one of the five PluginErrors;
    only backend "auto" moves on to another one.
    """

    def __init__(
        self,
        config: Config,
        origins: Mapping[str, Origin] | None = None,
        plugins: Mapping[tuple[str, str], Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.choices: list[Choice] = []
        self._origins = origins or {}
        trace = (os.environ if environ is None else environ).get("STELLANE_TRACE_HOOKS", "") not in ("", "0", "false")
        self._loader = PluginLoader(config, origins, plugins, trace=trace)
        self._selected: dict[Kind, Loaded] = {}
        self._extensions: list[Loaded] | None = None
        self._refuse_options_for_nothing()
        # Historic: each plugin hears it as it is registered, before it makes anything.
        self.pm.hook.stellane_configured.call_historic(kwargs={"config": config})

    @property
    def pm(self) -> pluggy.PluginManager:
        """The plugin manager, for the hooks of the worker's life."""
        return self._loader.pm

    def create_backend(self) -> Backend:
        """This worker's event loop, not running. Loads the extensions first, as each part asks them."""
        self.load_extensions()
        loaded = self._select_backend()
        backend: Backend = self._create(loaded, "stellane_create_backend", Backend, config=self.config)
        self._refuse_what_it_cannot(backend, loaded.installed.name)
        return backend

    def create_scheduler(self) -> Scheduler:
        """The queue of requests that wait to start, bounded by runtime.max_tasks_per_loop."""
        loaded = self._select("scheduler", self.config.runtime.scheduler, "runtime.scheduler")
        capacity = self.config.runtime.max_tasks_per_loop
        scheduler: Scheduler = self._create(loaded, "stellane_create_scheduler", Scheduler, capacity=capacity)
        return scheduler

    def create_protocol(self) -> Protocol:
        """The wire protocol of this worker's connections."""
        loaded = self._select("protocol", self.config.runtime.protocol, "runtime.protocol")
        protocol: Protocol = self._create(loaded, "stellane_create_protocol", Protocol)
        return protocol

    def create_policy(self) -> RecoveryPolicy:
        """The recovery policy."""
        loaded = self._select("recovery", self.config.recovery.policy, "recovery.policy")
        policy: RecoveryPolicy = self._create(loaded, "stellane_create_recovery", RecoveryPolicy, config=self.config)
        return policy

    def create_journal(self) -> JournalEngine:
        """A new journal engine, closed; each call makes another one."""
        loaded = self._select("journal", self.config.recovery.journal_backend, "recovery.journal_backend")
        engine: JournalEngine = self._create(loaded, "stellane_create_journal", JournalEngine)
        return engine

    def load_extensions(self) -> list[Any]:
        """The extensions of runtime.extensions, in order, registered; loaded once."""
        if self._extensions is None:
            names = self.config.runtime.extensions
            self._extensions = [self.load_extension(name, self._why("runtime.extensions", name)) for name in names]
        return [loaded.plugin for loaded in self._extensions]

    def load_extension(self, name: str, why: str) -> Loaded:
        """One more extension, for a reason of the caller's."""
        loaded = self._loader.load("extension", name)
        self._choose(loaded, why)
        return loaded

    def ask(self, loaded: Loaded, hook: str, **arguments: Any) -> Any:
        """Call `hook` on one plugin alone; None when it does not implement it."""
        return self._loader.ask(loaded, hook, **arguments)

    def check(self) -> None:
        """Load everything the configuration selects and make nothing: what `stellane config check` does."""
        self._select_backend()
        self._select("scheduler", self.config.runtime.scheduler, "runtime.scheduler")
        self._select("protocol", self.config.runtime.protocol, "runtime.protocol")
        if self.config.recovery.enabled:
            self._select("recovery", self.config.recovery.policy, "recovery.policy")
            self._select("journal", self.config.recovery.journal_backend, "recovery.journal_backend")
        self.load_extensions()

    def _select(self, kind: Kind, name: str, key: str) -> Loaded:
        if kind not in self._selected:
            try:
                loaded = self._loader.load(kind, name)
            except PluginNotFound as error:
                # The one plugin error that is about a word in the configuration: say where it stands.
                raise PluginNotFound(f"{self._why(key, name)}: {error}", kind=kind, name=name) from None
            self._selected[kind] = loaded
            self._choose(loaded, self._why(key, name))
        return self._selected[kind]

    def _select_backend(self) -> Loaded:
        name = self.config.runtime.backend
        if name != "auto":
            return self._select("backend", name, "runtime.backend")
        if "backend" not in self._selected:
            loaded, skipped = self._first_usable_backend()
            ranks = f"the first usable of {', '.join(AUTO_BACKENDS)}"
            why = "; ".join([f"{self._why('runtime.backend', 'auto')}: {ranks}", *skipped])
            self._selected["backend"] = loaded
            self._choose(loaded, why)
        return self._selected["backend"]

    def _first_usable_backend(self) -> tuple[Loaded, list[str]]:
        skipped: list[str] = []
        for name in AUTO_BACKENDS:
            try:
                return self._loader.load("backend", name), skipped
            except PluginNotFound:
                skipped.append(f"{name} is not installed")
            except PluginError as error:
                skipped.append(f"{name} was skipped: {str(error).rstrip('.')}")
        raise PluginUnusable(
            f'backend "auto" found none that is usable: {"; ".join(skipped)}.', kind="backend", name="auto"
        )

    def _refuse_what_it_cannot(self, backend: Backend, name: str) -> None:
        """A setting that this backend would ignore is an error: nobody would see that it did nothing."""
        performance = self.config.performance
        wanted = {
            "adaptive_polling": (performance.adaptive_polling, Capability.ADAPTIVE_POLLING),
            "batch_wait_us_max": (performance.batch_wait_us_max, Capability.BATCHING),
            "ready_order": (performance.ready_order, Capability.OWN_READY_QUEUE),
        }
        for key, (value, capability) in wanted.items():
            if value not in (False, 0, "fifo") and capability not in backend.capabilities:
                where = self._origins.get(f"performance.{key}", Origin())
                raise ConfigError(
                    f"{where}: performance.{key} = {show(value)}: backend '{name}' does not have the capability "
                    f"{capability}. Leave the key out, or choose a backend that has it."
                )

    def _create(self, selected: Loaded, hook: str, contract: type, **arguments: Any) -> Any:
        """Ask for the one part. Extensions are asked too, so that one that answers is found out."""
        found = selected.installed
        answers: list[tuple[Loaded, Any]] = []
        # a module that is this plugin and an extension as well speaks once
        others = [loaded for loaded in self._extensions or () if loaded.plugin is not selected.plugin]
        for loaded in [selected, *others]:
            try:
                answer = self._loader.ask(loaded, hook, options=loaded.options, **arguments)
            except StellaneError:
                raise
            except Exception as error:
                raise PluginUnusable(
                    f"{loaded.installed} failed in {hook}: {type(error).__name__}: {error}",
                    kind=found.kind,
                    name=found.name,
                ) from error
            if answer is not None:
                answers.append((loaded, answer))
        if len(answers) > 1:
            who = " and ".join(str(loaded.installed) for loaded, _ in answers)
            raise PluginConflict(
                f"more than one plugin answered {hook}: {who}. Remove all but one from the configuration.",
                kind=found.kind,
                name=found.name,
            )
        if not answers:
            raise PluginIncompatible(
                f"{found} gave no answer to {hook}; a {found.kind} must implement it.", kind=found.kind, name=found.name
            )
        loaded, part = answers[0]
        if not isinstance(part, contract):
            raise PluginIncompatible(
                f"{loaded.installed} answered {hook} with {type(part).__name__}, "
                f"which is not a stellane.abc.{contract.__name__}.",
                kind=found.kind,
                name=found.name,
            )
        return part

    def _choose(self, loaded: Loaded, why: str) -> None:
        found = loaded.installed
        self.choices.append(Choice(found.kind, found.name, found.distribution, found.version, why))

    def _why(self, key: str, name: str) -> str:
        return f'{key} = "{name}" ({self._origins.get(key, Origin())})'

    def _refuse_options_for_nothing(self) -> None:
        """A table of options whose name no plugin has is a misspelling, and must not pass unseen."""
        for kind in GROUPS:
            section = OPTION_SECTIONS[kind]
            tables: dict[str, dict[str, Any]] = getattr(self.config, section)
            known = self._loader.known(kind) if tables else {}
            for name in tables:
                # ours may be left out of this machine's installation, with "auto" for one
                if name in known or (kind, name) in FIRST_PARTY:
                    continue
                where = self._origins.get(f"{section}.{name}", Origin())
                raise ConfigError(
                    f"{where}: [{section}.{name}] holds options of a {kind} that is not installed."
                    f"{did_you_mean(name, known)} Installed: {', '.join(known) or 'none'}."
                )
