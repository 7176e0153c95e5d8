# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost ledger erase`: removes what the ledger and the kept reports have of one address."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import click

from gatepost.admin.configuration import become_owner, printable, problems_reported
from gatepost.admin.report_commands import Ended, faults_reported
from gatepost.admin.report_run import job_and_summary, open_database, stored, wait_for_ledger
from gatepost.service.addresses import parse_address
from gatepost.service.config import load
from gatepost.service.database import Database
from gatepost.service.erasure import Erased
from gatepost.service.erasure import erase as erase_rows
from gatepost.service.report_store import ReportGone, keep, reports
from gatepost.srs import AddressError


def erase(path: Path, address: str, *, yes: bool) -> int:
    """Delete every row that names *address*; return the exit status."""
    address = address.strip().lower()
    try:
        parse_address(address)
    except AddressError:
        raise click.UsageError(f'--address: "{printable(address)}" is no address (e.g. "bob@contoso.com")') from None
    with problems_reported():
        config = load(path)
    if not yes and not _confirmed(address):
        return os.EX_USAGE
    try:
        with faults_reported():
            become_owner(config)
            if config.ledger.days:
                wait_for_ledger(config, time.time())
            database = open_database(config)
            erased = erase_rows(database, address)
            _correct_counts(database, erased)
    except Ended as ended:
        return ended.status
    _say(address, erased)
    return os.EX_OK


def _confirmed(address: str) -> bool:
    if not sys.stdin.isatty():
        raise click.UsageError("--yes is needed where nobody can be asked: this cannot be undone")
    return click.confirm(f"Delete for good all that ledger and reports have of {printable(address)}?", err=True)


def _correct_counts(database: Database, erased: Erased) -> None:
    """Have the jobs say how many rows they have by now."""
    for kept in reports(database):
        gone = erased.report_rows.get(kept.job_id, 0)
        if gone:
            job, summary = job_and_summary(kept)
            with contextlib.suppress(ReportGone):
                keep(database, stored(replace(job, rows=job.rows - gone), summary), 0, [])


def _say(address: str, erased: Erased) -> None:
    lines = {
        "rows of the ledger": erased.ledger,
        "counts of bounces": erased.bounces,
        "rows of kept reports": sum(erased.report_rows.values()),
        "whole reports: named in the question or the summary, or under way": erased.reports,
    }
    click.echo(f"Deleted of {printable(address)}:")
    for what, count in lines.items():
        click.echo(f"  {count:>9,}  {what}")
    click.echo(
        "Still there: log files of gatepost and the MTA; for ten minutes, spool files of running daemons;"
        "\nuntil they expire, compact SRS addresses, which bounces need. Reports that were exported or mailed are"
        "\nout of reach."
    )
