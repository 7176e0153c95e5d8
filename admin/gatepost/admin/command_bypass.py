# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost bypass`: its options and its help."""

from __future__ import annotations

import sys

import click

from gatepost.admin.options import as_path


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
