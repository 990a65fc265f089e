"""`stellane plugins`: what is installed, what is usable here, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
from rich.text import Text

from stellane.cli.table import print_table
from stellane.config import LoadedConfig, load
from stellane.errors import ConfigError, PluginError
from stellane.plugins import GROUPS, Installed, PluginLoader, conflict, installed


class PluginReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one installed plugin. `usable` is None when nobody has tried."""

    kind: str
    name: str
    distribution: str
    version: str
    entry_point: str
    usable: bool | None = None
    error: str = ""
    """The class of the error it would raise when selected."""
    reason: str = ""
    facts: dict[str, str] = {}


@click.command()
@click.option("--probe", is_flag=True, help="Load each one and try whether it can run on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="With --probe: the file with the plugins' options.  [default: stellane.config.toml, if it is there]",
)
def plugins(probe: bool, as_json: bool, config_path: Path | None) -> None:
    """Show the installed plugins. Without --probe none of them is imported."""
    loaded = load(config_path) if probe else None
    reports = [_report(claim, claims, loaded) for claims in _everything() for claim in claims]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(reports)))
    else:
        _print_table(reports)


def _everything() -> list[list[Installed]]:
    return [claims for kind in GROUPS for claims in installed(kind).values()]


def _report(claim: Installed, claims: list[Installed], loaded: LoadedConfig | None) -> PluginReport:
    known: dict[str, Any] = {
        "kind": claim.kind,
        "name": claim.name,
        "distribution": claim.distribution,
        "version": claim.version,
        "entry_point": claim.value,
    }
    if len(claims) > 1:
        error = conflict(claims)
        return PluginReport(**known, usable=False, error=type(error).__name__, reason=str(error))
    if loaded is None:
        return PluginReport(**known)
    try:
        # a loader of its own, so that no plugin meets another
        plugin = PluginLoader(loaded.config, loaded.origins).load(claim.kind, claim.name)
    except (PluginError, ConfigError) as error:
        return PluginReport(**known, usable=False, error=type(error).__name__, reason=str(error))
    return PluginReport(**known, usable=True, reason=plugin.probe.reason, facts=plugin.probe.facts)


def _print_table(reports: list[PluginReport]) -> None:
    words = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("not tried", "dim")}
    rows: list[list[str | Text]] = [
        [report.kind, report.name, report.distribution, report.version, words[report.usable], report.reason]
        for report in reports
    ]
    print_table(["kind", "name", "distribution", "version", "usable", "why"], rows)
