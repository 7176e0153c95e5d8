# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost import`: its options and its help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Optional

import click

from gatepost.admin.options import as_path


@click.group("import")
def import_group() -> None:
    """Take over what another program is configured with."""


@import_group.command(
    epilog="""\b
Examples:
  gatepost import postsrsd --stdout          show what it would write
  gatepost import postsrsd                   write /etc/gatepost/gatepost.toml
  gatepost -c ./try.toml import postsrsd --from ./postsrsd.conf"""
)
@click.option(
    "--from",
    "sources",
    metavar="FILE",
    type=click.Path(),
    multiple=True,
    help="postsrsd's configuration. Default: /etc/postsrsd.conf, else /etc/default/postsrsd.",
)
@click.option("--domain", metavar="DOMAIN", help="The SRS domain, where the file leaves it to the host's name.")
@click.option("--stdout", is_flag=True, help="Print the configuration and write no file.")
@click.pass_obj
def postsrsd(config: str, sources: Sequence[str], domain: Optional[str], stdout: bool) -> None:
    """Write a configuration that does what a postsrsd, 1.x or 2.x, does here, with the same secret.

    Bounces to addresses that it made still come back. A file that exists is never overwritten. What has no equal here
    is named on standard error.
    """
    from pathlib import Path

    from gatepost.admin import import_postsrsd

    sys.exit(import_postsrsd.run([Path(item) for item in sources], None if stdout else as_path(config), domain))


@import_group.command(
    epilog="""\b
Examples:
  Get-AcceptedDomain | ConvertTo-Json > domains.json       (in PowerShell)
  Get-InboundConnector | ConvertTo-Json > connectors.json
  gatepost import exchange domains.json connectors.json

Exit status 65 for a file that is no such export, 66 for one that can't be
read, 78 where the configuration could not be used with them."""
)
@click.argument("files", metavar="FILE...", type=click.Path(), nargs=-1, required=True)
@click.option("--organization", metavar="NAME", help="Whose exports they are. Default: who has one of the domains.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the organization written out, all else to standard error.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
@click.pass_obj
def exchange(config: str, files: Sequence[str], organization: Optional[str], as_toml: bool, as_json: bool) -> None:
    """Say what exports of Exchange Online hold, and how that differs from the configuration.

    JSON or CSV of Get-AcceptedDomain and Get-InboundConnector: what is taken, what is left out and why, and the lines
    for gatepost.toml. Nothing is written.
    """
    from pathlib import Path

    from gatepost.admin import import_exchange

    if as_toml and as_json:
        raise click.UsageError("--toml and --json exclude each other")
    paths = [Path(item) for item in files]
    sys.exit(import_exchange.run(as_path(config), paths, organization, as_toml=as_toml, as_json=as_json))
