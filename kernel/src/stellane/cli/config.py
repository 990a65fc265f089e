"""`stellane config`: what the configuration is, where it came from, and whether it can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from stellane.cli.table import print_table
from stellane.config import LoadedConfig, Origin, load
from stellane.config.keys import show
from stellane.factory import RuntimeFactory

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The configuration file.  [default: stellane.config.toml, if it is there]",
)


@click.group()
def config() -> None:
    """Show and check the configuration."""


@config.command("show")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_config(config_path: Path | None, as_json: bool) -> None:
    """Show every key, its value, and where the value came from."""
    loaded = load(config_path)
    settings = _settings(loaded)
    if as_json:
        document = {
            "file": str(loaded.path) if loaded.path else None,
            "settings": {
                key: {"value": value, "source": str(origin.source), "detail": origin.detail}
                for key, (value, origin) in settings.items()
            },
        }
        click.echo(msgspec.json.format(msgspec.json.encode(document)))
        return
    rows = [[key, show(value), str(origin)] for key, (value, origin) in settings.items()]
    print_table(["key", "value", "from"], rows)


@config.command("check")
@_config_option
def check_config(config_path: Path | None) -> None:
    """Check the configuration, and that every plugin it selects can be used here."""
    loaded = load(config_path)
    factory = RuntimeFactory(loaded.config, loaded.origins)
    factory.check()
    click.echo(f"{loaded.path or 'The default configuration'} is valid and can be used here.")
    for choice in factory.choices:
        click.echo(f"  {choice.kind} {choice.name} ({choice.distribution} {choice.version}): {choice.why}")


def _settings(loaded: LoadedConfig) -> dict[str, tuple[Any, Origin]]:
    """Every key's value and origin: the kernel's own keys, then the options of plugins."""
    found: dict[str, tuple[Any, Origin]] = {}
    for section in msgspec.structs.fields(loaded.config):
        table = getattr(loaded.config, section.name)
        if isinstance(table, msgspec.Struct):
            for name, value in msgspec.structs.asdict(table).items():
                path = f"{section.name}.{name}"
                found[path] = (value, loaded.origins[path])
            continue
        for plugin, options in table.items():
            for name, value in options.items():
                path = f"{section.name}.{plugin}.{name}"
                found[path] = (value, loaded.origins[path])
    return found
