# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor`, the store and the ledger, in SQLite and in PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from doctors import Raw, circumstances, found, texts
from ledgers import entry
from nameserver import NameServer
from postgresql import needs_postgresql

from gatepost.admin.doctor.model import Circumstances
from gatepost.admin.doctor.store import file_system, judged_backlog, judged_file_system, judged_ledger, judged_server
from gatepost.service import schema
from gatepost.service.database import Database
from gatepost.service.ledger import Entry
from gatepost.service.ledger_store import Batch, take_in
from gatepost.service.resolver import resolver

NOW = 1_786_000_000
DAY_S = 86400
Query = Callable[[str, str], list[str]]


def looking(url: str, tmp_path: Path, **more: Raw) -> Circumstances:
    (tmp_path / "state").mkdir(exist_ok=True)
    raw = {"state_directory": str(tmp_path / "state"), "store": {"url": url}, **more}
    return circumstances(raw, now=NOW)


def record(url: str, *entries: Entry) -> None:
    database = Database(url)
    take_in(database, Batch("1.spool", 0, 10, entries), "mx1", NOW)
    database.close()


# The store


def test_a_store_that_answers_is_well(url: str, tmp_path: Path) -> None:
    Database(url).open()
    assert texts(looking(url, tmp_path), "store") == [f"ok: {url}: answers, tables of version {schema.VERSION}"]


def test_a_store_without_tables_is_mentioned_and_left_as_it_is(url: str, tmp_path: Path, query: Query) -> None:
    file = Path(url.partition("///")[2])
    if url.startswith("sqlite"):
        file.touch()
    assert texts(looking(url, tmp_path), "store") == [f"info: {url} has no tables yet"]
    assert texts(looking(url, tmp_path), "ledger") == ["ok: the ledger is empty"]
    tables = "sqlite_master" if url.startswith("sqlite") else "pg_tables WHERE schemaname = 'public'"
    assert query(url, f"SELECT count(*) FROM {tables}") == ["0"]


def test_a_store_that_is_not_there_is_not_made(sqlite_url: str, tmp_path: Path) -> None:
    assert texts(looking(sqlite_url, tmp_path), "store") == [f"info: {tmp_path}/gatepost.db is not there yet"]
    assert not (tmp_path / "gatepost.db").exists()


def test_tables_of_an_earlier_release_are_mentioned(url: str, tmp_path: Path, query: Query) -> None:
    Database(url).open()
    query(url, "UPDATE gatepost_schema SET version = 2")
    assert texts(looking(url, tmp_path), "store") == [
        f"info: the tables of {url} are of version 2, and become version {schema.VERSION} when they are used"
    ]


def test_tables_of_a_later_release_are_an_error(url: str, tmp_path: Path, query: Query) -> None:
    Database(url).open()
    query(url, "UPDATE gatepost_schema SET version = 99")
    (finding,) = found(looking(url, tmp_path), "store")
    assert finding.severity.value == "error"
    assert finding.what == f"the tables of {url} are of version 99, and this gatepost knows version {schema.VERSION}"


def test_a_file_that_is_no_database_is_an_error(sqlite_url: str, tmp_path: Path) -> None:
    (tmp_path / "gatepost.db").write_text(
        "not a database, and longer than its header would be, which has 100 octets" * 9
    )
    (finding,) = found(looking(sqlite_url, tmp_path), "store")
    assert finding.what == f"the store {sqlite_url} cannot be asked: file is not a database"
    assert finding.why == (
        "Compact SRS addresses cannot be made or brought back: their mail and bounces are put off. "
        "Records wait in the spool, and reports are short of them."
    )
    assert finding.remedy == (f"ls -l {tmp_path}/gatepost.db*; df -h {tmp_path}",)


@needs_postgresql
def test_a_server_that_is_away_is_an_error_without_the_password(tmp_path: Path) -> None:
    looked_at = looking("postgresql://gatepost:sesame@127.0.0.1:1/gatepost", tmp_path, srs={"form": "long"})
    (finding,) = found(looked_at, "store")
    assert finding.what.startswith("the store postgresql://gatepost:***@127.0.0.1:1/gatepost cannot be asked: ")
    assert "sesame" not in str(finding)
    assert finding.why == "Records wait in the spool, and reports are short of them."


@needs_postgresql
def test_a_database_in_latin_1_is_an_error(postgresql_url: str, tmp_path: Path, query: Query) -> None:
    query(postgresql_url, "CREATE DATABASE doctor_latin TEMPLATE template0 ENCODING 'LATIN1'")
    url = postgresql_url.rpartition("/")[0] + "/doctor_latin"
    assert texts(looking(url, tmp_path), "store")[0] == "error: the database's encoding is LATIN1"


def test_a_server_that_is_too_old_and_cannot_be_written_is_an_error() -> None:
    assert [finding.what for finding in judged_server(90500, "UTF8", True)] == [
        "PostgreSQL is of version 9.5; 9.6 is the oldest that will do",
        "PostgreSQL is a standby, which cannot be written",
    ]
    assert list(judged_server(150004, "UTF8", False)) == []


def test_sqlite_on_a_network_file_system_is_an_error() -> None:
    file = Path("/srv/mail/gatepost.db")
    (finding,) = judged_file_system(circumstances().config, file, "nfs4")
    assert finding.what == "/srv/mail/gatepost.db is on a network file system (nfs4)"
    assert list(judged_file_system(circumstances().config, file, "ext4")) == []


def test_the_kind_of_file_system_is_known() -> None:
    assert file_system(Path("/proc")) == "proc"
    assert file_system(Path("/nonexistent")) == ""


# The ledger


def test_a_ledger_with_room_is_well(url: str, tmp_path: Path) -> None:
    record(url, entry("R1", NOW - DAY_S), entry("R2", NOW - 60))
    assert texts(looking(url, tmp_path), "ledger") == ["ok: the ledger has 2 rows, since 2026-08-05 07:06 UTC"]


def test_a_record_of_the_future_is_a_warning(url: str, tmp_path: Path) -> None:
    record(url, entry("R1", NOW + 2 * DAY_S))
    assert texts(looking(url, tmp_path), "ledger")[0] == (
        "warning: the newest record of the ledger is of 2026-08-08 07:06 UTC, and it is 2026-08-06 07:06 UTC here"
    )


def test_a_full_ledger_is_mentioned() -> None:
    config = circumstances({"ledger": {"rows": 1000}}).config
    (finding,) = judged_ledger(config, NOW, 950, NOW - 5, NOW - 12 * DAY_S)
    assert finding.what == "the ledger has 950 of 1000 rows, and 12 of 90 days"
    assert finding.remedy == ("gatepost.toml: [ledger] rows = 2000",)


def test_without_a_ledger_it_is_not_looked_at(url: str, tmp_path: Path) -> None:
    looked_at = looking(url, tmp_path, ledger={"days": 0})
    assert texts(looked_at, "ledger") == []
    assert texts(looked_at, "ledger-backlog") == []


# The spool


def test_an_empty_spool_is_well(sqlite_url: str, tmp_path: Path) -> None:
    assert texts(looking(sqlite_url, tmp_path), "ledger-backlog") == [
        f"ok: 0 KiB of 1024 MiB wait in {tmp_path}/state/ledger"
    ]


def test_records_that_nobody_loads_are_a_warning(sqlite_url: str, tmp_path: Path) -> None:
    looked_at = looking(sqlite_url, tmp_path)
    folder = tmp_path / "state" / "ledger"
    folder.mkdir()
    (folder / "1.spool").write_bytes(b"x" * 5000)
    (folder / "loaded").touch()
    os.utime(folder / "loaded", (NOW - 3600, NOW - 3600))
    (finding,) = found(looked_at, "ledger-backlog")
    assert finding.what == f"4 KiB of 1024 MiB wait in {folder}, the store is 60 min behind"
    assert "at the limit further records are lost then" in finding.why


def test_a_spool_that_is_half_full_is_an_error() -> None:
    config = circumstances({"ledger": {"required": True}}).config
    (finding,) = judged_backlog(config, 600 << 20, 60.0, [])
    assert f"{finding.severity.value}: {finding.what}" == (
        "error: 614400 KiB of 1024 MiB wait in /var/lib/gatepost/ledger"
    )
    assert finding.why == (
        "The store does not take records; the spool fills up, and mail is put off then (ledger.required)."
    )


# Several hosts


def hosts(form: str, url: str, *exchangers: str) -> list[str]:
    records = {"contoso.com": {"MX": [f"10 {name}." for name in exchangers]}}
    raw = {"srs": {"form": form}, "store": {"url": url}}
    with NameServer(records) as server:
        return texts(circumstances(raw, make_resolver=lambda: resolver([server.address], 2.0)), "store-shared")


def test_compact_addresses_in_sqlite_with_one_mx_are_well() -> None:
    assert hosts("auto", "sqlite:////x.db", "mx1.contoso.com") == [
        "ok: contoso.com: no second MX, so that SQLite will do"
    ]


def test_compact_addresses_in_sqlite_with_two_mx_are_a_warning() -> None:
    assert hosts("auto", "sqlite:////x.db", "mx1.contoso.com", "mx2.contoso.com") == [
        "warning: contoso.com has the MX mx1.contoso.com, mx2.contoso.com, and compact addresses are in an SQLite file "
        "of this host"
    ]


def test_compact_addresses_in_postgresql_are_well() -> None:
    url = "postgresql://gatepost@db.contoso.com/gatepost"
    assert hosts("compact", url, "mx1.contoso.com", "mx2.contoso.com") == [
        "ok: compact addresses are in a store that hosts can share"
    ]


def test_without_compact_addresses_nothing_is_shared() -> None:
    assert hosts("long", "sqlite:////x.db", "mx1.contoso.com", "mx2.contoso.com") == []
