# SPDX-License-Identifier: GPL-3.0-or-later
"""What reports read of the ledger, what is kept of them, and what erasing an address leaves, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import ledgers
import pytest
import sqlalchemy as sa
from ledgers import SRS, bounce, entry, rewritten
from postgresql import PostgreSQL, programs

from gatepost.service import report_store, schema
from gatepost.service.database import Database
from gatepost.service.ledger import Record
from gatepost.service.report_store import Stored

Make = Callable[..., Database]
needs_postgresql = pytest.mark.skipif(programs() is None, reason="no PostgreSQL server")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with PostgreSQL() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A function that makes a store with records in it."""
    if request.param == "sqlite":
        return lambda *records: ledgers.sqlite(tmp_path, *records)
    url = request.getfixturevalue("server").database()

    def make(*records: Record) -> Database:
        database = Database(url, statement_s=0)
        ledgers.put(database, records)
        return database

    return make


def references(database: Database, condition: str, start: float = 0, end: float = 1e9, organization: str = "") -> str:
    pages = report_store.entries(database, condition, start, end, organization or None)
    return " ".join(found.entry.reference for page in pages for found in page)


def rows_of(database: Database, table: sa.Table) -> int:
    counted = sa.select(sa.func.count()).select_from(table)
    return int(database.read(lambda connection: connection.execute(counted).scalar_one()))


def test_the_end_is_exclusive_and_the_start_is_not(made: Make) -> None:
    database = made(entry("A", 99), entry("B", 100), entry("C", 199), entry("D", 200))
    assert references(database, "P2SenderAttribution", 100, 200) == "B C"


def test_only_what_legacy_relays_and_the_new_rules_refuse_relies_on_p2(made: Make) -> None:
    database = made(entry("A", 1), entry("B", 2, verdict_legacy="refuse"), rewritten("C", 3))
    assert references(database, "P2SenderAttribution") == "A"


def test_refused_has_refusals_and_what_mode_monitor_let_through(made: Make) -> None:
    database = made(
        entry("REJECTED", 1, action="reject"),
        entry("SRS", 2, action="reject", verdict_current="", verdict_legacy="", reason="srs-forged"),
        entry("MONITORED", 3),
        rewritten("RELAYED", 4),
    )
    assert references(database, "Refused") == "REJECTED SRS MONITORED"
    assert references(database, "WouldRefuse") == "MONITORED"


def test_where_legacy_is_in_force_what_it_relays_is_not_refused(made: Make) -> None:
    database = made(entry("A", 1, requirements="legacy"), entry("B", 2, requirements="legacy", verdict_legacy="refuse"))
    assert references(database, "Refused") == "B"


def test_mail_through_a_connector_counts_where_p1_is_neither_null_nor_accepted_nor_the_recipient_inside(
    made: Make,
) -> None:
    database = made(
        entry("A", 1),
        entry("ACCEPTED", 2, sender_accepted=1),
        entry("NULL", 3, reverse_path="", sender_domain=""),
        entry("INSIDE", 4, verdict_current="inside"),
        entry("STRANGER", 5, connector=""),
    )
    assert references(database, "NonAcceptedDomain") == "A"


def test_rewritten_mail_has_the_bounces_that_came_back(made: Make) -> None:
    database = made(rewritten("A", 1), rewritten("B", 2, rewritten="other@contoso.com"), bounce(50), bounce(500))
    (page,) = report_store.entries(database, "Rewritten", 0, 100)
    assert [(found.entry.reference, found.bounces, found.last_bounce) for found in page] == [
        ("A", 2, 500.0),
        ("B", 0, None),
    ]


def test_one_organization_can_be_asked_for(made: Make) -> None:
    database = made(entry("A", 1), entry("B", 2, organization="fabrikam"))
    assert references(database, "WouldRefuse", organization="fabrikam") == "B"


def test_pages_lose_and_repeat_nothing_where_many_entries_have_one_time(
    made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_store, "PAGE", 3)
    database = made(*(entry(f"R{number}", 5.0 + number // 7) for number in range(20)))
    pages = list(report_store.entries(database, "P2SenderAttribution", 0, 100))
    assert [len(page) for page in pages] == [3, 3, 3, 3, 3, 3, 2]
    assert references(database, "P2SenderAttribution") == " ".join(f"R{number}" for number in range(20))


def test_what_relies_on_p2_is_found_by_its_own_index(tmp_path: Path) -> None:
    database = ledgers.sqlite(tmp_path)
    statement = sa.select(schema.ledger.c.id).where(
        report_store.CONDITIONS["P2SenderAttribution"], schema.ledger.c.time >= 1.0, schema.ledger.c.time < 2.0
    )
    text = str(statement.compile(compile_kwargs={"literal_binds": True}))
    plan = database.read(lambda connection: connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}").all())
    assert "ledger_p2" in str(plan)


def test_a_kept_report_comes_back_as_it_was_last_written(made: Make) -> None:
    database = made()
    report_store.keep(database, Stored("abc", 1.0, "begun", ""), 0, ['["1"]', '["2"]'])
    report_store.keep(database, Stored("abc", 1.0, "done", "summary"), 2, ['["3"]'])
    assert report_store.reports(database) == [Stored("abc", 1.0, "done", "summary")]
    assert list(report_store.rows(database, "abc")) == ['["1"]', '["2"]', '["3"]']


def test_reports_come_newest_first_and_by_the_beginning_of_their_id(made: Make) -> None:
    database = made()
    for job_id, submitted in (("aa1", 1.0), ("aa2", 3.0), ("bb1", 2.0), ("a%", 0.0)):
        report_store.keep(database, Stored(job_id, submitted, "", ""), 0, [])
    assert [item.job_id for item in report_store.reports(database)] == ["aa2", "bb1", "aa1", "a%"]
    assert [item.job_id for item in report_store.reports(database, "aa")] == ["aa2", "aa1"]
    assert [item.job_id for item in report_store.reports(database, "a%")] == ["a%"]


def test_forgetting_the_rows_of_a_report_leaves_those_of_others(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_store, "PAGE", 2)
    database = made()
    for job_id in ("a", "b"):
        report_store.keep(database, Stored(job_id, 1.0, "", ""), 0, ["[]"] * 5)
    report_store.forget_rows(database, "a")
    assert (len(list(report_store.rows(database, "a"))), len(list(report_store.rows(database, "b")))) == (0, 5)


def test_an_address_is_erased_wherever_the_ledger_has_it(made: Make) -> None:
    database = made(
        entry("P1", 1, reverse_path="bob@fabrikam.com"),
        entry("P2", 2, header_from="ceo@contoso.com, bob@fabrikam.com"),
        entry("RCPT", 3, "bob@fabrikam.com"),
        entry("FORWARDED", 4, forwarded_to="ann@example.com, bob@fabrikam.com"),
        entry("RETURNED", 5, "bounces+srs=y3gtqm6c=cb=fabrikam.com=bob@contoso.com"),
        entry("OTHER", 6, "notbob@fabrikam.com", header_from="bob@fabrikam.com.example"),
    )
    erased = report_store.erase(database, "Bob@Fabrikam.com")
    assert erased.ledger == 5
    assert references(database, "P2SenderAttribution") == "OTHER"


def test_erasing_goes_on_over_many_pages(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_store, "_ERASED_AT_ONCE", 3)
    database = made(*(entry(f"R{number}", number, f"{'not' * (number % 2)}bob@fabrikam.com") for number in range(20)))
    assert report_store.erase(database, "bob@fabrikam.com").ledger == 10
    assert rows_of(database, schema.ledger) == 10


def test_the_bounces_to_the_erased_sender_are_forgotten_and_no_others(made: Make) -> None:
    compact = "bounces+srs=y3gtqm6cabcdefgh@contoso.com"
    database = made(
        rewritten("A", 1, reverse_path="bob@fabrikam.com", rewritten=compact),
        bounce(2, compact),
        bounce(3, "bounces+srs=aaaaaaaa=cb=fabrikam.com=bob@contoso.com"),
        bounce(4, SRS),
    )
    assert report_store.erase(database, "bob@fabrikam.com").bounces == 2
    assert rows_of(database, schema.bounces) == 1


def test_rows_of_kept_reports_that_name_the_address_go(made: Make) -> None:
    database = made()
    rows = ['["bob@fabrikam.com##Relayed"]', '["Bob@fabrikam.com"]', '["notbob@fabrikam.com"]']
    report_store.keep(database, Stored("abc", 1.0, "{}", ""), 0, rows)
    erased = report_store.erase(database, "bob@fabrikam.com")
    assert (erased.report_rows, erased.reports) == ({"abc": 2}, 0)
    assert list(report_store.rows(database, "abc")) == ['["notbob@fabrikam.com"]']


def test_a_report_that_asked_for_the_address_goes_as_a_whole(made: Make) -> None:
    database = made()
    report_store.keep(database, Stored("abc", 1.0, '{"sender_addresses": ["bob@fabrikam.com"]}', ""), 0, ["[]"])
    assert report_store.erase(database, "bob@fabrikam.com").reports == 1
    assert report_store.reports(database) == []
    assert list(report_store.rows(database, "abc")) == []


def test_what_is_erased_is_not_in_the_sqlite_file_any_more(tmp_path: Path) -> None:
    database = ledgers.sqlite(tmp_path, entry("A", 1, "bob@fabrikam.com"), entry("B", 2, "ann@fabrikam.com"))
    report_store.erase(database, "bob@fabrikam.com")
    database.close()
    octets = (tmp_path / "gatepost.db").read_bytes()
    assert (b"bob@fabrikam.com" in octets, b"ann@fabrikam.com" in octets) == (False, True)
