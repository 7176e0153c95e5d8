# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a kept report as CSV, JSON or HTML, row by row from the store."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from typing import TextIO, Union, overload

from gatepost.admin.configuration import printable
from gatepost.admin.report import published_fields
from gatepost.admin.report_model import Cell, Job, Row, Summary
from gatepost.service.database import Database
from gatepost.service.report_store import rows as stored_rows

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What makes spreadsheets take a cell for a formula, or begin one in the next."""
_begins_after_semicolon = re.compile(r"""(?<=;)(?=[\s"]*[=+\-@＝＋－＠])""")


def rows(database: Database, job: Job) -> Iterator[Row]:
    """Yield the report's rows, cells in the order of job.type.columns. Raises StoreError, as all here do."""
    width = len(job.type.columns)
    for line in stored_rows(database, job.job_id):
        row = json.loads(line)
        yield row + [""] * (width - len(row))  # kept by a release that knew fewer


def write_csv(output: TextIO, job: Job, lines: Iterator[Row]) -> None:
    """Write CSV (RFC 4180) with a header; *output* must leave line ends as they are."""
    writer = csv.writer(output, quoting=csv.QUOTE_ALL)
    writer.writerow(job.type.columns)
    writer.writerows([safe_cell(cell) for cell in row] for row in lines)


def safe_cell(cell: Cell) -> Cell:
    """Return a cell that no spreadsheet takes for a formula, also if it splits at ;, without control characters.

    Numbers are ours.
    """
    if isinstance(cell, int):
        return cell
    return ("'" if cell.startswith(_FORMULA) else "") + _begins_after_semicolon.sub("'", printable(cell))


def write_json(output: TextIO, job: Job, summary: Summary, lines: Iterator[Row]) -> None:
    """Write one JSON object, with a row a line; all in ASCII, so that a terminal can bear it."""
    columns = job.type.columns
    output.write(f'{{"job": {json.dumps(published_fields(job))},\n"summary": {json.dumps(asdict(summary))},\n"rows": [')
    separator = "\n"
    for row in lines:
        output.write(separator + json.dumps(dict(zip(columns, row))))
        separator = ",\n"
    output.write("\n]}\n")


def html(job: Job, summary: Summary, lines: Iterator[Row]) -> str:
    """Return the page to look at."""
    from gatepost.admin import report_page  # loads jinja2

    return report_page.render(job, summary, _Rows(list(islice(lines, report_page.ROWS)), job.rows))


class _Rows(Sequence[Row]):
    """The first of *count* rows: the page says how many there are, and shows only so many."""

    def __init__(self, first: list[Row], count: int) -> None:
        self._first = first
        self._count = max(count, len(first))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: Union[int, slice]) -> Union[Row, list[Row]]:
        return self._first[index]
