# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor`: its options and its help."""

from __future__ import annotations

import sys
from typing import Optional

import click

from gatepost.admin.options import as_json, as_path


def _addresses(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    from ipaddress import ip_address

    try:
        return tuple(str(ip_address(value)) for value in values)
    except ValueError as error:
        raise click.BadParameter(str(error), context, option) from None


@click.command(
    epilog="""\b
Examples:
  sudo gatepost doctor
  sudo gatepost doctor --quiet || echo "look at gatepost"
  sudo gatepost doctor --json | jq -r '.findings[] | .severity + " " + .what'
  sudo gatepost doctor --config-directory /etc/postfix-out"""
)
@click.option(
    "--config-directory",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False),
    help="Postfix's, of another instance than the default one.",
)
@click.option(
    "--address",
    "addresses",
    metavar="IP",
    multiple=True,
    callback=_addresses,
    help="From which mail leaves, as others see it; behind NAT nothing here tells. Repeatable.",
)
@click.option("-q", "--quiet", is_flag=True, help="Leave out what is well.")
@as_json
@click.pass_obj
def doctor(
    config: str, config_directory: Optional[str], addresses: tuple[str, ...], quiet: bool, as_json: bool
) -> None:
    """Look at the real thing and say what is wrong, why it matters and what mends it.

    Nothing is changed. It compares the MTA's running configuration with what gatepost needs, asks the daemons, DNS
    and the store, and looks at certificates, keys and file modes. Run it as root, which may read all of that.
    Exit status: 0 if all is well, 1 with warnings or where something could not be looked at, 2 with errors,
    78 if gatepost's configuration cannot be used.
    """
    from gatepost.admin.doctor import run as doctor

    directory = as_path(config_directory) if config_directory else None
    sys.exit(doctor.run(as_path(config), config_directory=directory, addresses=addresses, as_json=as_json, quiet=quiet))
