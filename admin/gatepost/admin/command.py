# SPDX-License-Identifier: GPL-3.0-or-later
"""The `gatepost` command, its options and its help. A subcommand is loaded when named, what it does when it runs."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Optional

import click

from gatepost.service.paths import DEFAULT_PATH
from gatepost.service.version import __version__

click.UsageError.exit_code = os.EX_USAGE  # sysexits.h has 64 where click has 2


SECTIONS: dict[str, dict[str, str]] = {
    "Set it up": {
        "config": "command_config:config_group",
        "import": "command_import:import_group",
        "setup": "command_setup:setup",
        "doctor": "command_doctor:doctor",
    },
    "Run it": {
        "run": "command_daemons:run",
        "milter": "command_daemons:milter",
        "policyd": "command_daemons:policyd",
        "status": "command_status:status",
        "bypass": "command_bypass:bypass",
    },
    "Ask it": {
        "check": "command_check:check",
        "explain": "command_check:explain",
        "replay": "command_check:replay",
        "report": "command_report:report",
        "ledger": "command_report:ledger",
        "srs": "command_srs:srs",
    },
    "Try it": {"demo": "command_demo:demo"},
}
"""The subcommands by what one is about to do, and where each is defined."""
_PLACES = {name: place for section in SECTIONS.values() for name, place in section.items()}
_SENTENCE = 200
"""So long may the first sentence of a subcommand's help be; it goes on in another line."""


class Sections(click.Group):
    """A group of SECTIONS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the subcommands, as completion offers them."""
        return sorted(_PLACES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        """Return a subcommand, None where there is none of that name."""
        if cmd_name not in _PLACES:
            return None
        module, _, name = _PLACES[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"gatepost.admin.{module}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a table for each of SECTIONS."""
        for title, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(title):
                formatter.write_dl([(name, item.get_short_help_str(_SENTENCE)) for name, item in commands if item])


@click.group(
    cls=Sections,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  gatepost config check          say whether the configuration is right
  gatepost setup postfix         show what Postfix needs, and why
  gatepost doctor                look whether all of it is right
  gatepost check --ip 192.0.2.5 --mail-from app@vendor.example \\
      --rcpt x@gmail.com
  gatepost explain FZYOX5HCUU    say why a message was refused
  gatepost status                what runs, and what it did in the last hour

Exit statuses are those of sysexits.h: 64 wrong usage, 65 wrong data, 78 wrong
configuration. The manual is in gatepost(8) and gatepost.toml(5).""",
)
@click.version_option(__version__, prog_name="gatepost", message="%(prog)s %(version)s")
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    type=click.Path(readable=False),  # what reads it says so
    default=DEFAULT_PATH,
    envvar="GATEPOST_CONFIG",
    show_default=True,
    help="The configuration file.",
)
@click.pass_context
def main(context: click.Context, config: str) -> None:
    """Exchange Online's relay requirements and SRS for Postfix and Sendmail."""
    context.obj = config
    if "NO_COLOR" in os.environ:
        context.color = False
