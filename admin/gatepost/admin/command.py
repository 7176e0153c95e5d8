# SPDX-License-Identifier: GPL-3.0-or-later
"""The `gatepost` command: its options and its help. What a subcommand does is loaded when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Optional

import click

from gatepost.service.paths import DEFAULT_PATH
from gatepost.service.version import __version__

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

click.UsageError.exit_code = os.EX_USAGE  # sysexits.h has 64 where click has 2


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  gatepost config init           write a configuration to start from
  gatepost config check          say whether the configuration is right
  gatepost check --ip 192.0.2.5 --mail-from app@vendor.example \\
      --rcpt x@gmail.com
  gatepost explain FZYOX5HCUU    say why a message was refused
  gatepost run                   run milter and policy daemon

Exit statuses are those of sysexits.h: 64 wrong usage, 65 wrong data, 78 wrong
configuration. The manual is in gatepost(8) and gatepost.toml(5).""",
)
@click.version_option(__version__, prog_name="gatepost", message="%(prog)s %(version)s")
@click.option(
    "-c",
    "--config",
    metavar="FILE",
    default=DEFAULT_PATH,
    envvar="GATEPOST_CONFIG",
    show_default=True,
    help="The configuration file.",
)
@click.pass_context
def main(context: click.Context, config: str) -> None:
    """Exchange Online's relay requirements and SRS for Postfix."""
    context.obj = config
    if "NO_COLOR" in os.environ:
        context.color = False


@main.command(
    epilog="""\b
Examples:
  gatepost run                   both, with /etc/gatepost/gatepost.toml
  gatepost -c ./gatepost.toml run"""
)
@click.pass_obj
def run(config: str) -> None:
    """Run the milter and the policy daemon under one supervisor.

    It stays in the foreground and logs to standard error. SIGHUP loads the configuration anew, SIGTERM ends it.
    """
    _daemons(config, "milter", "policyd")


@main.command(
    epilog="""\b
Example:
  gatepost milter                where policyd runs in a unit of its own"""
)
@click.pass_obj
def milter(config: str) -> None:
    """Run the milter alone."""
    _daemons(config, "milter")


@main.command(
    epilog="""\b
Example:
  gatepost policyd               where Postfix uses no milter"""
)
@click.pass_obj
def policyd(config: str) -> None:
    """Run the policy daemon alone."""
    _daemons(config, "policyd")


def _daemons(config: str, *names: str) -> None:
    from gatepost.admin.run import run as run_daemons

    sys.exit(run_daemons(_path(config), names))


def _path(config: str) -> Path:
    from pathlib import Path

    return Path(config)


@main.group("config")
def config_group() -> None:
    """Write, check and show the configuration."""


@config_group.command(
    epilog="""\b
Examples:
  gatepost config init           write /etc/gatepost/gatepost.toml
  gatepost -c ./try.toml config init
  gatepost config init --stdout | less"""
)
@click.option("--stdout", is_flag=True, help="Print it and write no file.")
@click.pass_obj
def init(config: str, stdout: bool) -> None:
    """Write a configuration to start from, every key of it explained.

    It is valid as it stands and refuses nothing (mode = "monitor"). A file that exists is never overwritten.
    """
    from gatepost.admin import config_commands

    config_commands.init(None if stdout else _path(config))


@config_group.command(
    "check",
    epilog="""\b
Example:
  gatepost config check && systemctl reload gatepost""",
)
@click.pass_obj
def config_check(config: str) -> None:
    """Say whether the configuration is right; list everything that is wrong with it.

    Exit status 0 if it can be used, 78 if not.
    """
    from gatepost.admin import config_commands

    config_commands.check(_path(config))


@config_group.command(
    epilog="""\b
Examples:
  gatepost config show
  gatepost config show | grep -v '# default'"""
)
@click.pass_obj
def show(config: str) -> None:
    """Show the configuration in force, defaults included and marked, as TOML. It holds no secret."""
    from gatepost.admin import config_commands

    config_commands.show(_path(config))


def _day(context: click.Context, option: click.Parameter, value: Optional[str]) -> Optional[datetime]:
    from datetime import datetime

    if value is None:
        return None
    try:
        return datetime.strptime(value, "%Y-%m-%d")
    except ValueError:
        raise click.BadParameter(f'"{value}" is no date (YYYY-MM-DD)', context, option) from None


_at = click.option("--at", metavar="YYYY-MM-DD", callback=_day, help="Judge as on that day (UTC), not today.")


@main.command(
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
@click.argument("message", metavar="[MESSAGE]", required=False)
@click.option("--ip", metavar="ADDRESS", help="The client's IP address.")
@click.option("--helo", metavar="NAME", help="The client's HELO name. Information only, it never counts.")
@click.option("--certificate", metavar="NAME", multiple=True, help="A name of its trusted certificate. Repeatable.")
@click.option("--certificate-file", metavar="FILE", multiple=True, help="Its certificate, as PEM. Repeatable.")
@click.option("--authenticated", is_flag=True, help="The client has authenticated (SASL).")
@click.option("--mail-from", metavar="ADDRESS", help="Envelope sender, P1; '<>' is the null sender.")
@click.option("--header-from", metavar="ADDRESS", help="The From header, P2.")
@click.option("--rcpt", metavar="ADDRESS", multiple=True, help="A recipient. Repeatable.")
@click.option("--batch", metavar="FILE", help="Many questions, as CSV or JSON lines; - is standard input.")
@click.option(
    "--requirements", type=click.Choice(["2023-11-01", "legacy"]), help="Try this rule set, not the configured one."
)
@_at
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
        sys.exit(check_command.run(_path(config), given, requirements, at, as_json=as_json))
    if given != check_command.NOTHING:
        raise click.UsageError("--batch has all questions in its file: only --requirements, --at and --json go with it")
    from gatepost.admin import check_batch

    sys.exit(check_batch.run(_path(config), batch, requirements, at, as_json=as_json))


@main.command(
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

    sys.exit(command.run(_path(config), name, as_json=as_json))


@main.command(
    epilog="""\b
Examples:
  gatepost replay /var/log/mail.log*
  journalctl -u 'postfix*' -o short-iso | gatepost replay -
  gatepost -c ./try.toml replay --json mail.log.1 mail.log

Exit status 65 if there is no line of Postfix or Sendmail, 66 if a file cannot be read."""
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
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

    sys.exit(replay.run(_path(config), files, organization, top, as_json=as_json))


@main.group()
def srs() -> None:
    """Make, reverse and inspect SRS addresses."""


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
@_at
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
    sys.exit(srs_commands.forward(_path(config), addresses, mailbox, organization, at))


@srs.command(
    epilog="""\b
Example:
  gatepost srs reverse 'bounces+SRS=y3gtqm6c=CB=fabrikam.com=bob@contoso.com'"""
)
@_addresses
@_at
@click.pass_obj
def reverse(config: str, addresses: Sequence[str], at: Optional[datetime]) -> None:
    """Print the original sender of each SRS address; - reads them from standard input, one a line.

    Exit status 65 if an address is no SRS address of this host, has a wrong hash, or has expired.
    """
    from gatepost.admin import srs_commands

    sys.exit(srs_commands.reverse(_path(config), addresses, at))


@srs.command(
    epilog="""\b
Example:
  gatepost srs inspect 'john.work+SRS=44ldt=IX=fabrikam.com=bob@contoso.com'"""
)
@_addresses
@_at
@click.pass_obj
def inspect(config: str, addresses: Sequence[str], at: Optional[datetime]) -> None:
    """Take SRS addresses apart, Exchange Online's own too; - reads them from standard input, one a line.

    Says whether the address is of this host and would be reversed. Works without a configuration file as well.
    Exit status 65 if an address is no SRS address.
    """
    from gatepost.admin import srs_commands

    sys.exit(srs_commands.inspect(_path(config), addresses, at))


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

    sys.exit(rotate.run(_path(config), at_once=now))


@main.group("import")
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

    sys.exit(import_postsrsd.run([Path(item) for item in sources], None if stdout else _path(config), domain))


@import_group.command(
    epilog="""\b
Examples:
  Get-AcceptedDomain | ConvertTo-Json > domains.json       (in PowerShell)
  Get-InboundConnector | ConvertTo-Json > connectors.json
  gatepost import exchange domains.json connectors.json

Exit status 65 for a file that is no such export, 66 for one that can't be
read, 78 where the configuration could not be used with them."""
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
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
    sys.exit(import_exchange.run(_path(config), paths, organization, as_toml=as_toml, as_json=as_json))


@main.command(
    epilog="""\b
Examples:
  gatepost bypass on             mail passes untouched from this moment
  gatepost bypass status || echo "bypass is on"
  gatepost bypass off"""
)
@click.argument("action", metavar="on|off|status", type=click.Choice(["on", "off", "status"]))
@click.pass_obj
def bypass(config: str, action: str) -> None:
    """Take gatepost out of the way of mail, or back in.

    That happens at once and without touching the MTA's configuration: mail passes, nothing is refused or
    rewritten. It lasts until `gatepost bypass off`, restarts included.
    Exit status of status: 0 if bypass is off, 1 if it is on.
    """
    from gatepost.admin import bypass

    sys.exit(bypass.run(_path(config), action))


@main.group()
def report() -> None:
    """Say from the ledger who relies on P2, what was refused, what was rewritten."""


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program.")
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
@_json
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
    sys.exit(report_commands.start(_path(config), options, as_json=as_json))


@report.command(
    "list",
    epilog="""\b
Example:
  gatepost report list""",
)
@_json
@click.pass_obj
def report_list(config: str, as_json: bool) -> None:
    """List the reports that are kept, the newest first."""
    from gatepost.admin import report_commands

    sys.exit(report_commands.show_list(_path(config), as_json=as_json))


@report.command(
    "show",
    epilog="""\b
Examples:
  gatepost report show last
  gatepost report show 3f0c51aa""",
)
@_job
@_json
@click.pass_obj
def report_show(config: str, job: str, as_json: bool) -> None:
    """Show a report: all about it, what it comes to, and what to change.

    JOB is its ID, a beginning of it that no other has, or "last".
    """
    from gatepost.admin import report_commands

    sys.exit(report_commands.show(_path(config), job, as_json=as_json))


@report.command(
    "export",
    epilog="""\b
Examples:
  gatepost report export last --format html > report.html
  gatepost report export 3f0c51aa --format csv --output report.csv""",
)
@_job
@click.option("--format", "form", required=True, type=click.Choice(["csv", "json", "html"]), help="How to write it.")
@click.option("--output", metavar="FILE", help="A new file, readable by its owner only. Default: standard output.")
@click.option("--force", is_flag=True, help="Overwrite the file.")
@click.pass_obj
def report_export(config: str, job: str, form: str, output: Optional[str], force: bool) -> None:
    """Write a report's rows as CSV or JSON, or all of it as a page to look at.

    JOB is its ID, a beginning of it that no other has, or "last". In CSV, a cell that a spreadsheet would take for a
    formula begins with '.
    """
    from gatepost.admin import report_commands

    sys.exit(report_commands.export(_path(config), job, form, _path(output) if output else None, force=force))


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

    sys.exit(report_notify.notify(_path(config), within, dry_run=dry_run))


@main.group()
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

    sys.exit(ledger_commands.erase(_path(config), address, yes=yes))


@main.command(
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
