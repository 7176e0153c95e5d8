# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost report notify`: tells the organizations whose switch to mode enforce is near what it would refuse."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import click

from gatepost.admin import report_mail
from gatepost.admin.configuration import become_owner, complain, in_words, problems_reported, snapshot_with_placeholder
from gatepost.admin.report_commands import Ended, faults_reported, ready_database
from gatepost.admin.report_model import Job, ReportType
from gatepost.admin.report_request import NOT_STARTED, in_a_labels
from gatepost.admin.report_run import Result, Selection, run
from gatepost.admin.report_summary import NO_MAIL
from gatepost.relay import Organization
from gatepost.service.config import Config
from gatepost.service.database import Database
from gatepost.service.report_store import begins, entries
from gatepost.service.snapshot import Snapshot

LEDGER_DAYS = 30
CONDITION = "WouldRefuse"


def notify(path: Path, within_days: int, *, dry_run: bool) -> int:
    """Mail every organization that switches within so many days and is affected; return the exit status.

    That is EX_TEMPFAIL where a mail failed, or the ledger has no mail to judge by.
    """
    with problems_reported():
        snapshot, _ = snapshot_with_placeholder(path)
    now = datetime.now(timezone.utc).replace(microsecond=0)
    switching = list(_switching(snapshot.config, now, within_days))
    if not switching:
        click.echo(f"No organization has an enforce_from in the next {within_days} days: nothing to say.")
        return os.EX_OK
    try:
        with faults_reported():
            become_owner(snapshot.config)
            database = ready_database(snapshot.config, time.time())
            told = [_tell(database, snapshot, item, at, now, dry_run=dry_run) for item, at in switching]
    except Ended as ended:
        return ended.status
    return os.EX_OK if all(told) else os.EX_TEMPFAIL


def _switching(config: Config, now: datetime, within_days: int) -> Iterator[tuple[Organization, datetime]]:
    for name, settings in config.settings.items():
        at = settings.enforce_from
        if at is not None and now < at <= now + timedelta(days=within_days):
            yield config.organizations[name], at.astimezone(timezone.utc)


def _tell(
    database: Database,
    snapshot: Snapshot,
    organization: Organization,
    at: datetime,
    now: datetime,
    *,
    dry_run: bool,
) -> bool:
    """Tell one organization, if it is affected, and the person at the terminal in any case.

    False: mail failed, or the ledger can't tell.
    """
    name = organization.name
    job = _job(name, at, now)
    start, end = job.start.timestamp(), job.end.timestamp()
    if next(entries(database, CONDITION, start, end, name), None) is None:
        ledger_begins = begins(database)
        if ledger_begins is None or ledger_begins >= end:
            complain(f"{name}: {NO_MAIL}")
            return False
        click.echo(f"{name}: not affected by the switch on {in_words(at)}, so nobody is told.")
        return True
    addresses = tuple(map(in_a_labels, snapshot.config.settings[name].notify_addresses))
    job = replace(job, notify_addresses=addresses)
    selection = Selection(CONDITION, name, snapshot.config.ledger.rows)
    result = run(database, job, selection, snapshot.rules, kept=not dry_run)
    numbers = _numbers(result)
    if dry_run:
        click.echo(f"{name}: {numbers} Would be mailed to {', '.join(addresses)}.")
        return True
    click.echo(f"{name}: {numbers}")
    return _mail(database, organization, at, result, numbers)


def _job(name: str, at: datetime, now: datetime) -> Job:
    return Job(
        job_id=str(uuid.uuid4()),
        title=f"What {name} has refused from {in_words(at)} on",
        type=ReportType.REFUSED,
        status=NOT_STARTED,
        status_description="",
        progress=0,
        rows=0,
        submitted=now,
        completed=None,
        start=now - timedelta(days=LEDGER_DAYS),
        end=now,
    )


def _numbers(result: Result) -> str:
    counted = result.counted
    messages = f"{counted.messages:,} message{'s' if counted.messages != 1 else ''}"
    return (
        f"{messages} from {counted.clients.described()} in the last {LEDGER_DAYS} days "
        f"would have been refused; {counted.by_p2:,} of them relied on the From address (P2) alone."
    )


def _mail(database: Database, organization: Organization, at: datetime, result: Result, numbers: str) -> bool:
    job, summary = result.job, result.summary
    files = report_mail.attachments(database, job, summary)
    lead = [
        f"From {in_words(at)} on, this mail server enforces the relay rules for {organization.name}.",
        "Until then it only watches.",
        "",
        numbers,
    ]
    text = report_mail.body(lead, job, summary, files)
    sender = f"postmaster@{organization.default_domain}"
    subject = f"{organization.name}: mail will be refused from {at:%Y-%m-%d} on"
    all_sent = True
    for address in job.notify_addresses:
        error = report_mail.send(report_mail.message(sender, address, subject, text, files), sender, address)
        if error:
            complain(f"{organization.name}: could not be mailed to {address}: {error}")
            all_sent = False
        else:
            click.echo(f"{organization.name}: mailed to {address}.")
    return all_sent
