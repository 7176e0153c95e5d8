# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost report` and `ledger`: their options and their help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Optional

import click

from gatepost.admin.options import as_json, as_path


@click.group()
def report() -> None:
    """Say from the ledger who relies on P2, what was refused, what was rewritten."""


_job = click.argument("job", metavar="JOB")


@report.command(
    "start",
    epilog="""\b
Examples:
  gatepost report start --type P2SenderAttribution
  gatepost report start --type P2SenderAttribution --title "November" \\
      --start-date 2026-11-01 --end-date 2026-11-22 \\
      --sender-address '*@contoso.com' --notify-address postmaster@contoso.com
  gatepost report start --type Refused --recipient-address '*@fabrikam.com'

Exit status 0 whether or not there are results; 64 wrong usage, 75 the ledger is
not complete, the store is away or the mail was not taken, 78 wrong configuration.""",
)
@click.option(
    "--type",
    "report_type",
    required=True,
    type=click.Choice(["P2SenderAttribution", "NonAcceptedDomain", "Refused", "Rewritten"], case_sensitive=False),
    help="What the report is of.",
)
@click.option("--title", metavar="TEXT", help="Its title. Default: type and dates.")
@click.option("--start-date", metavar="DATE", help="UTC, as 2026-11-01 or 2026-11-01T10:30. Default: 30 days earlier.")
@click.option("--end-date", metavar="DATE", help="Exclusive; without a time 00:00 UTC. Default: now.")
@click.option("--sender-address", metavar="PATTERN", multiple=True, help="P1 or P2; * is a wildcard. Repeatable.")
@click.option("--recipient-address", metavar="PATTERN", multiple=True, help="Recipients only; the same. Repeatable.")
@click.option("--notify-address", metavar="ADDRESS", multiple=True, help="Mail the report to this one. Repeatable.")
@as_json
@click.pass_obj
def report_start(
    config: str,
    report_type: str,
    title: Optional[str],
    start_date: Optional[str],
    end_date: Optional[str],
    sender_address: Sequence[str],
    recipient_address: Sequence[str],
    notify_address: Sequence[str],
    as_json: bool,
) -> None:
    """Make a report of the ledger, keep it, and print what it comes to.

    \b
    P2SenderAttribution  mail that could be relayed only because of its P2
    NonAcceptedDomain    mail through a connector with P1 in no accepted domain
    Refused              mail that was refused, or would be in mode enforce
    Rewritten            mail whose P1 SRS rewrote, and bounces that came back

    It begins 90 days back at the earliest, or as far back as the ledger is kept. Each address option takes up to 100
    values, also several with commas between. With P2SenderAttribution senders are of accepted domains: that is their
    P2, for the P1 of such mail is never accepted. A notify address is in an accepted domain.
    """
    from gatepost.admin import report_commands
    from gatepost.admin.report_request import Options

    options = Options(
        type=report_type,
        title=title,
        start_date=start_date,
        end_date=end_date,
        sender_addresses=tuple(sender_address),
        recipient_addresses=tuple(recipient_address),
        notify_addresses=tuple(notify_address),
    )
    sys.exit(report_commands.start(as_path(config), options, as_json=as_json))


@report.command(
    "list",
    epilog="""\b
Example:
  gatepost report list""",
)
@as_json
@click.pass_obj
def report_list(config: str, as_json: bool) -> None:
    """List the reports that are kept, the newest first."""
    from gatepost.admin import report_commands

    sys.exit(report_commands.show_list(as_path(config), as_json=as_json))


@report.command(
    "show",
    epilog="""\b
Examples:
  gatepost report show last
  gatepost report show 3f0c51aa""",
)
@_job
@as_json
@click.pass_obj
def report_show(config: str, job: str, as_json: bool) -> None:
    """Show a report: all about it, what it comes to, and what to change.

    JOB is its ID, a beginning of it that no other has, or "last".
    """
    from gatepost.admin import report_commands

    sys.exit(report_commands.show(as_path(config), job, as_json=as_json))


@report.command(
    "export",
    epilog="""\b
Examples:
  gatepost report export last --format html > report.html
  gatepost report export 3f0c51aa --format csv --output report.csv""",
)
@_job
@click.option("--format", "form", required=True, type=click.Choice(["csv", "json", "html"]), help="How to write it.")
@click.option(
    "--output",
    metavar="FILE",
    type=click.Path(),
    help="A new file, readable by its owner only. Default: standard output.",
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
@click.pass_obj
def report_export(config: str, job: str, form: str, output: Optional[str], force: bool) -> None:
    """Write a report's rows as CSV or JSON, or all of it as a page to look at.

    JOB is its ID, a beginning of it that no other has, or "last". In CSV, a cell that a spreadsheet would take for a
    formula begins with '.
    """
    from gatepost.admin import report_commands

    sys.exit(report_commands.export(as_path(config), job, form, as_path(output) if output else None, force=force))


@report.command(
    "notify",
    epilog="""\b
Examples:
  gatepost report notify --dry-run
  gatepost report notify --within 14

Exit status 75 if a mail could not be handed over; the others are tried all the same.""",
)
@click.option(
    "--within", metavar="DAYS", type=click.IntRange(1, 3650), default=30, show_default=True, help="How near it must be."
)
@click.option("--dry-run", is_flag=True, help="Say who would be told what; mail and keep nothing.")
@click.pass_obj
def report_notify(config: str, within: int, dry_run: bool) -> None:
    """Tell organizations before their enforce_from what the switch would refuse.

    Each whose enforce_from is near, and whose mail of the last 30 days would have been refused, gets a mail to its
    notify_addresses: the date, the numbers, what to change, and the report. The others get none.
    """
    from gatepost.admin import report_notify

    sys.exit(report_notify.notify(as_path(config), within, dry_run=dry_run))


@click.group()
def ledger() -> None:
    """Remove a person from the ledger."""


@ledger.command(
    epilog="""\b
Example:
  gatepost ledger erase --address bob@contoso.com"""
)
@click.option("--address", metavar="ADDRESS", required=True, help="A whole address, no wildcards.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def erase(config: str, address: str, yes: bool) -> None:
    """Delete for good all rows that name an address.

    Those of the ledger in which it is P1 (before or after SRS), P2, recipient or who mail was forwarded to, or that
    mention it in subject or Message-ID; the counts of its bounces; the rows of kept reports that name it. Reports that
    name it in title, filters or summary go as a whole, and those that are under way.
    """
    from gatepost.admin import ledger_commands

    sys.exit(ledger_commands.erase(as_path(config), address, yes=yes))
