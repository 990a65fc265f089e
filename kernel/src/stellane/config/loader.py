"""From file, environment and command line to one Config, with the origin of every value.

Later sources win: defaults, what the application sets itself, the file, the environment, the
command line. Every problem found is reported, all of them in one ConfigError.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli

from stellane.config.environment import parse, variable, variables
from stellane.config.keys import Key, keys_of, show
from stellane.config.positions import positions
from stellane.config.schema import Config
from stellane.errors import ConfigError
from stellane.nearest import did_you_mean, nearest

DEFAULT_FILE = Path("stellane.config.toml")
"""What is read when no file is named, if it is there."""

Options = TypeVar("Options", bound=msgspec.Struct)


class Source(enum.StrEnum):
    """Where a value came from; later ones win."""

    DEFAULT = "default"
    APPLICATION = "application"
    FILE = "file"
    ENVIRONMENT = "environment"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of one value; `detail` is "file:line" or the variable's name."""

    source: Source = Source.DEFAULT
    detail: str = ""

    def __str__(self) -> str:
        if self.source is Source.FILE:
            return self.detail
        return f"{self.source} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A complete, valid configuration and where each value came from, by key path."""

    config: Config
    origins: dict[str, Origin]
    path: Path | None = None
    """The file that was read, if one was."""


@dataclass(frozen=True, slots=True)
class _Setting:
    path: str
    value: Any
    origin: Origin

    def __str__(self) -> str:
        return f"{self.origin}: {self.path} = {show(self.value)}"


@dataclass(slots=True)
class _Draft:
    """Values on their way to a Config: later settings replace earlier ones."""

    values: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, setting: _Setting, key: Key) -> None:
        try:
            self.values[setting.path] = key.check(setting.value)
        except ValueError as error:
            self.problems.append(f"{setting}: {error}.")
        self.origins[setting.path] = setting.origin


_DISPATCH_WITHOUT_UDS = {
    "reuseport": "the kernel distributes no connections of a unix socket",
    "affinity": "clients of a unix socket have no address",
}

_HINTS = {item.name: item.type for item in msgspec.structs.fields(Config)}
SECTIONS: dict[str, type[msgspec.Struct]] = {
    name: hint for name, hint in _HINTS.items() if isinstance(hint, type) and issubclass(hint, msgspec.Struct)
}
"""The sections of the kernel's own keys: "runtime" to RuntimeConfig."""

OPTION_TABLES = tuple(name for name in _HINTS if name not in SECTIONS)
"""The sections that hold one table of options for each plugin: "backend", "journal", …"""

KEYS: dict[str, Key] = {
    key.path: key for section, table in SECTIONS.items() for key in keys_of(table, section).values()
}
"""Every key of the kernel itself, by its path."""


def load(
    path: Path | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> LoadedConfig:
    """The configuration from `path`, the environment and the command line.

    `path` None means DEFAULT_FILE if it exists. `environ` None means this process's.
    `overrides` maps key paths ("runtime.backend") to what the command line says; a value of
    None is one that was not given. Raises ConfigError, one line for each problem.
    """
    if path is None and DEFAULT_FILE.exists():
        path = DEFAULT_FILE
    draft = _Draft()
    if path is not None:
        _read_file(path, draft)
    _read_environment(os.environ if environ is None else environ, draft)
    for name, value in (overrides or {}).items():
        if value is not None:
            _put_known(draft, _Setting(name, value, Origin(Source.COMMAND_LINE)))
    _refuse(draft.problems)
    return _finish(draft, path)


def with_application_defaults(loaded: LoadedConfig, table: Mapping[str, Any]) -> LoadedConfig:
    """`loaded` with what the application sets for [recovery], where no other source spoke.

    `table` is `Application.recovery_defaults()`: key names without the section.
    Raises ConfigError like `load`.
    """
    draft = _Draft()
    for name, value in table.items():
        if loaded.origins.get(f"recovery.{name}", Origin()).source in (Source.DEFAULT, Source.APPLICATION):
            _put_known(draft, _Setting(f"recovery.{name}", value, Origin(Source.APPLICATION)))
    _refuse(draft.problems)
    changed = {path.removeprefix("recovery."): value for path, value in draft.values.items()}
    recovery = msgspec.structs.replace(loaded.config.recovery, **changed)
    return replace(
        loaded,
        config=msgspec.structs.replace(loaded.config, recovery=recovery),
        origins=loaded.origins | draft.origins,
    )


def plugin_options(
    options: type[Options], section: str, name: str, config: Config, origins: Mapping[str, Origin]
) -> Options:
    """The options of one plugin from its own table, [section.name].

    `options` is the plugin's `stellane_options`. Raises ConfigError with the same texts as the
    kernel's own keys: unknown, missing, or of a wrong value.
    """
    path = f"{section}.{name}"
    keys = keys_of(options, path)
    draft = _Draft()
    table: dict[str, dict[str, Any]] = getattr(config, section)
    for word, value in table.get(name, {}).items():
        setting = _Setting(f"{path}.{word}", value, origins.get(f"{path}.{word}", Origin(Source.APPLICATION)))
        if word in keys:
            draft.put(setting, keys[word])
        else:
            draft.problems.append(f"{setting}: unknown key.{did_you_mean(word, keys)} {_known_keys(path, keys)}")
    missing = [key for word, key in keys.items() if key.required and word not in table.get(name, {})]
    draft.problems += [f"[{path}]: {key.path} is missing; it must be {key.allowed}." for key in missing]
    _refuse(draft.problems)
    try:
        return msgspec.convert(table.get(name, {}), options)
    except msgspec.ValidationError as error:
        # a rule of the plugin's own, from __post_init__
        where = origins.get(path, Origin(Source.APPLICATION))
        raise ConfigError(f"{where}: [{path}]: {error}") from error


def _refuse(problems: Iterable[str]) -> None:
    found = list(problems)
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        raise ConfigError(f"{len(found)} problems in the configuration:\n" + "\n".join(f"  {line}" for line in found))


def _finish(draft: _Draft, path: Path | None) -> LoadedConfig:
    sections: dict[str, Any] = dict(draft.options)
    for name, table in SECTIONS.items():
        given = [path for path in _paths_in(name) if path in draft.values]
        sections[name] = table(**{path.removeprefix(f"{name}."): draft.values[path] for path in given})
    config = Config(**sections)
    origins = {name: Origin() for name in KEYS} | draft.origins
    _refuse(_contradictions(config, origins))
    return LoadedConfig(config=config, origins=origins, path=path)


def _contradictions(config: Config, origins: Mapping[str, Origin]) -> Iterator[str]:
    delay, delay_max = config.runtime.restart_delay_s, config.runtime.restart_delay_s_max
    if delay > delay_max:
        yield (
            f"runtime.restart_delay_s = {delay} ({origins['runtime.restart_delay_s']}) is more than "
            f"runtime.restart_delay_s_max = {delay_max} ({origins['runtime.restart_delay_s_max']})."
        )
    dispatch, uds = config.runtime.dispatch, config.server.uds
    if uds and dispatch in _DISPATCH_WITHOUT_UDS:
        yield (
            f'runtime.dispatch = "{dispatch}" ({origins["runtime.dispatch"]}) cannot be used with '
            f'server.uds = "{uds}" ({origins["server.uds"]}): {_DISPATCH_WITHOUT_UDS[dispatch]}. '
            'Use dispatch = "shared", "least_loaded" or "round_robin", or listen on server.host and server.port.'
        )


def _put_known(draft: _Draft, setting: _Setting) -> None:
    if key := KEYS.get(setting.path):
        draft.put(setting, key)
    else:
        draft.problems.append(f"{setting}: {_unknown_key(setting.path)}")


def _read_file(path: Path, draft: _Draft) -> None:
    try:
        # a byte order mark, as some editors leave it, is no part of the document
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); TOML must be.") from error
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: is not valid TOML: {error.msg}.") from error
    lines = positions(text)

    def origin(name: str) -> Origin:
        return Origin(Source.FILE, f"{path}:{lines[name]}" if name in lines else str(path))

    for section, table in document.items():
        where = origin(section)
        if section not in _HINTS:
            draft.problems.append(f"{where}: {_unknown_section(section, table)}")
        elif not isinstance(table, dict):
            draft.problems.append(f"{where}: {section} = {show(table)}: must be a table.{_elsewhere(section)}")
        elif section in SECTIONS:
            for name, value in table.items():
                setting = _Setting(f"{section}.{name}", value, origin(f"{section}.{name}"))
                _put_known(draft, setting)
        else:
            _read_options(section, table, origin, draft)


def _read_options(section: str, table: dict[str, Any], origin: Any, draft: _Draft) -> None:
    for name, options in table.items():
        path = f"{section}.{name}"
        if not isinstance(options, dict):
            draft.problems.append(
                f"{origin(path)}: {path} = {show(options)}: must be a table; [{section}.<name>] holds "
                f"the options of the {section} named <name>.{_elsewhere(name)}"
            )
            continue
        draft.options.setdefault(section, {})[name] = options
        draft.origins[path] = origin(path)
        draft.origins |= {f"{path}.{word}": origin(f"{path}.{word}") for word in options}


def _read_environment(environ: Mapping[str, str], draft: _Draft) -> None:
    known = {variable(path): path for path in KEYS}
    for name, text in variables(environ):
        origin = Origin(Source.ENVIRONMENT, name)
        if path := known.get(name):
            draft.put(_Setting(path, parse(KEYS[path], text), origin), KEYS[path])
            continue
        hint = did_you_mean(name, known, quote="")
        if not hint and (section := nearest(name.split("_")[1], SECTIONS)):
            hint = f" Variables of [{section}]: {', '.join(map(variable, _paths_in(section)))}."
        draft.problems.append(
            f'{origin}: "{text}": sets no known key.{hint} '
            "A variable is STELLANE_<SECTION>_<KEY>; plugin options are set in the file only."
        )


def _paths_in(section: str) -> list[str]:
    return [path for path in KEYS if path.startswith(f"{section}.")]


def _elsewhere(name: str) -> str:
    """For a key at the wrong place: where a key of this very name belongs."""
    homes = [path for path in KEYS if path.rpartition(".")[2] == name]
    return f" Did you mean {homes[0]}?" if homes else ""


def _unknown_section(section: str, value: Any) -> str:
    known = f"Known sections: {', '.join(f'[{name}]' for name in _HINTS)}."
    if isinstance(value, dict):
        near = nearest(section, _HINTS)
        return f"[{section}]: unknown section.{f' Did you mean [{near}]?' if near else ''} {known}"
    hint = _elsewhere(section) or did_you_mean(section, KEYS, quote="")
    return f"{section} = {show(value)}: unknown key; every key belongs to a section.{hint} {known}"


def _unknown_key(path: str) -> str:
    section, _, name = path.rpartition(".")
    if section not in SECTIONS:
        return f"unknown key.{did_you_mean(path, KEYS, quote='')}"
    keys = [known.rpartition(".")[2] for known in _paths_in(section)]
    near = nearest(name, keys)
    hint = f" Did you mean {section}.{near}?" if near else _elsewhere(name)
    return f"unknown key.{hint} {_known_keys(section, keys)}"


def _known_keys(path: str, keys: Iterable[str]) -> str:
    return f"Known keys of [{path}]: {', '.join(keys) or 'none'}."
