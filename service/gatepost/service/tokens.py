# SPDX-License-Identifier: GPL-3.0-or-later
"""The tokens of compact SRS addresses in the database. Each function raises StoreError."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from gatepost.service.database import Database
from gatepost.service.schema import tokens
from gatepost.service.store import Row


def find(database: Database, wanted: Sequence[str]) -> dict[str, str]:
    """Return the original address of each token of *wanted* that is known."""
    return {token: row.original for token, row in database.read(lambda connection: _rows(connection, wanted)).items()}


def keep(database: Database, rows: Sequence[Row]) -> dict[str, str]:
    """Make *rows* durable and return the original address of each of their tokens then, whoever put it there."""
    latest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (row.token, row.expires_day)):
        latest[row.token] = row
    there = database.read(lambda connection: _rows(connection, list(latest)))
    # What others can see is durable; a message to many recipients asks for the same token again and again.
    lacking = [row for token, row in latest.items() if token not in there or there[token].expires_day < row[2]]
    if lacking:
        insert = database.insert(tokens)
        later = insert.excluded.expires_day
        statement = insert.on_conflict_do_update(
            index_elements=[tokens.c.token], set_={"expires_day": later}, where=tokens.c.expires_day < later
        )

        def put(connection: sa.engine.Connection) -> dict[str, Row]:
            connection.execute(statement, [row._asdict() for row in lacking])
            return _rows(connection, [row.token for row in lacking])

        there.update(database.write(put))
    return {token: row.original for token, row in there.items()}


def expire(database: Database, today: int, limit: int) -> int:
    """Delete up to *limit* rows that were of use before *today* only; return how many."""
    old = tokens.c.expires_day < today
    # Another host may be at the same rows.
    chunk = sa.select(tokens.c.token).where(old).limit(limit).with_for_update(skip_locked=True)
    delete = tokens.delete().where(old, tokens.c.token.in_(chunk))
    return database.write(lambda connection: int(connection.execute(delete).rowcount))


def _rows(connection: sa.engine.Connection, wanted: Sequence[str]) -> dict[str, Row]:
    """Read the rows of *wanted*, inside a transaction."""
    found = connection.execute(sa.select(tokens).where(tokens.c.token.in_(wanted))).all()
    return {row.token: Row(row.token, row.original, row.expires_day) for row in found}
