# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost report start`, `list`, `show` and `export`."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO, Optional

import click

from gatepost.admin import report_export, report_output
from gatepost.admin.configuration import (
    become_owner,
    complain,
    printable,
    problems_reported,
    resign_ownership,
    snapshot_with_placeholder,
)
from gatepost.admin.report_model import Job, Summary
from gatepost.admin.report_request import Options, RequestError, is_utf8, job_of
from gatepost.admin.report_run import (
    LedgerLags,
    Selection,
    job_and_summary,
    lagging_hosts,
    open_database,
    run,
    wait_for_ledger,
)
from gatepost.service.config import Config, load
from gatepost.service.database import Database
from gatepost.service.report_store import reports
from gatepost.service.store import StoreError

INTERRUPTED = 128 + signal.SIGINT


class Ended(Exception):  # noqa: N818
    """The command ends with *status*, all is said."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@contextlib.contextmanager
def faults_reported() -> Iterator[None]:
    """Turn what can go wrong with store and ledger into a line on standard error and Ended."""
    try:
        yield
    except KeyboardInterrupt:
        complain("Cancelled.")
        raise Ended(INTERRUPTED) from None
    except (LedgerLags, StoreError) as error:
        complain(str(error))
        raise Ended(os.EX_TEMPFAIL) from error
    except PermissionError as error:
        complain(f"{error.filename}: {error.strerror}; run this as root or gatepost")
        raise Ended(os.EX_NOPERM) from error
    except BrokenPipeError:
        raise  # click's business
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        raise Ended(os.EX_IOERR) from error


def start(path: Path, options: Options, *, as_json: bool) -> int:
    """Make a report, keep it, print what it comes to; return the exit status."""
    with problems_reported():
        snapshot, _ = snapshot_with_placeholder(path)
    config = snapshot.config
    job_id = str(uuid.uuid4())
    try:
        job = job_of(options, snapshot.rules, job_id, datetime.now(timezone.utc), config.ledger.days)
    except RequestError as error:
        raise click.UsageError(str(error)) from None
    try:
        with faults_reported(), _cancelled_by_sigterm():
            become_owner(config)
            database = ready_database(config, min(job.end.timestamp(), time.time()))
            with report_output.progress(job.title) as progress:
                selection = Selection(job.type.value, ledger_rows=config.ledger.rows)
                result = run(database, job, selection, snapshot.rules, progress)
            if as_json:
                click.echo(report_output.as_json(result.job, result.summary))
            else:
                report_output.print_finished(result.job, result.summary)
            if not job.notify_addresses:
                return os.EX_OK
            from gatepost.admin import report_mail

            return report_mail.notify(database, result.job, result.summary, snapshot.rules)
    except Ended as ended:
        return ended.status


@contextlib.contextmanager
def _cancelled_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C, so that the job says that it was cancelled."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ready_database(config: Config, until: float) -> Database:
    """Return the store once this host's records from before *until* are in it; say which other host's may not be.

    Raises Ended, LedgerLags, StoreError, OSError.
    """
    if not config.ledger.days:
        complain(f"{config.path}: ledger.days = 0: nothing is recorded, so there is nothing to report on")
        raise Ended(os.EX_CONFIG)
    wait_for_ledger(config, until)
    database = open_database(config)
    for host, at in lagging_hosts(database, until):
        when = f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"
        complain(f"warning: of {host} there is nothing from after {when}: it is down, or cannot reach the store")
    return database


def show_list(path: Path, *, as_json: bool) -> int:
    """Print the reports that are kept, the newest first."""
    with problems_reported():
        config = load(path)
    try:
        with faults_reported():
            become_owner(config)
            jobs = [job_and_summary(kept)[0] for kept in reports(open_database(config))]
    except Ended as ended:
        return ended.status
    if as_json:
        click.echo(report_output.list_as_json(jobs))
    else:
        report_output.print_list(jobs)
    return os.EX_OK


def show(path: Path, name: str, *, as_json: bool) -> int:
    """Print the job that *name* is the beginning of, or the last one."""
    with problems_reported():
        config = load(path)
    try:
        with faults_reported():
            become_owner(config)
            job, summary = _find(open_database(config), name)
    except Ended as ended:
        return ended.status
    if as_json:
        click.echo(report_output.as_json(job, summary))
    else:
        report_output.print_job(job, summary)
    return os.EX_OK


def export(path: Path, name: str, form: str, output: Optional[Path], *, force: bool) -> int:
    """Write a report in the *form* csv, json or html to *output*, None for standard output."""
    with problems_reported():
        config = load(path)
    try:
        with faults_reported(), _opened(output, force=force) as stream:
            become_owner(config)
            database = open_database(config)
            job, summary = _find(database, name)
            if summary is None:
                complain(f"{name}: the report is {job.status}, so there is nothing to export")
                raise Ended(os.EX_DATAERR)
            _write(stream, database, form, job, summary)
    except Ended as ended:
        return ended.status
    return os.EX_OK


def _write(stream: BinaryIO, database: Database, form: str, job: Job, summary: Summary) -> None:
    if stream is not sys.stdout.buffer:
        stream.truncate(0)  # what was there is kept until here, where all is known to be well
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="", write_through=False)
    lines = report_export.rows(database, job)
    if form == "csv":
        report_export.write_csv(text, job, lines)
    elif form == "json":
        report_export.write_json(text, job, summary, lines)
    else:
        text.write(report_export.html(job, summary, lines))
    text.flush()
    text.detach()


@contextlib.contextmanager
def _opened(output: Optional[Path], *, force: bool) -> Iterator[BinaryIO]:
    """Open *output*, None for standard output, as who called: the owner of the store may not write there."""
    if output is None:
        yield sys.stdout.buffer
        return
    made = not output.exists()
    try:
        fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (0 if force else os.O_EXCL), 0o600)
    except FileExistsError:
        complain(f"{output}: is there already; --force overwrites it")
        raise Ended(os.EX_CANTCREAT) from None
    try:
        with open(fd, "wb") as stream:
            yield stream
    except BaseException:
        if made:
            resign_ownership()
            output.unlink()
        raise


def _find(database: Database, name: str) -> tuple[Job, Optional[Summary]]:
    """Return the job that *name*, "last" or the beginning of an ID, means. Raises click.UsageError."""
    if not is_utf8(name):
        raise click.UsageError(f'"{printable(name)}" is not in UTF-8')
    found = reports(database, "" if name == "last" else name.lower())
    if name == "last":
        found = found[:1]
    if not found:
        raise click.UsageError(f'no report "{name}" is kept; gatepost report list shows those that are')
    if len(found) > 1:
        ids = ", ".join(kept.job_id[:13] for kept in found[:5])
        raise click.UsageError(f'"{name}" is the beginning of several reports\' IDs: {ids}')
    return job_and_summary(found[0])
