# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the store, and how those of an earlier release become these.

Text that is a mail address is in lower case everywhere in the ledger's tables. Times are Unix seconds.
"""

from __future__ import annotations

import sqlalchemy as sa

VERSION = 4
"""1: srs_token. 2: the ledger and its reports beside it. 3: the ledger's last three columns. 4: `ledger_queue_ids`."""

metadata = sa.MetaData()
version = sa.Table("gatepost_schema", metadata, sa.Column("version", sa.Integer, nullable=False))

tokens = sa.Table(
    "srs_token",
    metadata,
    sa.Column("token", sa.Text, primary_key=True),
    sa.Column("original", sa.Text, nullable=False),
    sa.Column("expires_day", sa.Integer, nullable=False, index=True),
    sqlite_with_rowid=False,
)

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # only that counts up by itself there


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False)


def _added(name: str) -> sa.Column[str]:
    """A column that an earlier release did not have; it may share the database with this one for a while."""
    return sa.Column(name, sa.Text, nullable=False, server_default="")


ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("id", _NUMBER, primary_key=True),
    _text("reference"),
    _text("recipient"),
    sa.Column("time", sa.Float(53), nullable=False),
    _text("host"),
    _text("queue_id"),
    _text("egress_queue_id"),
    _text("client"),
    _text("helo"),
    _text("certificate_names"),
    _text("reverse_path"),
    _text("sender_domain"),
    sa.Column("sender_accepted", sa.SmallInteger, nullable=False),
    _text("rewritten"),
    _text("forwarded_to"),
    _text("header_from"),
    _text("organization"),
    _text("connector"),
    _text("requirements"),
    _text("verdict_current"),
    _text("verdict_legacy"),
    _text("reason"),
    _text("action"),
    sa.Column("size_bytes", sa.BigInteger),
    _text("message_id"),
    _text("subject"),
    _added("reverse_name"),
    _added("fcrdns"),
    _added("upstream"),
    sa.UniqueConstraint("reference", "recipient"),
)
# By time for reports. With the queue IDs, to be looked through for one of them: in their own order they would be all
# over an index, and each row would cost a page of it, written twice, where a row in the order of time takes 50 octets.
sa.Index("ledger_queue_ids", ledger.c.time, ledger.c.id, ledger.c.queue_id, ledger.c.egress_queue_id)

# Literals, for an index with a condition is of use only to a query that has the very same one.
RELIES_ON_P2 = sa.text("ledger.verdict_current = 'refuse' AND ledger.verdict_legacy = 'relay'")
"""The message may be relayed where P2 counts (rule set legacy), and not by the rules of 2023-11-01 (R1)."""
REFUSED = sa.text("ledger.action IN ('reject', 'defer')")
"""The recipient was turned away. What was held or tagged was taken."""


def _index_where(name: str, where: sa.sql.elements.TextClause) -> None:
    """Index the few rows that a condition holds for by time: what asks for them reads nothing else."""
    bare = sa.text(where.text.replace("ledger.", ""))
    sa.Index(name, ledger.c.time, sqlite_where=bare, postgresql_where=bare)


_index_where("ledger_p2", RELIES_ON_P2)
_index_where("ledger_refusals", REFUSED)
OLD_INDEXES = ("ledger_refused", "ledger_time", "ledger_queue_id", "ledger_egress_queue_id")
"""Those of earlier releases that nothing reads any more."""

bounces = sa.Table(
    "bounce",
    metadata,
    sa.Column("address", sa.Text, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("last", sa.Float(53), nullable=False, index=True),
    sqlite_with_rowid=False,
)

spools = sa.Table(
    "ledger_spool",
    metadata,
    sa.Column("file", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("changed", sa.Float(53), nullable=False),
    sqlite_with_rowid=False,
)

hosts = sa.Table(
    "ledger_host",
    metadata,
    sa.Column("host", sa.Text, primary_key=True),
    sa.Column("loaded_until", sa.Float(53), nullable=False),
    sqlite_with_rowid=False,
)

jobs = sa.Table(
    "report_job",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("submitted", sa.Float(53), nullable=False),
    _text("job"),
    _text("summary"),
    sqlite_with_rowid=False,
)

report_rows = sa.Table(
    "report_row",
    metadata,
    sa.Column("job_id", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    _text("row"),
    sqlite_with_rowid=False,
)
