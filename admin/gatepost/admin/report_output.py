# SPDX-License-Identifier: GPL-3.0-or-later
"""Lays out reports for a person at a terminal, or a job as JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from textwrap import wrap
from typing import Optional

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gatepost.admin.configuration import printable
from gatepost.admin.report import published_fields
from gatepost.admin.report_model import Group, Job, ReportType, Summary
from gatepost.admin.report_request import DONE
from gatepost.service.report_store import IN_PROGRESS

TOP = 5
"""How many groups the end of a report shows; `report show` has them all."""
_KILLED = f"A report that stays {IN_PROGRESS} at one JobProgress for minutes was killed: start it anew."
_WIDTH = 80
_TABLE_WIDTH = 100
"""Where it does not go to a terminal."""


@contextmanager
def progress(description: str) -> Iterator[Callable[[float], None]]:
    """Show a bar on standard error, where that is a terminal; yields what to call with percent."""
    if not sys.stderr.isatty():
        yield lambda percent: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(printable(description)), total=100)
        yield lambda percent: bar.update(task, completed=percent)


def as_json(job: Job, summary: Optional[Summary]) -> str:
    """Return a job by Exchange's names and its summary."""
    return json.dumps({"job": published_fields(job), "summary": asdict(summary) if summary else None}, indent=2)


def list_as_json(jobs: Sequence[Job]) -> str:
    return json.dumps([published_fields(job) for job in jobs], indent=2)


def print_finished(job: Job, summary: Summary) -> None:
    """Print what a report comes to, and what to type next."""
    _paragraph(summary.sentence)
    if job.rows:
        _print_groups(summary.groups[:TOP], len(summary.groups) - TOP, job.type)
    click.echo(f"\nKept as job {job.job_id}: {job.rows:,} row{'s' if job.rows != 1 else ''}.")
    if job.rows:
        short = job.job_id[:8]
        more = "all of them" if job.type is ReportType.REWRITTEN else "what to change for each of them"
        click.echo(f"  gatepost report show {short}        {more}")
        click.echo(f"  gatepost report export {short} --format html > report.html")
        click.echo(f"  gatepost report export {short} --format csv > report.csv")


def print_list(jobs: Sequence[Job]) -> None:
    """Print a table of jobs."""
    if not jobs:
        click.echo("No report is kept. The first one: gatepost report start --type P2SenderAttribution")
        return
    table = _table("JobId", "Submitted (UTC)", "Status", "Rows", "Title", right=("Rows",))
    for job in jobs:
        status = job.status if job.status != DONE or job.rows else "Done, no results"
        if job.status == IN_PROGRESS:
            status = f"{IN_PROGRESS} {job.progress} %"
        table.add_row(job.job_id[:8], f"{job.submitted:%Y-%m-%d %H:%M}", status, f"{job.rows:,}", _text(job.title))
    _print(table)
    if any(job.status == IN_PROGRESS for job in jobs):
        click.echo(f"\n{_KILLED}")


def print_job(job: Job, summary: Optional[Summary]) -> None:
    """Print all of a job but its rows."""
    for name, value in published_fields(job).items():
        shown = ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)
        click.echo(f"{name:<23} : {printable(shown)}".rstrip())
    if job.status == IN_PROGRESS:
        click.echo(f"\n{_KILLED}")
    if summary is None:
        return
    click.echo()
    _paragraph(summary.sentence)
    for group in summary.groups:
        click.echo()
        _print_group(group, job.type)


def group_lines(group: Group, report_type: ReportType) -> Iterator[str]:
    """Yield the lines that say what to do about a group."""
    helo = f" ({group.helo})" if group.helo else ""
    yield f"{group.client}{helo}, P1 domain {group.sender_domain}: {_messages(group)}"
    if report_type is not ReportType.NON_ACCEPTED_DOMAIN and group.header_from:
        yield f"  P2: {', '.join(group.header_from)}"
    for indent, text in [("  ", group.problem), *(("  - ", remedy) for remedy in group.remedies)]:
        yield from wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=" " * len(indent))


def _print_group(group: Group, report_type: ReportType) -> None:
    first, *rest = group_lines(group, report_type)
    click.secho(printable(first), bold=True)
    for line in rest:
        click.echo(printable(line))


def _messages(group: Group) -> str:
    messages = f"{group.messages:,} message{'s' if group.messages != 1 else ''}"
    return messages if group.recipients == group.messages else f"{messages} to {group.recipients:,} recipients"


def _print_groups(groups: Sequence[Group], more: int, report_type: ReportType) -> None:
    why = "Why" if report_type is ReportType.REWRITTEN else "What is wrong"
    table = _table("Messages", "Client", "P1 domain", "P2 domains", why, right=("Messages",))
    for group in groups:
        domains = ", ".join(group.header_from)
        cells = (f"{group.messages:,}", group.client, group.sender_domain, domains, group.problem)
        table.add_row(*map(_text, cells))
    click.echo()
    _print(table)
    if more > 0:
        click.echo(f"… and {more} more groups of client and P1 domain.")


def _table(*columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _text(text: str) -> Text:
    return Text(printable(text))


def _print(table: Table) -> None:
    width = None if sys.stdout.isatty() else _TABLE_WIDTH
    Console(width=width, highlight=False, emoji=False, markup=False).print(table)


def _paragraph(text: str) -> None:
    click.secho("\n".join(wrap(printable(text), _WIDTH)), bold=True)
