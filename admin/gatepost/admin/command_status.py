# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost status`: its options and its help."""

from __future__ import annotations

import sys

import click

from gatepost.admin.options import as_json, as_path


@click.command(
    epilog="""\b
Examples:
  gatepost status
  gatepost status --json | jq .last_hour
  watch gatepost status

Exit status 0 if what runs is well, 1 if something is wrong with it or bypass is
on, 69 if nothing runs, 78 wrong configuration."""
)
@as_json
@click.pass_obj
def status(config: str, as_json: bool) -> None:
    """Say what runs, since when, with which configuration, and what it did in the last hour.

    The numbers are of this host: recipients by what was done, from the ledger, and the last errors that the daemons
    have logged. `gatepost doctor` looks at everything around them, too.
    """
    from gatepost.admin import status as command

    sys.exit(command.run(as_path(config), as_json=as_json))
