# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a report: waits until the ledger is complete, reads it, and keeps what comes of it under the job's ID."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Optional

from gatepost.admin.report import Messages, job_fields, job_from, rows_of, summary_from
from gatepost.admin.report_model import COMPLETE, NO_RESULTS, Job, ReportType, Row, Summary
from gatepost.admin.report_request import CANCELLED, DONE, FAILED, wanted, wanted_recipients
from gatepost.admin.report_summary import Summarizer, limited
from gatepost.relay import Rules
from gatepost.service.config import Config, LedgerConfig
from gatepost.service.database import Database
from gatepost.service.ledger_store import REFUSED_SHARE, loaded_until
from gatepost.service.loader import LOADED_NAME, TURN_S, Loader
from gatepost.service.report_store import (
    IN_PROGRESS,
    PAGE,
    Stored,
    begin,
    begins,
    entries,
    forget_rows,
    keep,
    refusals_begin,
)
from gatepost.service.store import StoreError

WAIT_S = 60.0
_POLL_S = 0.1
_encode = json.JSONEncoder(ensure_ascii=False).encode
LAG_S = 120.0


class LedgerLags(Exception):  # noqa: N818
    """What has passed until the report's end is not in the ledger; the text says what is in the way."""


@dataclass(frozen=True)
class Selection:
    """Which entries a job is of: those of *condition* (report_store.CONDITIONS), perhaps of one organization only.

    ledger_rows: how many the ledger keeps.
    """

    condition: str
    organization: Optional[str] = None
    ledger_rows: int = LedgerConfig.rows


def open_database(config: Config) -> Database:
    """Return the store for a report, whose statements may take as long as they need. Raises StoreError."""
    database = Database(config.store_url, statement_s=0)
    database.open()
    return database


def wait_for_ledger(config: Config, until: float, wait_s: float = WAIT_S, load_s: float = math.inf) -> None:
    """Return when this host's records from before *until* (Unix seconds) are in the store.

    Where no daemon does that, it is done here, for about *load_s*. Raises LedgerLags, StoreError, OSError.
    """
    loader = Loader(config)
    end, load_end = time.monotonic() + wait_s, time.monotonic() + load_s
    try:
        while not loader.lock():
            loaded = _loaded(config)
            if loaded >= until:
                return
            if time.monotonic() >= end:
                raise LedgerLags(_lag(config, loaded))
            time.sleep(_POLL_S)
        while not loader.load(min(TURN_S, load_s)):
            if time.monotonic() >= load_end:
                raise LedgerLags(_lag(config, _loaded(config)))
    finally:
        loader.close()


def _loaded(config: Config) -> float:
    try:
        return (config.ledger_folder / LOADED_NAME).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _lag(config: Config, loaded: float) -> str:
    since = f"since {datetime.fromtimestamp(loaded, timezone.utc):%Y-%m-%d %H:%M:%S} UTC" if loaded else "yet"
    return (
        f"{config.ledger_folder}: the daemon has not put all records into the store {since}; its log says why, "
        "in lines that begin with ledger:"
    )


def lagging_hosts(database: Database, until: float) -> list[tuple[str, float]]:
    """Return the other hosts whose records from before *until* may not all be there, and up to when they are."""
    here = os.uname().nodename
    return [(host, at) for host, at in sorted(loaded_until(database).items()) if host != here and at < until - LAG_S]


@dataclass(frozen=True)
class Result:
    """A report that is done; counted: what its summary was made of."""

    job: Job
    summary: Summary
    counted: Summarizer


def run(
    database: Database,
    job: Job,
    selection: Selection,
    rules: Rules,
    progress: Callable[[float], None] = lambda percent: None,
    *,
    kept: bool = True,
) -> Result:
    """Make the report *job* and keep it, unless not *kept*. *progress* is told how far it is, in percent.

    Raises StoreError, KeyboardInterrupt; the job that is kept says so, and has no rows then.
    """
    job = replace(job, status=IN_PROGRESS)
    summarizer = Summarizer(job)
    output = _Output(database if kept else None, job)
    try:
        output.begin()
        _collect(database, selection, output, summarizer, progress)
        output.save()
        if job.type is ReportType.P2_SENDER_ATTRIBUTION:
            summarizer.p2_unseen = _p2_unseen(database, job)
        summary = _summary(database, job, selection, summarizer, rules)
        done = NO_RESULTS if output.job.rows == 0 else COMPLETE
        output.job = replace(
            output.job, status=DONE, status_description=done, progress=100, completed=datetime.now(timezone.utc)
        )
        output.save(summary)
    except BaseException as error:
        output.fail(error)
        raise
    return Result(output.job, summary, summarizer)


def _collect(
    database: Database,
    selection: Selection,
    output: _Output,
    summarizer: Summarizer,
    progress: Callable[[float], None],
) -> None:
    job = output.job
    let_through = wanted(job)
    rows, rest = rows_of(job)
    start, end = job.start.timestamp(), job.end.timestamp()
    for page in entries(database, selection.condition, start, end, selection.organization):
        for found in page:
            if let_through(found.entry):
                summarizer.add(found)
                output.add(rows(found))
        percent = 100 * (page[-1].entry.time - start) / (end - start)
        progress(percent)
        output.job = replace(output.job, progress=int(percent))
    output.add(rest())


def _p2_unseen(database: Database, job: Job) -> int:
    """Return how many messages would rely on P2 for all that is known, for nobody saw it."""
    let_through, messages = wanted_recipients(job), Messages()
    pages = entries(database, "P2Unseen", job.start.timestamp(), job.end.timestamp())
    return sum(let_through(found.entry) and messages.first(found.entry.reference) for page in pages for found in page)


def _summary(database: Database, job: Job, selection: Selection, summarizer: Summarizer, rules: Rules) -> Summary:
    refusals = None
    if job.type is ReportType.REFUSED:
        refusals = refusals_begin(database, selection.ledger_rows // REFUSED_SHARE)
    return limited(summarizer.summary(rules), job, begins(database), refusals)


class _Output:
    """Writes a job and its rows into the store, so many at a time. database: None writes nothing."""

    def __init__(self, database: Optional[Database], job: Job) -> None:
        self._database = database
        self._rows: list[str] = []
        self._written = 0
        self.job = job

    def begin(self) -> None:
        if self._database is not None:
            begin(self._database, stored(self.job, None))

    def add(self, rows: list[Row]) -> None:
        self._rows += map(_encode, rows)
        if len(self._rows) >= PAGE:
            self.save()

    def save(self, summary: Optional[Summary] = None) -> None:
        rows, self._rows = self._rows, []
        first, self._written = self._written, self._written + len(rows)
        self.job = replace(self.job, rows=self._written)
        if self._database is not None:
            keep(self._database, stored(self.job, summary), first, rows)

    def fail(self, error: BaseException) -> None:
        """Keep the job as one that failed, where the store allows that."""
        cancelled = isinstance(error, KeyboardInterrupt)
        self._rows, self._written = [], 0
        self.job = replace(
            self.job,
            status=CANCELLED if cancelled else FAILED,
            completed=datetime.now(timezone.utc),
            error_description="" if cancelled else str(error) or type(error).__name__,
        )
        with contextlib.suppress(StoreError):
            self.save()
            if self._database is not None:
                forget_rows(self._database, self.job.job_id)


def stored(job: Job, summary: Optional[Summary]) -> Stored:
    """Return a job as it is kept."""
    text = json.dumps(asdict(summary), ensure_ascii=False) if summary else ""
    return Stored(job.job_id, job.submitted.timestamp(), json.dumps(job_fields(job), ensure_ascii=False), text)


def job_and_summary(kept: Stored) -> tuple[Job, Optional[Summary]]:
    """Return what `stored` was given."""
    return job_from(json.loads(kept.job)), summary_from(json.loads(kept.summary)) if kept.summary else None
