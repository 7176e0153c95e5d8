# SPDX-License-Identifier: GPL-3.0-or-later
"""What reports and explanations read of the ledger, and the reports that are kept. Each function raises StoreError.

All is read page by page, each in a transaction of its own: a report of millions of rows needs the memory of one page,
and keeps nobody from writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional

import sqlalchemy as sa

from gatepost.relay import RuleSet
from gatepost.service.database import Database
from gatepost.service.ledger import LEFT_TO_MTA, NOT_RELAYED, Entry
from gatepost.service.schema import REFUSED, RELIES_ON_P2, bounces, jobs, ledger, report_rows
from gatepost.service.store import StoreError

PAGE = 2000
IN_PROGRESS = "InProgress"
"""The status, in its job, of a report that is under way."""

_in_force = sa.case(
    (ledger.c.requirements == RuleSet.LEGACY.value, ledger.c.verdict_legacy), else_=ledger.c.verdict_current
)
_REFUSES = sa.and_(_in_force == "refuse", ledger.c.reason != LEFT_TO_MTA)
CONDITIONS: dict[str, Any] = {
    "P2SenderAttribution": RELIES_ON_P2,
    "NonAcceptedDomain": sa.and_(
        ledger.c.connector != "",
        ledger.c.sender_accepted == 0,
        ledger.c.reverse_path != "",
        ledger.c.verdict_current != "inside",
    ),
    "P2Unseen": sa.and_(
        ledger.c.verdict_current == "refuse", ledger.c.verdict_legacy == "", ledger.c.reason != LEFT_TO_MTA
    ),
    "Refused": sa.or_(REFUSED, _REFUSES),
    "WouldRefuse": sa.and_(_REFUSES, ledger.c.action.notin_(sorted(NOT_RELAYED))),
    "Rewritten": ledger.c.rewritten != "",
}
"""Which entries each report is of.

P2Unseen: what is refused by the rules of 2023-11-01, and may or may not rely on P2, which nobody saw. WouldRefuse: what
the rules refuse, and monitor mode let through.
"""


class Found(NamedTuple):
    """An entry, and how often and when last (Unix seconds) bounces came to what its P1 was rewritten to."""

    entry: Entry
    bounces: int
    last_bounce: Optional[float]


class Recorded(NamedTuple):
    """An entry, and the host that recorded it first."""

    entry: Entry
    host: str


class Stored(NamedTuple):
    """A report as it is kept; *job* and *summary* are JSON, *submitted* is in Unix seconds."""

    job_id: str
    submitted: float
    job: str
    summary: str


class ReportGone(StoreError):  # noqa: N818
    """The report that is to be kept was deleted after it began."""


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
        rows = fetch(database, wanted.where(ledger.c.time >= time, later))
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


def refusals_begin(database: Database, share: int) -> Optional[float]:
    """Return the time of the oldest refusal where there are *share* of them or more, so that older ones may be gone."""
    counted = sa.select(sa.func.count(), sa.func.min(ledger.c.time)).where(REFUSED)
    ((count, oldest),) = fetch(database, counted)
    return oldest if count >= share else None


def actions(database: Database, since: float, until: float, host: str) -> tuple[dict[str, int], int]:
    """Return how many recipients *host* recorded from *since* to *until*, by action, and how many the rules refuse.

    The times are in Unix seconds. Those are refused by the rules in force, whatever was done about them.
    """
    refused = sa.func.sum(sa.case((CONDITIONS["Refused"], 1), else_=0))
    counted = sa.select(ledger.c.action, sa.func.count(), refused).group_by(ledger.c.action)
    rows = fetch(database, counted.where(ledger.c.time >= since, ledger.c.time < until, ledger.c.host == host))
    return {row[0]: row[1] for row in rows if row[0]}, sum(row[2] for row in rows)


def begin(database: Database, stored: Stored) -> None:
    """Write a report that begins."""
    insert = database.insert(jobs).values(stored._asdict())
    # It may be there already, where the transaction is done again.
    database.write(lambda connection: connection.execute(insert.on_conflict_do_nothing()))


def keep(database: Database, stored: Stored, first: int, rows: Sequence[str]) -> None:
    """Write a report's job and summary as they are by now, and *rows* (JSON), the first with the number *first*.

    Raises ReportGone where the report is not there any more.
    """
    update = jobs.update().where(jobs.c.job_id == stored.job_id).values(job=stored.job, summary=stored.summary)
    numbered = [{"job_id": stored.job_id, "number": number, "row": row} for number, row in enumerate(rows, start=first)]

    def work(connection: sa.engine.Connection) -> None:
        if connection.execute(update).rowcount == 0:
            raise ReportGone("the report was deleted before it was done, as gatepost ledger erase does; start it anew")
        if numbered:
            # What a transaction that is done again has written may be there already.
            connection.execute(database.insert(report_rows).on_conflict_do_nothing(), numbered)

    database.write(work)


def reports(database: Database, beginning: str = "") -> list[Stored]:
    """Return the reports that are kept whose ID has that *beginning*, the newest first."""
    columns = [jobs.c[name] for name in Stored._fields]
    wanted = sa.select(*columns).where(jobs.c.job_id.startswith(beginning, autoescape=True))
    return [Stored(*row) for row in fetch(database, wanted.order_by(jobs.c.submitted.desc(), jobs.c.job_id))]


def rows(database: Database, job_id: str) -> Iterator[str]:
    """Yield a report's rows (JSON) in their order."""
    wanted = sa.select(report_rows.c.number, report_rows.c.row).where(report_rows.c.job_id == job_id)
    wanted = wanted.order_by(report_rows.c.number).limit(PAGE)
    last = -1
    while True:
        page = fetch(database, wanted.where(report_rows.c.number > last))
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
        if delete(database, report_rows.delete().where(report_rows.c.job_id == job_id, column.in_(some))) < PAGE:
            return


def forget_report(database: Database, job_id: str) -> None:
    """Delete a report, rows and all."""
    forget_rows(database, job_id)
    delete(database, jobs.delete().where(jobs.c.job_id == job_id))
    forget_rows(database, job_id)  # that it added meanwhile, being under way


def message(database: Database, reference: str) -> list[Recorded]:
    """Return the entries of a message, one for each recipient, in their order."""
    columns = [ledger.c.host, *(ledger.c[name] for name in Entry._fields)]
    wanted = sa.select(*columns).where(ledger.c.reference == reference).order_by(ledger.c.time, ledger.c.recipient)
    return [Recorded(Entry(*row[1:]), row[0]) for row in fetch(database, wanted)]


def references(database: Database, queue_id: str) -> list[tuple[str, float]]:
    """Return the messages that had *queue_id* at either hop, with their times, the newest first: IDs come again."""
    if not queue_id:
        return []
    at = sa.func.min(ledger.c.time)
    either = sa.or_(ledger.c.queue_id == queue_id, ledger.c.egress_queue_id == queue_id)
    known = ledger.c.id.in_(sa.select(ledger.c.id).where(either))  # by itself, for it reads nothing but an index
    wanted = sa.select(ledger.c.reference, at).where(known).group_by(ledger.c.reference).order_by(at.desc())
    return [(row[0], row[1]) for row in fetch(database, wanted)]


def fetch(database: Database, statement: Any) -> list[Any]:
    """Return the rows that *statement* selects."""
    return database.read(lambda connection: list(connection.execute(statement)))


def delete(database: Database, statement: Any) -> int:
    """Execute *statement*, a DELETE; return how many rows went. SQLite overwrites them in its file."""

    def work(connection: sa.engine.Connection) -> int:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA secure_delete = ON")
        return int(connection.execute(statement).rowcount)

    return database.write(work)
