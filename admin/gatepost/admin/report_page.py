# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a report's HTML page: one file that needs no network, for a person to read, print or send on.

Nearly everything on it comes from strangers' mail. So every expression of the template is escaped, characters that
could act on the reader's screen become "?", and the page forbids itself any script and style but its own, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gatepost.admin.report_model import Job, ReportType, Row, Summary

ROWS = 2_000
GROUPS = 50
BARS = 12
LABEL = 38
"""How many characters of a name stand at its bar: what a phone has room for."""
DAY_LABELS = 6

MEANING = {
    ReportType.P2_SENDER_ATTRIBUTION: "mail that only its P2 would let through",
    ReportType.NON_ACCEPTED_DOMAIN: "mail through a connector whose P1 is in no accepted domain",
    ReportType.REFUSED: "mail that was refused, put off, held or tagged, or would have been in mode enforce",
    ReportType.REWRITTEN: "mail that left with a P1 that SRS rewrote",
}


@dataclass(frozen=True)
class Bar:
    """One line of a chart: *name* in full and as *label*, how often, and its length in percent of the longest."""

    name: str
    label: str
    count: int
    percent: float


@dataclass(frozen=True)
class Chart:
    """The longest bars, and what is left: how many *others* there are and what they count together."""

    bars: tuple[Bar, ...]
    others: int
    others_count: int


@dataclass(frozen=True)
class Days:
    """A column for each day, *step* percent apart; every *label_every*th has its date below.

    room: the widest screen ("phone", "screen" or "none") that is too narrow for a number at every column; the
    highest column, *peak*, has one in any case.
    """

    columns: tuple[Bar, ...]
    step: float
    label_every: int
    peak: int
    room: str


def render(job: Job, summary: Summary, rows: Sequence[Row]) -> str:
    """Return the page for *job*. The cells of each row are in the order of job.type.columns.

    The table has the first ROWS rows, and no column that is empty in all of them.
    """
    environment = Environment(
        autoescape=True, finalize=_harmless, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = "{:,}".format
    environment.filters["minute"] = "{:%Y-%m-%d %H:%M}".format
    source = files("gatepost.admin").joinpath("report_page.html").read_text(encoding="utf-8")
    shown = rows[:ROWS]
    filled = [any(row[column] != "" for row in shown) for column in range(len(job.type.columns))]
    return environment.from_string(source).render(
        style_hash=_hash(source, "style"),
        script_hash=_hash(source, "script"),
        job=job,
        meaning=MEANING[job.type],
        summary=summary,
        days=_days(summary.by_day),
        clients=_chart(summary.by_client),
        domains=_chart(summary.by_domain),
        groups=summary.groups[:GROUPS],
        more_groups=len(summary.groups[GROUPS:]),
        columns=_chosen(job.type.columns, filled),
        empty=_chosen(job.type.columns, [not there for there in filled]),
        rows=[_chosen(row, filled) for row in shown],
        more_rows=len(rows) - len(shown),
    )


def _harmless(value: object) -> object:
    """Return *value* as text without control, bidirectional and other invisible characters; markup is ours."""
    if isinstance(value, Markup):
        return value
    return "".join(character if character.isprintable() else "?" for character in str(value))


def _hash(source: str, element: str) -> str:
    """Return the source expression (CSP Level 2, 4.2.5) for the one *element* in the template."""
    found = re.search(f"<{element}>(.*?)</{element}>", source, re.DOTALL)
    text = found[1] if found else ""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _chosen(row: Row, filled: Sequence[bool]) -> Row:
    return [cell for cell, wanted in zip(row, filled) if wanted]


def _bar(name: str, label: str, count: int, highest: int) -> Bar:
    return Bar(name, label, count, round(100 * count / max(highest, 1), 2))


def _chart(counts: Sequence[tuple[str, int]]) -> Chart:
    top, rest = counts[:BARS], counts[BARS:]
    highest = max((count for _, count in top), default=0)
    bars = tuple(_bar(name, _short(name), count, highest) for name, count in top)
    return Chart(bars, len(rest), sum(count for _, count in rest))


def _short(name: str) -> str:
    """Return *name*, its middle left out where it is long: a domain's end matters as much as its beginning."""
    half = LABEL // 2
    return name if len(name) <= LABEL else f"{name[:half]}…{name[1 - half :]}"


def _days(by_day: Sequence[tuple[str, int]]) -> Days:
    highest = max((count for _, count in by_day), default=0)
    columns = tuple(_bar(day, f"{date.fromisoformat(day):%-d %b}", count, highest) for day, count in by_day)
    peak = next((place for place, column in enumerate(columns) if column.count == highest), 0)
    numbers_px = len(columns) * (len(f"{highest:,}") * 7 + 4)
    room = "none" if numbers_px <= 320 else "phone" if numbers_px <= 640 else "screen"
    return Days(columns, 100 / max(len(columns), 7), -(-len(columns) // DAY_LABELS) or 1, peak, room)
