"""The `stellane` command.

Commands are imported when they are used: `stellane --help` imports none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click
import importlib_metadata as metadata

from stellane.errors import ConfigError, PluginConflict, PluginError, StellaneError, TargetError

COMMANDS = {
    "run": "Serve an application.",
    "plugins": "Show the installed plugins.",
    "config": "Show and check the configuration.",
    "journal": "Look into a request journal.",
}
"""The built-in commands: `stellane.cli.<name>` holds the click command of that name."""

EXIT_USAGE = 2
"""Exit code for what the caller can put right: arguments, configuration, target, plugins."""

EXIT_FAILURE = 1


class StellaneGroup(click.Group):
    """The command group: built-in commands by name, and those of STELLANE_CLI_EXTENSIONS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(_extension_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            command: click.Command = getattr(importlib.import_module(f"stellane.cli.{cmd_name}"), cmd_name)
            return command
        return _extension_commands(ctx).get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        more = _extension_commands(ctx)
        rows = [*COMMANDS.items(), *((name, more[name].get_short_help_str()) for name in sorted(more))]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        try:
            return super().main(args, *rest, **options)
        except StellaneError as error:
            _fail(error)


def _fail(error: StellaneError) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    usage = isinstance(error, ConfigError | TargetError | PluginError)
    sys.exit(EXIT_USAGE if usage else EXIT_FAILURE)


def _extension_commands(ctx: click.Context) -> dict[str, click.Command]:
    """The commands that the extensions in STELLANE_CLI_EXTENSIONS add; {} when there are none."""
    names = [name.strip() for name in os.environ.get("STELLANE_CLI_EXTENSIONS", "").split(",") if name.strip()]
    if not names:
        return {}
    found: dict[str, click.Command] | None = ctx.meta.get(__name__)
    if found is None:
        found = ctx.meta[__name__] = _load_extension_commands(names)
    return found


def _load_extension_commands(names: list[str]) -> dict[str, click.Command]:
    from stellane.config import load  # noqa: PLC0415 - only when there is an extension
    from stellane.factory import RuntimeFactory  # noqa: PLC0415

    loaded = load()
    factory = RuntimeFactory(loaded.config, loaded.origins)
    commands: dict[str, click.Command] = {}
    for name in names:
        extension = factory.load_extension(name, "STELLANE_CLI_EXTENSIONS")
        # A group of its own: an extension can add to `stellane` but not take from it.
        group = click.Group("stellane")
        factory.ask(extension, "stellane_add_cli_commands", group=group)
        if taken := sorted(group.commands.keys() & (commands.keys() | COMMANDS.keys())):
            raise PluginConflict(
                f"{extension.installed} adds the command {taken[0]!r}, which is already there. "
                "Take it out of STELLANE_CLI_EXTENSIONS.",
                kind="extension",
                name=name,
            )
        commands |= group.commands
    return commands


@click.group(cls=StellaneGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(metadata.version("stellane-kernel"), prog_name="stellane")
def main() -> None:
    """Stellane serves async Python applications whose accepted requests survive a process's death."""
