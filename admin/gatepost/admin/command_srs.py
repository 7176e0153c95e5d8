# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost srs`: its options and its help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import click

from gatepost.admin.options import as_path, at

if TYPE_CHECKING:
    from datetime import datetime


@click.group()
def srs() -> None:
    """Make, reverse and inspect SRS addresses; make and change their secret."""


@srs.command(
    epilog="""\b
Example:
  gatepost srs init && ls -l /var/lib/gatepost/srs.secret"""
)
@click.pass_obj
def init(config: str) -> None:
    """Make the SRS secret, unless there is one.

    The first start of a daemon does the same. Run by root, it gives the file to the owner of the state directory.
    Exit status 78 if it cannot be made, or the configuration is wrong.
    """
    from gatepost.admin import srs_commands

    srs_commands.init(as_path(config))


_addresses = click.argument("addresses", metavar="ADDRESS...", nargs=-1, required=True)


@srs.command(
    epilog="""\b
Examples:
  gatepost srs forward bob@fabrikam.com
  gatepost srs forward --mailbox john.work@contoso.com bob@fabrikam.com
  gatepost srs forward - < senders.txt > rewritten.txt"""
)
@_addresses
@click.option("--mailbox", metavar="ADDRESS", help="The mailbox that forwards the mail, if one does.")
@click.option("--organization", metavar="NAME", help="Whose relayed mail it is; default: the first one configured.")
@at
@click.pass_obj
def forward(
    config: str,
    addresses: Sequence[str],
    mailbox: Optional[str],
    organization: Optional[str],
    at: Optional[datetime],
) -> None:
    """Print the SRS address for each envelope sender; - reads them from standard input, one a line.

    Without --mailbox that is the address of relayed mail, bounces+SRS=… in the organization's default domain.
    Exit status 65 if an address could not be rewritten.
    """
    from gatepost.admin import srs_commands

    if mailbox and organization:
        raise click.UsageError("--mailbox and --organization exclude each other: the mailbox's domain names it")
    sys.exit(srs_commands.forward(as_path(config), addresses, mailbox, organization, at))


@srs.command(
    epilog="""\b
Example:
  gatepost srs reverse 'bounces+SRS=y3gtqm6c=CB=fabrikam.com=bob@contoso.com'"""
)
@_addresses
@at
@click.pass_obj
def reverse(config: str, addresses: Sequence[str], at: Optional[datetime]) -> None:
    """Print the original sender of each SRS address; - reads them from standard input, one a line.

    Exit status 65 if an address is no SRS address of this host, has a wrong hash, or has expired.
    """
    from gatepost.admin import srs_commands

    sys.exit(srs_commands.reverse(as_path(config), addresses, at))


@srs.command(
    epilog="""\b
Example:
  gatepost srs inspect 'john.work+SRS=44ldt=IX=fabrikam.com=bob@contoso.com'"""
)
@_addresses
@at
@click.pass_obj
def inspect(config: str, addresses: Sequence[str], at: Optional[datetime]) -> None:
    """Take SRS addresses apart, Exchange Online's own too; - reads them from standard input, one a line.

    Says whether the address is of this host and would be reversed. Works without a configuration file as well.
    Exit status 65 if an address is no SRS address.
    """
    from gatepost.admin import srs_commands

    sys.exit(srs_commands.inspect(as_path(config), addresses, at))


@srs.command(
    epilog="""\b
Examples:
  gatepost srs rotate            a key that signs from tomorrow, 00:00 UTC
  gatepost srs rotate --now      one that signs at once, after a leak"""
)
@click.option("--now", is_flag=True, help="Sign with it at once. Other hosts refuse its addresses until they have it.")
@click.pass_obj
def rotate(config: str, now: bool) -> None:
    """Make a new SRS key, and keep the old ones until their addresses have expired.

    The new key signs from tomorrow, 00:00 UTC (from the day after if that is less than an hour away), so that every
    host that shares the keys can have it before. The file is replaced at once, and running daemons load it. Exit status
    75 if one of them did not, 77 for who may not read or write it.
    """
    from gatepost.admin import rotate

    sys.exit(rotate.run(as_path(config), at_once=now))
