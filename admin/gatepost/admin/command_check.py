# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost check`, `explain` and `replay`: their options and their help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import click

from gatepost.admin.options import as_path, at

if TYPE_CHECKING:
    from datetime import datetime


@click.command(
    epilog="""\b
Examples:
  gatepost check --ip 192.0.2.5 --mail-from app@vendor.example \\
      --rcpt x@gmail.com
  gatepost check --ip 192.0.2.5 --certificate mail.contoso.com \\
      --mail-from '<>' --rcpt bob@fabrikam.com
  gatepost check --ip 192.0.2.5 --mail-from app@vendor.example \\
      --header-from ceo@contoso.com --rcpt x@gmail.com --requirements legacy
  gatepost check message.eml
  gatepost check --batch hosts.csv > verdicts.csv

Exit status 0 if every recipient would be let through, 1 if the rules refuse
one, whether or not the mode is enforce; 64 wrong usage, 65 a batch has lines
that are no question, 78 wrong configuration."""
)
@click.argument("message", metavar="[MESSAGE]", type=click.Path(), required=False)
@click.option("--ip", metavar="ADDRESS", help="The client's IP address.")
@click.option("--helo", metavar="NAME", help="The client's HELO name. Information only, it never counts.")
@click.option("--certificate", metavar="NAME", multiple=True, help="A name of its trusted certificate. Repeatable.")
@click.option(
    "--certificate-file", metavar="FILE", type=click.Path(), multiple=True, help="Its certificate, as PEM. Repeatable."
)
@click.option("--authenticated", is_flag=True, help="The client has authenticated (SASL).")
@click.option("--mail-from", metavar="ADDRESS", help="Envelope sender, P1; '<>' is the null sender.")
@click.option("--header-from", metavar="ADDRESS", help="The From header, P2.")
@click.option("--rcpt", metavar="ADDRESS", multiple=True, help="A recipient. Repeatable.")
@click.option(
    "--batch", metavar="FILE", type=click.Path(), help="Many questions, as CSV or JSON lines; - is standard input."
)
@click.option(
    "--requirements", type=click.Choice(["2023-11-01", "legacy"]), help="Try this rule set, not the configured one."
)
@at
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program; of a batch, a line an answer.")
@click.pass_obj
def check(
    config: str,
    message: Optional[str],
    ip: Optional[str],
    helo: Optional[str],
    certificate: Sequence[str],
    certificate_file: Sequence[str],
    authenticated: bool,
    mail_from: Optional[str],
    header_from: Optional[str],
    rcpt: Sequence[str],
    batch: Optional[str],
    requirements: Optional[str],
    at: Optional[datetime],
    as_json: bool,
) -> None:
    """Say in words what becomes of a message, and why.

    Relayed or refused, by which condition, what to change, and the envelope afterwards. The same code decides as in
    the daemons; nothing is sent.

    MESSAGE is a file with the message, - for standard input. What no option gives is read from its headers: the client
    from Received, P1 from Return-Path, P2 from From, recipients from X-Original-To, Delivered-To or To and Cc.
    """
    from gatepost.admin import check_command

    given = check_command.Given(
        ip=ip,
        helo=helo,
        certificate_names=tuple(certificate),
        certificate_files=tuple(certificate_file),
        authenticated=authenticated,
        mail_from=mail_from,
        header_from=header_from,
        recipients=tuple(rcpt),
        message=message,
    )
    if batch is None:
        sys.exit(check_command.run(as_path(config), given, requirements, at, as_json=as_json))
    if given != check_command.NOTHING:
        raise click.UsageError("--batch has all questions in its file: only --requirements, --at and --json go with it")
    from gatepost.admin import check_batch

    sys.exit(check_batch.run(as_path(config), batch, requirements, at, as_json=as_json))


@click.command(
    epilog="""\b
Examples:
  gatepost explain FZYOX5HCUU    the reference in the reply to the client
  gatepost explain 4CgSNs5Q9s    the queue ID in the MTA's log

Exit status 0 if the message is found, 65 if not."""
)
@click.argument("name", metavar="REFERENCE|QUEUE-ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
@click.pass_obj
def explain(config: str, name: str, as_json: bool) -> None:
    """Say in words what was decided about a message that has passed, and why.

    REFERENCE stands in brackets in the reply that the client got, and in the log. The ledger has what was decided
    then; where the configuration of now would decide otherwise, that is said first.
    """
    from gatepost.admin import explain as command

    sys.exit(command.run(as_path(config), name, as_json=as_json))


@click.command(
    epilog="""\b
Examples:
  gatepost replay /var/log/mail.log*
  journalctl -u 'postfix*' -o short-iso | gatepost replay -
  gatepost -c ./try.toml replay --json mail.log.1 mail.log

Exit status 65 if there is no line of Postfix or Sendmail, 66 if a file cannot be read."""
)
@click.argument("files", metavar="FILE...", type=click.Path(), nargs=-1, required=True)
@click.option("--organization", metavar="NAME", default="", help="Only what is attributed to this one.")
@click.option(
    "--top", metavar="N", type=click.IntRange(1), default=20, show_default=True, help="How long the tables may get."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
@click.pass_obj
def replay(config: str, files: Sequence[str], organization: str, top: int, as_json: bool) -> None:
    """Say who would have been refused of the mail in a log.

    Of Postfix or Sendmail, also compressed (.gz, .bz2, .xz); "-" is standard input. Rotated files of one log are read
    the oldest first, whatever the order given. The rules in force judge what each client sent to whom, and nothing is
    written anywhere.
    """
    from gatepost.admin import replay

    sys.exit(replay.run(as_path(config), files, organization, top, as_json=as_json))
