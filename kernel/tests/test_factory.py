"""RuntimeFactory: one answer for each part, and every choice explained."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from stellane.abc import Backend, BackendStatistics, Capability, Probe
from stellane.builtin.fifo_scheduler import FifoScheduler
from stellane.builtin.replay_policy import ReplayPolicy
from stellane.config import Config, Origin, PerformanceConfig, RecoveryConfig, RuntimeConfig, Source
from stellane.errors import (
    ConfigError,
    JournalUnsupported,
    PluginConflict,
    PluginIncompatible,
    PluginNotFound,
    PluginUnusable,
)
from stellane.factory import Choice, RuntimeFactory
from stellane.hookspecs import hookimpl


class PlainBackend(Backend):
    """The contract's verbs over a loop that nobody runs; these tests only make it."""

    def run(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def schedule(self, coro: Any, **_: Any) -> asyncio.Future[Any]:
        raise NotImplementedError

    def is_running(self) -> bool:
        return False

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    def statistics(self) -> BackendStatistics:
        raise NotImplementedError


class Plugin:
    """A plugin that answers stellane_create_backend with what it is given."""

    stellane_api_level = 1

    def __init__(self, answer: Any = None, probe: Probe | None = None) -> None:
        self.answer = answer
        self.probe = probe or Probe(usable=True)
        self.heard: list[Config] = []

    @hookimpl
    def stellane_probe(self) -> Probe:
        return self.probe

    @hookimpl
    def stellane_configured(self, config: Config) -> None:
        self.heard.append(config)

    @hookimpl
    def stellane_create_backend(self) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


class Listener:
    """An extension that creates nothing."""

    stellane_api_level = 1


def runtime(**keys: Any) -> Config:
    return Config(runtime=RuntimeConfig(**keys))


def test_part_is_made_and_the_choice_explained() -> None:
    backend = PlainBackend()
    origins = {"runtime.backend": Origin(Source.ENVIRONMENT, "STELLANE_RUNTIME_BACKEND")}
    factory = RuntimeFactory(runtime(backend="mine"), origins, {("backend", "mine"): Plugin(backend)})
    assert factory.create_backend() is backend
    assert factory.choices == [
        Choice(
            kind="backend",
            name="mine",
            distribution="passed as an object",
            version="",
            why='runtime.backend = "mine" (environment STELLANE_RUNTIME_BACKEND)',
        )
    ]


def test_builtin_scheduler_and_policy_come_through_their_entry_points() -> None:
    config = Config(runtime=RuntimeConfig(max_tasks_per_loop=7), recovery=RecoveryConfig(methods=("LOCK",)))
    factory = RuntimeFactory(config)
    scheduler, policy = factory.create_scheduler(), factory.create_policy()
    assert isinstance(scheduler, FifoScheduler)
    assert scheduler.statistics().capacity == 7
    assert isinstance(policy, ReplayPolicy)
    assert policy.should_journal("LOCK", b"/")
    assert [(choice.kind, choice.name, choice.distribution, choice.why) for choice in factory.choices] == [
        ("scheduler", "fifo", "stellane-kernel", 'runtime.scheduler = "fifo" (default)'),
        ("recovery", "replay", "stellane-kernel", 'recovery.policy = "replay" (default)'),
    ]


def test_each_part_asked_for_twice_is_one_choice() -> None:
    factory = RuntimeFactory(runtime(backend="mine"), plugins={("backend", "mine"): Plugin(PlainBackend())})
    factory.create_backend()
    factory.create_backend()
    assert len(factory.choices) == 1


class TestExactlyOneAnswer:
    def make(self, answer: Any, **extensions: Any) -> Backend:
        config = runtime(backend="mine", extensions=tuple(extensions))
        passed = {("extension", name): plugin for name, plugin in extensions.items()}
        factory = RuntimeFactory(config, plugins={("backend", "mine"): Plugin(answer), **passed})
        return factory.create_backend()

    def test_extensions_without_an_answer_do_not_disturb(self) -> None:
        backend = PlainBackend()
        assert self.make(backend, silent=Plugin(None), listener=Listener()) is backend

    def test_two_answers_name_both_culprits(self) -> None:
        with pytest.raises(PluginConflict) as caught:
            self.make(PlainBackend(), meddler=Plugin(PlainBackend()))
        assert str(caught.value) == (
            "more than one plugin answered stellane_create_backend: "
            "backend 'mine' (passed as an object, Plugin) and extension 'meddler' (passed as an object, Plugin). "
            "Remove all but one from the configuration."
        )

    def test_no_answer(self) -> None:
        with pytest.raises(PluginIncompatible) as caught:
            self.make(None)
        assert str(caught.value) == (
            "backend 'mine' (passed as an object, Plugin) gave no answer to stellane_create_backend; "
            "a backend must implement it."
        )

    def test_answer_of_another_type(self) -> None:
        with pytest.raises(PluginIncompatible) as caught:
            self.make("a loop")
        assert str(caught.value) == (
            "backend 'mine' (passed as an object, Plugin) answered stellane_create_backend with str, "
            "which is not a stellane.abc.Backend."
        )

    def test_raising_is_unusable_with_the_cause_chained(self) -> None:
        with pytest.raises(PluginUnusable, match="failed in stellane_create_backend: OSError: no ring") as caught:
            self.make(OSError("no ring"))
        assert isinstance(caught.value.__cause__, OSError)

    def test_an_error_of_ours_stays_itself(self) -> None:
        with pytest.raises(JournalUnsupported, match="no such file system"):
            self.make(JournalUnsupported("no such file system"))

    def test_one_module_for_several_kinds_is_no_conflict(self) -> None:
        backend = PlainBackend()
        plugin = Plugin(backend)
        config = runtime(backend="mine", extensions=("mine",))
        factory = RuntimeFactory(config, plugins={("backend", "mine"): plugin, ("extension", "mine"): plugin})
        assert factory.load_extensions() == [plugin]
        assert factory.create_backend() is backend
        assert len(plugin.heard) == 1


class TestAuto:
    def make(self, **plugins: Any) -> RuntimeFactory:
        return RuntimeFactory(runtime(), plugins={("backend", name): plugin for name, plugin in plugins.items()})

    def test_first_of_the_ranks_wins(self) -> None:
        libuv, epoll = PlainBackend(), PlainBackend()
        factory = self.make(epoll=Plugin(epoll), libuv=Plugin(libuv))
        assert factory.create_backend() is epoll
        assert (factory.choices[0].name, factory.choices[0].why) == (
            "epoll",
            'runtime.backend = "auto" (default): the first usable of epoll, libuv, asyncio',
        )

    def test_broken_one_is_skipped_with_its_reason(self) -> None:
        libuv = PlainBackend()
        factory = self.make(epoll=Plugin(probe=Probe(usable=False, reason="no loop")), libuv=Plugin(libuv))
        assert factory.create_backend() is libuv
        assert factory.choices[0].why == (
            'runtime.backend = "auto" (default): the first usable of epoll, libuv, asyncio; '
            "epoll was skipped: backend 'epoll' (passed as an object, Plugin) cannot run on this machine: no loop"
        )

    def test_none_usable_tells_every_reason(self) -> None:
        broken = {
            name: Plugin(probe=Probe(usable=False, reason=f"no {name}")) for name in ("libuv", "epoll", "asyncio")
        }
        with pytest.raises(PluginUnusable, match='backend "auto" found none') as caught:
            self.make(**broken).create_backend()
        assert all(f"no {name}" in str(caught.value) for name in broken)

    def test_bad_options_of_a_candidate_are_not_skipped(self) -> None:
        config = Config(backend={"epoll": {"colour": 1}})
        factory = RuntimeFactory(config, plugins={("backend", "epoll"): Plugin(PlainBackend())})
        with pytest.raises(ConfigError, match="takes no options"):
            factory.create_backend()


def test_a_named_backend_never_falls_back() -> None:
    plugins = {
        ("backend", "mine"): Plugin(probe=Probe(usable=False, reason="no ring")),
        ("backend", "asyncio"): Plugin(PlainBackend()),
    }
    with pytest.raises(PluginUnusable, match="no ring"):
        RuntimeFactory(runtime(backend="mine"), plugins=plugins).create_backend()


def test_specifications_backend_custom_is_refused_when_it_is_selected() -> None:
    with pytest.raises(
        PluginNotFound, match=r"^runtime.backend = \"custom\" .*: backend 'custom' is not built yet\. Installed: "
    ):
        RuntimeFactory(runtime(backend="custom")).create_backend()


@pytest.mark.parametrize(
    ("key", "value", "shown", "capability"),
    [
        ("adaptive_polling", True, "true", Capability.ADAPTIVE_POLLING),
        ("batch_wait_us_max", 50, "50", Capability.BATCHING),
        ("ready_order", "priority", '"priority"', Capability.OWN_READY_QUEUE),
    ],
)
def test_a_setting_that_the_backend_would_ignore_is_refused(
    key: str, value: Any, shown: str, capability: Capability
) -> None:
    config = Config(runtime=RuntimeConfig(backend="mine"), performance=PerformanceConfig(**{key: value}))
    backend = PlainBackend()
    factory = RuntimeFactory(
        config, {f"performance.{key}": Origin(Source.FILE, "s.toml:7")}, {("backend", "mine"): Plugin(backend)}
    )
    with pytest.raises(ConfigError) as caught:
        factory.create_backend()
    assert str(caught.value) == (
        f"s.toml:7: performance.{key} = {shown}: backend 'mine' does not have the capability {capability}. "
        "Leave the key out, or choose a backend that has it."
    )
    backend.capabilities = frozenset({capability})
    assert factory.create_backend() is backend


def test_configured_is_heard_once_by_each_plugin_before_it_makes_anything() -> None:
    plugin, extension = Plugin(PlainBackend()), Plugin()
    config = runtime(backend="mine", extensions=("late",))
    factory = RuntimeFactory(config, plugins={("backend", "mine"): plugin, ("extension", "late"): extension})
    assert plugin.heard == []
    factory.create_backend()
    factory.load_extensions()
    assert (plugin.heard, extension.heard) == ([config], [config])


def test_plugin_that_refuses_the_configuration_is_not_registered() -> None:
    class Refusing:
        stellane_api_level = 1

        @hookimpl
        def stellane_configured(self, config: Config) -> None:
            raise ValueError("two workers are too many")

    factory = RuntimeFactory(runtime(extensions=("strict",)), plugins={("extension", "strict"): Refusing()})
    with pytest.raises(PluginUnusable, match="refused the configuration: ValueError: two workers are too many"):
        factory.load_extensions()
    assert factory.pm.get_plugins() == set()


def test_extensions_load_in_the_order_of_the_configuration() -> None:
    one, two = Listener(), Listener()
    config = runtime(extensions=("two", "one"))
    factory = RuntimeFactory(config, plugins={("extension", "one"): one, ("extension", "two"): two})
    assert factory.load_extensions() == [two, one]
    assert [choice.name for choice in factory.choices] == ["two", "one"]


def test_options_of_a_plugin_that_nobody_has_are_refused() -> None:
    config = Config(backend={"asynkio": {"debug": True}})
    with pytest.raises(ConfigError) as caught:
        RuntimeFactory(config, {"backend.asynkio": Origin(Source.FILE, "s.toml:4")})
    assert str(caught.value).startswith(
        "s.toml:4: [backend.asynkio] holds options of a backend that is not installed. Did you mean 'asyncio'? "
        "Installed: "
    )


def test_hooks_are_traced_when_the_environment_asks(capsys: pytest.CaptureFixture[str]) -> None:
    plugins = {("backend", "mine"): Plugin(PlainBackend())}
    for value in ("0", "1"):
        environ = {"STELLANE_TRACE_HOOKS": value}
        RuntimeFactory(runtime(backend="mine"), plugins=plugins, environ=environ).create_backend()
        lines = capsys.readouterr().err.splitlines()
        traced = [line for line in lines if line.startswith("hook stellane_create_backend(options=None, config=")]
        assert [line.endswith("-> backend:mine") for line in traced[:1]] == [True] * (value == "1")


class Sized(msgspec.Struct):
    """Options of the plugin below."""

    size: int = 1


def test_options_reach_the_create_hook() -> None:
    seen: list[Any] = []

    class Sizing:
        stellane_api_level = 1
        stellane_options = Sized

        @hookimpl
        def stellane_create_backend(self, options: Sized) -> Backend:
            seen.append(options)
            return PlainBackend()

    config = Config(runtime=RuntimeConfig(backend="mine"), backend={"mine": {"size": 3}})
    RuntimeFactory(config, plugins={("backend", "mine"): Sizing()}).create_backend()
    assert seen == [Sized(size=3)]
