# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost demo`: its options and its help."""

from __future__ import annotations

import sys

import click


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
