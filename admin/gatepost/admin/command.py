# SPDX-License-Identifier: GPL-3.0-or-later
"""The `gatepost` command: its options and its help. What a subcommand does is loaded when it runs."""

from __future__ import annotations

import os
import sys

import click

from gatepost.admin.command_check import check, explain, replay
from gatepost.admin.command_config import config_group
from gatepost.admin.command_daemons import milter, policyd, run
from gatepost.admin.command_doctor import doctor
from gatepost.admin.command_import import import_group
from gatepost.admin.command_report import ledger, report
from gatepost.admin.command_setup import setup
from gatepost.admin.command_srs import srs
from gatepost.admin.command_status import status
from gatepost.admin.options import as_path
from gatepost.service.paths import DEFAULT_PATH
from gatepost.service.version import __version__

click.UsageError.exit_code = os.EX_USAGE  # sysexits.h has 64 where click has 2


_SENTENCE = 200
"""So long may the first sentence of a subcommand's help be; it goes on in another line."""


class Sections(click.Group):
    """A group whose help has its subcommands by what one is about to do."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a table for each of SECTIONS."""
        for title, subcommands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(str(item.name), item.get_short_help_str(_SENTENCE)) for item in subcommands])


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


@click.command(
    epilog="""\b
Examples:
  gatepost bypass on             mail passes untouched from this moment
  gatepost bypass status || echo "bypass is on"
  gatepost bypass off"""
)
@click.argument("action", metavar="[on|off|status]", default="status", type=click.Choice(["on", "off", "status"]))
@click.pass_obj
def bypass(config: str, action: str) -> None:
    """Take gatepost out of the way of mail, or back in.

    That happens at once and without touching the MTA's configuration: mail passes, nothing is refused or
    rewritten. It lasts until `gatepost bypass off`, restarts included.
    Exit status of status: 0 if bypass is off, 1 if it is on.
    """
    from gatepost.admin import bypass

    sys.exit(bypass.run(as_path(config), action))


@click.command(
    epilog="""\b
Examples:
  sudo gatepost demo
  sudo gatepost demo --keep"""
)
@click.option("--keep", is_flag=True, help="Leave all of it running until Ctrl-C, to try by hand.")
def demo(keep: bool) -> None:
    """Show the relay rule and SRS on a private Postfix, with real mail.

    The Postfix, gatepost and a next hop that stands for the Internet run on loopback in a temporary folder; the
    system's own MTA is left alone. For root only: Postfix chroots its daemons.
    Exit status: 0 if everything went as it must, 1 if not, 77 without root.
    """
    from gatepost.admin.demo import run

    sys.exit(run(keep=keep))


SECTIONS: dict[str, tuple[click.Command, ...]] = {
    "Set it up": (config_group, import_group, setup, doctor),
    "Run it": (run, milter, policyd, status, bypass),
    "Ask it": (check, explain, replay, report, ledger, srs),
    "Try it": (demo,),
}
for subcommands in SECTIONS.values():
    for subcommand in subcommands:
        main.add_command(subcommand)
