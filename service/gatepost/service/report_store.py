# SPDX-License-Identifier: GPL-3.0-or-later
"""What reports read of the ledger, and the reports that are kept. Each function raises StoreError.

All is read page by page, each in a transaction of its own: a report of millions of rows needs the memory of one page,
and keeps nobody from writing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import sqlalchemy as sa

from gatepost.relay import RuleSet
from gatepost.service.database import Database
from gatepost.service.ledger import REJECT, Entry
from gatepost.service.schema import REFUSED, RELIES_ON_P2, bounces, jobs, ledger, report_rows

PAGE = 2000
_ERASED_AT_ONCE = 500
_ADDRESSES = ("reverse_path", "rewritten", "header_from", "recipient", "forwarded_to")

_in_force = sa.case(
    (ledger.c.requirements == RuleSet.LEGACY.value, ledger.c.verdict_legacy), else_=ledger.c.verdict_current
)
_WOULD_REFUSE = sa.and_(_in_force == "refuse", ledger.c.action != REJECT)
CONDITIONS: dict[str, Any] = {
    "P2SenderAttribution": RELIES_ON_P2,
    "NonAcceptedDomain": sa.and_(
        ledger.c.connector != "",
        ledger.c.sender_accepted == 0,
        ledger.c.reverse_path != "",
        ledger.c.verdict_current != "inside",
    ),
    "Refused": sa.or_(REFUSED, _in_force == "refuse"),
    "WouldRefuse": _WOULD_REFUSE,
    "Rewritten": ledger.c.rewritten != "",
}
"""Which entries each report is of. WouldRefuse: what the rules refuse, and monitor mode let through."""


class Found(NamedTuple):
    """An entry, and how often and when last (Unix seconds) bounces came to what its P1 was rewritten to."""

    entry: Entry
    bounces: int
    last_bounce: Optional[float]


class Stored(NamedTuple):
    """A report as it is kept; *job* and *summary* are JSON, *submitted* is in Unix seconds."""

    job_id: str
    submitted: float
    job: str
    summary: str


@dataclass(frozen=True)
class Erased:
    """How many rows of each kind went, and how many of each report's, by its ID."""

    ledger: int
    bounces: int
    reports: int
    report_rows: dict[str, int]


def entries(
    database: Database, condition: str, start: float, end: float, organization: Optional[str] = None
) -> Iterator[list[Found]]:
    """Yield, page by page and in the order of time, what is in CONDITIONS[condition] from *start* until before *end*.

    start, end: Unix seconds. organization: only what is attributed to that one.
    """
    source = ledger.outerjoin(bounces, sa.and_(ledger.c.rewritten != "", bounces.c.address == ledger.c.rewritten))
    columns = [ledger.c.id, bounces.c["count"], bounces.c.last, *(ledger.c[name] for name in Entry._fields)]
    wanted = sa.select(*columns).select_from(source).where(CONDITIONS[condition], ledger.c.time < end)
    if organization is not None:
        wanted = wanted.where(ledger.c.organization == organization)
    wanted = wanted.order_by(ledger.c.time, ledger.c.id).limit(PAGE)
    time, last_id = start, 0
    while True:
        later = sa.or_(ledger.c.time > time, ledger.c.id > last_id)
        rows = _all(database, wanted.where(ledger.c.time >= time, later))
        if rows:
            yield [Found(Entry(*row[3:]), row[1] or 0, row[2]) for row in rows]
        if len(rows) < PAGE:
            return
        time, last_id = rows[-1].time, rows[-1].id


def begins(database: Database) -> Optional[float]:
    """Return the time of the oldest entry, None for an empty ledger."""
    oldest = sa.select(sa.func.min(ledger.c.time))
    found: Optional[float] = database.read(lambda connection: connection.execute(oldest).scalar())
    return found


def keep(database: Database, stored: Stored, first: int, rows: Sequence[str]) -> None:
    """Write a report's job and summary as they are by now, and *rows* (JSON), the first with the number *first*."""
    values = {"submitted": stored.submitted, "job": stored.job, "summary": stored.summary}
    insert = database.insert(jobs).values(job_id=stored.job_id, **values)
    upsert = insert.on_conflict_do_update(index_elements=[jobs.c.job_id], set_=values)
    numbered = [{"job_id": stored.job_id, "number": number, "row": row} for number, row in enumerate(rows, start=first)]

    def work(connection: sa.engine.Connection) -> None:
        connection.execute(upsert)
        if numbered:
            # What a transaction that is done again has written may be there already.
            connection.execute(database.insert(report_rows).on_conflict_do_nothing(), numbered)

    database.write(work)


def reports(database: Database, beginning: str = "") -> list[Stored]:
    """Return the reports that are kept whose ID has that *beginning*, the newest first."""
    columns = [jobs.c[name] for name in Stored._fields]
    wanted = sa.select(*columns).where(jobs.c.job_id.startswith(beginning, autoescape=True))
    return [Stored(*row) for row in _all(database, wanted.order_by(jobs.c.submitted.desc(), jobs.c.job_id))]


def rows(database: Database, job_id: str) -> Iterator[str]:
    """Yield a report's rows (JSON) in their order."""
    wanted = sa.select(report_rows.c.number, report_rows.c.row).where(report_rows.c.job_id == job_id)
    wanted = wanted.order_by(report_rows.c.number).limit(PAGE)
    last = -1
    while True:
        page = _all(database, wanted.where(report_rows.c.number > last))
        for row in page:
            yield row[1]
        if len(page) < PAGE:
            return
        last = page[-1][0]


def forget_rows(database: Database, job_id: str) -> None:
    """Delete a report's rows."""
    column = report_rows.c.number
    while True:
        some = sa.select(column).where(report_rows.c.job_id == job_id).order_by(column).limit(PAGE)
        delete = report_rows.delete().where(report_rows.c.job_id == job_id, column.in_(some))
        if _delete(database, [delete]) < PAGE:
            return


def forget_report(database: Database, job_id: str) -> None:
    """Delete a report, rows and all."""
    forget_rows(database, job_id)
    database.write(lambda connection: connection.execute(jobs.delete().where(jobs.c.job_id == job_id)))


def erase(database: Database, address: str, progress: Callable[[int], None] = lambda count: None) -> Erased:
    """Delete every row that names *address*, as it is or inside an SRS address; *progress* is told how many at a time.

    A report whose title, filters or notify addresses name it goes as a whole.
    """
    named = _naming(address)
    count = {"ledger": 0, "bounces": _delete(database, [bounces.delete().where(_mentions(bounces.c.address, address))])}
    for found in _pages_naming(database, address, named):
        ids = [row.id for row in found]
        own = sorted({row.rewritten for row in found if row.rewritten and row.reverse_path == address.lower()})
        count["bounces"] += _delete(database, [bounces.delete().where(bounces.c.address.in_(own))])
        count["ledger"] += _delete(database, [ledger.delete().where(ledger.c.id.in_(ids))])
        progress(len(ids))
    asked = [item.job_id for item in reports(database) if named(item.job)]
    for job_id in asked:
        forget_rows(database, job_id)
        _delete(database, [jobs.delete().where(jobs.c.job_id == job_id)])
    return Erased(count["ledger"], count["bounces"], len(asked), _erase_report_rows(database, address, named))


def _pages_naming(database: Database, address: str, named: Callable[[str], bool]) -> Iterator[list[Any]]:
    """Yield the rows of the ledger that name *address*, page by page."""
    columns = [ledger.c[name] for name in _ADDRESSES]
    wanted = sa.select(ledger.c.id, *columns).where(sa.or_(*(_mentions(column, address) for column in columns)))
    last = 0
    while True:
        page = _all(database, wanted.where(ledger.c.id > last).order_by(ledger.c.id).limit(_ERASED_AT_ONCE))
        yield [row for row in page if any(named(text) for text in row[1:])]
        if len(page) < _ERASED_AT_ONCE:
            return
        last = page[-1].id


def _erase_report_rows(database: Database, address: str, named: Callable[[str], bool]) -> dict[str, int]:
    gone: dict[str, int] = {}
    key = (report_rows.c.job_id, report_rows.c.number)
    wanted = sa.select(*key, report_rows.c.row).where(_mentions(sa.func.lower(report_rows.c.row), address))
    last: tuple[str, int] = ("", -1)
    while True:
        later = sa.or_(key[0] > last[0], sa.and_(key[0] == last[0], key[1] > last[1]))
        page = _all(database, wanted.where(later).order_by(*key).limit(_ERASED_AT_ONCE))
        for job_id in sorted({row.job_id for row in page}):
            numbers = [row.number for row in page if row.job_id == job_id and named(row.row)]
            statement = report_rows.delete().where(key[0] == job_id, key[1].in_(numbers))
            gone[job_id] = gone.get(job_id, 0) + _delete(database, [statement])
        if len(page) < _ERASED_AT_ONCE:
            return {job_id: count for job_id, count in gone.items() if count}
        last = (page[-1].job_id, page[-1].number)


def _mentions(column: Any, address: str) -> Any:
    """Return the condition that *column* has the text of *address*: a first sieve, which the database can apply."""
    address = address.lower()
    return sa.or_(column.contains(address, autoescape=True), column.contains(_in_srs(address), autoescape=True))


def _naming(address: str) -> Callable[[str], bool]:
    """Return a function that tells whether a text has *address* as a whole, or an SRS address made of it."""
    end = r"""(?=$|[\s,;:<>"'()\[\]#])"""
    whole = rf"""(?:^|[\s,;:<>"'()\[\]]){re.escape(address)}{end}"""
    find = re.compile(rf"{whole}|{re.escape(_in_srs(address))}", re.IGNORECASE).search
    return lambda text: find(text) is not None


def _in_srs(address: str) -> str:
    """Return how SRS has *address* inside: domain before user, in each of its forms."""
    local, _, domain = address.rpartition("@")
    return f"={domain}={local}@"


def _all(database: Database, statement: Any) -> list[Any]:
    return database.read(lambda connection: list(connection.execute(statement)))


def _delete(database: Database, statements: Iterable[Any]) -> int:
    """Delete in one transaction, so that SQLite overwrites it in its file; return how many rows went."""

    def work(connection: sa.engine.Connection) -> int:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        return sum(int(connection.execute(statement).rowcount) for statement in statements)

    return database.write(work)
