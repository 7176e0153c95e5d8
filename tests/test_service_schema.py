# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's tables: those of an earlier release become these at the start, with all that is in them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemonprocess import ROOTS
from ledgerfiles import configuration, entries, entry, spooled
from smalldisk import fill

from gatepost.service import report_store, schema, tokens
from gatepost.service.database import Database
from gatepost.service.loader import Loader
from gatepost.service.store import StoreError

Query = Callable[[str, str], list[str]]
VERSION_1 = (
    "CREATE TABLE gatepost_schema (version INTEGER NOT NULL)",
    "CREATE TABLE srs_token (token TEXT NOT NULL PRIMARY KEY, original TEXT NOT NULL, expires_day INTEGER NOT NULL)",
    "CREATE INDEX ix_srs_token_expires_day ON srs_token (expires_day)",
    "INSERT INTO gatepost_schema VALUES (1)",
)
TEXTS = (
    "host queue_id egress_queue_id client helo certificate_names reverse_path sender_domain rewritten forwarded_to "
    "header_from organization connector requirements verdict_current verdict_legacy reason action message_id subject"
)
VERSION_2 = (
    *VERSION_1,
    "CREATE TABLE ledger (id {number} PRIMARY KEY, reference TEXT NOT NULL, recipient TEXT NOT NULL, "
    "time FLOAT NOT NULL, sender_accepted SMALLINT NOT NULL, size_bytes BIGINT, "
    + ", ".join(f"{name} TEXT NOT NULL" for name in TEXTS.split())
    + ", UNIQUE (reference, recipient))",
    "CREATE INDEX ledger_time ON ledger (time)",
    "CREATE INDEX ledger_p2 ON ledger (time) WHERE verdict_current = 'refuse' AND verdict_legacy = 'relay'",
    "CREATE INDEX ledger_refused ON ledger (time) WHERE action = 'reject'",
    "UPDATE gatepost_schema SET version = 2",
)
_LEDGER_ROW = (
    "INSERT INTO ledger (reference, recipient, time, sender_accepted, {names}) "
    "VALUES ('r{number}', 'ann@contoso.com', 1790000000, 0, {values})"
)
OPENER = """
import sys
from gatepost.service import tokens
from gatepost.service.database import Database
database = Database(sys.argv[1])
sys.stdin.readline()
database.open()
print(len(tokens.find(database, [f"t{number}" for number in range(100)])))
"""


@pytest.fixture
def version_1(url: str, query: Query) -> str:
    """The URL of a store as the first release left it, with a hundred tokens."""
    for statement in VERSION_1:
        query(url, statement)
    rows = ", ".join(f"('t{number}', 'bob{number}@fabrikam.com', 20500)" for number in range(100))
    query(url, f"INSERT INTO srs_token VALUES {rows}")
    return url


@pytest.fixture
def version_2(url: str, query: Query) -> str:
    """The URL of a store as the second release left it, with a hundred tokens and a row in the ledger."""
    number = "INTEGER" if url.startswith("sqlite") else "BIGSERIAL"
    rows = ", ".join(f"('t{item}', 'bob{item}@fabrikam.com', 20500)" for item in range(100))
    for statement in (*VERSION_2, f"INSERT INTO srs_token VALUES {rows}", ledger_row(1)):
        query(url, statement.format(number=number))
    return url


def ledger_row(number: int) -> str:
    """Return the INSERT by which the second release recorded a refusal, from mail.contoso.com."""
    names = TEXTS.split()
    values = ", ".join({"helo": "'mail.contoso.com'", "action": "'reject'"}.get(name, "''") for name in names)
    return _LEDGER_ROW.format(number=number, names=", ".join(names), values=values)


def indexes(query: Query, url: str) -> set[str]:
    if url.startswith("sqlite"):
        return set(query(url, "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"))
    return set(query(url, "SELECT indexname FROM pg_indexes WHERE indexdef LIKE '%(\"time\"%'"))


@pytest.fixture
def open_database() -> Iterator[Callable[[str], Database]]:
    opened: list[Database] = []

    def open_url(url: str) -> Database:
        opened.append(Database(url))
        opened[-1].open()
        return opened[-1]

    yield open_url
    for database in opened:
        database.close()


def all_tokens(database: Database) -> bool:
    wanted = {f"t{number}": f"bob{number}@fabrikam.com" for number in range(100)}
    return tokens.find(database, list(wanted)) == wanted


def tables(query: Query, url: str) -> set[str]:
    if url.startswith("sqlite"):
        return set(query(url, "SELECT name FROM sqlite_master WHERE type = 'table'"))
    return set(query(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))


def test_store_of_version_1_keeps_its_tokens_and_gets_the_ledger(
    version_1: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    assert all_tokens(open_database(version_1))
    assert query(version_1, "SELECT version FROM gatepost_schema") == ["4"]
    assert tables(query, version_1) == set(schema.metadata.tables)


def test_ledger_of_a_migrated_store_works(tmp_path: Path, version_1: str, query: Query) -> None:
    config = configuration(tmp_path, version_1)
    spooled(config.ledger_folder, entries(10))
    loader = Loader(config)
    assert loader.lock()
    assert loader.load()
    loader.close()
    assert query(version_1, "SELECT count(*) FROM ledger") == ["10"]
    assert query(version_1, "SELECT count(*) FROM srs_token") == ["100"]


def test_ledger_of_version_2_keeps_its_rows_and_gets_what_came_later(
    version_2: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    assert all_tokens(open_database(version_2))
    assert query(version_2, "SELECT version FROM gatepost_schema") == ["4"]
    assert query(version_2, "SELECT reference || helo || reverse_name || fcrdns || upstream FROM ledger") == [
        "r1mail.contoso.com"
    ]
    assert {"ledger_queue_ids", "ledger_p2", "ledger_refusals"} <= indexes(query, version_2)
    assert not {"ledger_time", "ledger_refused"} & indexes(query, version_2)


def test_host_of_the_release_before_still_records_into_a_store_of_this_one(
    version_2: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    open_database(version_2)
    query(version_2, ledger_row(2))
    (page,) = report_store.entries(open_database(version_2), "Refused", 0, 2e9)
    assert [(found.entry.reference, found.entry.upstream) for found in page] == [("r1", ""), ("r2", "")]


def test_processes_that_start_at_once_migrate_a_ledger_once_and_it_takes_what_is_recorded(
    version_2: str, query: Query, tmp_path: Path
) -> None:
    assert opened_at_once(version_2) == [("100\n", "")] * 3
    config = configuration(tmp_path, version_2)
    named = [entry(number)._replace(reverse_name="mail.contoso.com", fcrdns="confirmed") for number in range(3)]
    spooled(config.ledger_folder, named)
    loader = Loader(config)
    assert loader.lock()
    assert loader.load()
    loader.close()
    assert query(version_2, "SELECT reference || helo || fcrdns FROM ledger ORDER BY reference") == [
        "r0confirmed",
        "r1mail.contoso.comconfirmed",
        "r2confirmed",
    ]


def opened_at_once(url: str) -> list[tuple[str, str]]:
    """Open the store at *url* in three processes at once; return what each says of its tokens, and its errors."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, url],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": ":".join(ROOTS)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    return [process.communicate(timeout=60) for process in processes]


def test_processes_that_start_at_once_migrate_a_store_once(version_1: str, query: Query) -> None:
    assert opened_at_once(version_1) == [("100\n", "")] * 3
    assert query(version_1, "SELECT version FROM gatepost_schema") == ["4"]
    assert tables(query, version_1) == set(schema.metadata.tables)


def test_processes_that_start_at_once_make_a_store_once(url: str, query: Query) -> None:
    assert opened_at_once(url) == [("0\n", "")] * 3
    assert query(url, "SELECT version FROM gatepost_schema") == ["4"]
    assert tables(query, url) == set(schema.metadata.tables)


def test_process_with_an_open_connection_sees_its_tokens_after_another_has_migrated(
    url: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    here = open_database(url)
    query(url, "UPDATE gatepost_schema SET version = 1")
    query(url, "INSERT INTO srs_token VALUES ('a', 'bob@fabrikam.com', 20500)")
    open_database(url)
    assert tokens.find(here, ["a"]) == {"a": "bob@fabrikam.com"}


def test_tables_that_a_migration_needs_and_some_are_there_are_completed(
    version_1: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    open_database(version_1).close()
    for statement in ("DROP TABLE report_row", "DROP TABLE bounce", "UPDATE gatepost_schema SET version = 1"):
        query(version_1, statement)
    query(version_1, "INSERT INTO ledger_host VALUES ('mail', 1.0)")
    assert all_tokens(open_database(version_1))
    assert tables(query, version_1) == set(schema.metadata.tables)
    assert query(version_1, "SELECT host FROM ledger_host") == ["mail"]


def test_version_that_got_lost_is_written_again(
    version_1: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    query(version_1, "DELETE FROM gatepost_schema")
    assert all_tokens(open_database(version_1))
    assert query(version_1, "SELECT version FROM gatepost_schema") == ["4"]


def test_migration_waits_for_who_has_locked_the_database(tmp_path: Path, sqlite_url: str, query: Query) -> None:
    for statement in VERSION_1:
        query(sqlite_url, statement)
    other = sqlite3.connect(tmp_path / "gatepost.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    database = Database(sqlite_url)
    with pytest.raises(StoreError, match=r"database is locked$"):
        database.open()
    other.execute("ROLLBACK")
    other.close()
    database.open()
    database.close()
    assert query(sqlite_url, "SELECT version FROM gatepost_schema") == ["4"]


def test_migration_on_a_full_disk_leaves_the_store_as_it_was_and_passes(small_disk: Path, query: Query) -> None:
    url = f"sqlite:///{small_disk}/gatepost.db"
    for statement in (*VERSION_1, "INSERT INTO srs_token VALUES ('a', 'bob@fabrikam.com', 20500)"):
        query(url, statement)
    fill(small_disk)
    database = Database(url)
    with pytest.raises(StoreError, match=r"full|disk I/O error"):
        database.open()
    database.close()
    (small_disk / "ballast").unlink()
    assert query(url, "SELECT version FROM gatepost_schema") == ["1"]
    assert tokens.find(database, ["a"]) == {"a": "bob@fabrikam.com"}
    database.close()
    assert query(url, "SELECT version FROM gatepost_schema") == ["4"]


def test_reports_read_only_what_their_index_has(
    sqlite_url: str, query: Query, open_database: Callable[[str], Database]
) -> None:
    open_database(sqlite_url)
    for condition, index in ((schema.RELIES_ON_P2, "ledger_p2"), (schema.REFUSED, "ledger_refusals")):
        plan = query(sqlite_url, f"EXPLAIN QUERY PLAN SELECT id FROM ledger WHERE {condition.text} AND time > 1.0")
        assert any(index in step for step in plan)
