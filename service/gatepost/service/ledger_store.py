# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger in the database: taking records in, forgetting them. Each function raises StoreError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Optional

import sqlalchemy as sa

from gatepost.service.database import Database, insert_rows
from gatepost.service.ledger import Bounced, Entry, Record, merged
from gatepost.service.report_store import forget_report
from gatepost.service.schema import REFUSED, bounces, hosts, jobs, ledger, spools

REFUSED_SHARE = 10
"""Refusals may be one in so many of the rows that the ledger keeps."""
TRIM_LIMIT = 20_000
"""How many rows one call of `trim` deletes. Before that it counts them all, which takes long itself."""
TRIM_CHUNK = 1000
SAME_BOUNCE_S = 60.0
"""The map is asked several times for one bounce: look-ups of one address within this count as one."""
SPOOL_DAYS = 30
"""How long the position in a spool file that is gone is remembered."""
_DAY_S = 86400.0
_VARIABLES = 900  # before 3.32 SQLite takes 999 in one statement
# Made once: to make them costs more than to execute them.
_OF_REFERENCES = sa.select(ledger.c.id, *(ledger.c[name] for name in Entry._fields)).where(
    ledger.c.reference.in_(sa.bindparam("references", expanding=True))
)
_CHANGE = (
    ledger.update()
    .where(ledger.c.id == sa.bindparam("id_"))
    .values({name: sa.bindparam(name) for name in Entry._fields})
)


class Batch(NamedTuple):
    """What stands in the spool file *file* from octet *begin* to octet *end*."""

    file: str
    begin: int
    end: int
    records: Sequence[Record]


def take_in(database: Database, batch: Batch, host: str, now: float) -> int:
    """Put *batch* into the ledger, with how far its file is taken in; return that.

    It is something else than batch.end where the batch begins elsewhere than the store had got to: an answer got lost
    on its way. Nothing is taken in then.
    """

    def work(connection: sa.engine.Connection) -> int:
        position = connection.execute(sa.select(spools.c.position).where(spools.c.file == batch.file)).scalar() or 0
        if position != batch.begin:
            return int(position)
        _add_entries(connection, [item for item in batch.records if isinstance(item, Entry)], host)
        _add_bounces(database, connection, [item for item in batch.records if isinstance(item, Bounced)])
        values = {"position": batch.end, "changed": now}
        insert = database.insert(spools).values(file=batch.file, **values)
        connection.execute(insert.on_conflict_do_update(index_elements=[spools.c.file], set_=values))
        return batch.end

    return database.write(work)


def _add_entries(connection: sa.engine.Connection, entries: Iterable[Entry], host: str) -> None:
    fresh: dict[tuple[str, str], Entry] = {}
    for entry in entries:
        key = (entry.reference, entry.recipient)
        fresh[key] = merged(fresh[key], entry) if key in fresh else entry
    there = _known(connection, sorted({reference for reference, _ in fresh}))
    new = [(host, *entry) for key, entry in fresh.items() if key not in there]
    insert_rows(connection, ledger, ("host", *Entry._fields), new)
    changed = [
        {"id_": there[key][0], **merged(there[key][1], entry)._asdict()} for key, entry in fresh.items() if key in there
    ]
    if changed:
        connection.execute(_CHANGE, changed)


def _known(connection: sa.engine.Connection, references: Sequence[str]) -> dict[tuple[str, str], tuple[int, Entry]]:
    """Return the rows of these messages, each with its ID."""
    found = {}
    for first in range(0, len(references), _VARIABLES):
        some = references[first : first + _VARIABLES]
        for row in connection.execute(_OF_REFERENCES, {"references": some}):
            entry = Entry(*row[1:])
            found[entry.reference, entry.recipient] = (row[0], entry)
    return found


def _add_bounces(database: Database, connection: sa.engine.Connection, items: Iterable[Bounced]) -> None:
    insert = database.insert(bounces).values(address=sa.bindparam("address"), count=1, last=sa.bindparam("time"))
    fresh = insert.excluded.last - bounces.c.last > SAME_BOUNCE_S
    update = {
        "count": bounces.c.count + sa.case((fresh, 1), else_=0),
        "last": sa.case((insert.excluded.last > bounces.c.last, insert.excluded.last), else_=bounces.c.last),
    }
    statement = insert.on_conflict_do_update(index_elements=[bounces.c.address], set_=update)
    for some in _each_address_once(sorted(items)):  # sorted: no deadlock of two hosts
        connection.execute(statement, [item._asdict() for item in some])


def _each_address_once(items: Iterable[Bounced]) -> list[list[Bounced]]:
    """Return *items* in lists, to be taken one after the other: no statement may meet the same row twice."""
    lists: list[list[Bounced]] = []
    seen: Counter[str] = Counter()
    for item in items:
        if seen[item.address] == len(lists):
            lists.append([])
        lists[seen[item.address]].append(item)
        seen[item.address] += 1
    return lists


def position(database: Database, file: str) -> int:
    """Return up to which octet a spool file is in the ledger."""
    statement = sa.select(spools.c.position).where(spools.c.file == file)
    return int(database.read(lambda connection: connection.execute(statement).scalar()) or 0)


def forget_file(database: Database, file: str) -> None:
    """Forget the position in a spool file that is gone."""
    database.write(lambda connection: connection.execute(spools.delete().where(spools.c.file == file)))


def keep_positions(database: Database, files: Sequence[str], now: float) -> None:
    """Have `trim` leave the positions in *files* alone, which are still there: else all of them came again."""
    update = spools.update().where(spools.c.file.in_(files)).values(changed=now)
    database.write(lambda connection: connection.execute(update))


def set_loaded_until(database: Database, host: str, time: float) -> None:
    """Note that all that *host* has recorded before *time* is in the ledger."""
    insert = database.insert(hosts).values(host=host, loaded_until=time)
    update = insert.on_conflict_do_update(index_elements=[hosts.c.host], set_={"loaded_until": time})
    database.write(lambda connection: connection.execute(update))


def loaded_until(database: Database) -> dict[str, float]:
    """Return what `set_loaded_until` noted for each host."""
    return dict(database.read(lambda connection: [tuple(row) for row in connection.execute(sa.select(hosts))]))


def trim(database: Database, days: int, rows: int, now: float) -> int:
    """Delete up to TRIM_LIMIT of what is older than *days*, or beyond *rows*; return how many rows that were.

    Refusals, which strangers can cause without end, make room first.
    """
    before = now - days * _DAY_S
    deleted = _delete_oldest(database, ledger.c.time < before, TRIM_LIMIT)
    if deleted < TRIM_LIMIT:
        refused = database.read(lambda connection: _count(connection, REFUSED))
        deleted += _delete_oldest(database, REFUSED, min(TRIM_LIMIT, refused - rows // REFUSED_SHARE))
    if deleted < TRIM_LIMIT:  # else refusals may still be in the place of others
        there = database.read(lambda connection: _count(connection, None))
        deleted += _delete_oldest(database, sa.true(), min(TRIM_LIMIT, there - rows))
    if deleted == 0:
        _trim_others(database, before, now)
    return deleted


def _count(connection: sa.engine.Connection, condition: Optional[Any]) -> int:
    counted = sa.select(sa.func.count()).select_from(ledger)
    return int(connection.execute(counted if condition is None else counted.where(condition)).scalar() or 0)


def _delete_oldest(database: Database, condition: Any, limit: int) -> int:
    """Delete up to *limit* rows, so many at a time that other writers need not wait long; return how many."""
    deleted = 0
    while deleted < limit:
        gone = _delete(database, condition, min(TRIM_CHUNK, limit - deleted))
        deleted += gone
        if gone == 0:
            break
    return deleted


def _delete(database: Database, condition: Any, limit: int) -> int:
    oldest = sa.select(ledger.c.id).where(condition).order_by(ledger.c.time).limit(limit)
    # Another host may be at the same rows.
    chosen = ledger.c.id.in_(oldest.with_for_update(skip_locked=True))
    return database.write(lambda connection: int(connection.execute(ledger.delete().where(chosen)).rowcount))


def _trim_others(database: Database, before: float, now: float) -> None:
    old = sa.select(jobs.c.job_id).where(jobs.c.submitted < before)
    for job_id in database.read(lambda connection: connection.execute(old).scalars().all()):
        forget_report(database, job_id)

    def work(connection: sa.engine.Connection) -> None:
        connection.execute(bounces.delete().where(bounces.c.last < before))
        connection.execute(spools.delete().where(spools.c.changed < now - SPOOL_DAYS * _DAY_S))
        connection.execute(hosts.delete().where(hosts.c.loaded_until < before))

    database.write(work)
