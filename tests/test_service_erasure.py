# SPDX-License-Identifier: GPL-3.0-or-later
"""What erasing an address takes from the ledger and from kept reports, and what it leaves, on both databases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ledgers
import pytest
import sqlalchemy as sa
from ledgers import SRS, bounce, entry, rewritten

from gatepost.service import erasure, report_store, schema
from gatepost.service.database import Database
from gatepost.service.erasure import Erased, Spellings, erase
from gatepost.service.report_store import Stored

Make = Callable[..., Database]
IDN = "kunde@xn--bcher-kva.example"


@pytest.fixture
def made(url: str) -> Make:
    """A function that makes a store with records in it."""
    return lambda *records: ledgers.store(url, *records)


def left(database: Database) -> str:
    """Return the references that are still in the ledger."""
    wanted = sa.select(schema.ledger.c.reference).order_by(schema.ledger.c.time)
    return " ".join(row[0] for row in report_store.fetch(database, wanted))


def rows_of(database: Database, table: sa.Table) -> int:
    counted = sa.select(sa.func.count()).select_from(table)
    return int(database.read(lambda connection: connection.execute(counted).scalar_one()))


def kept(database: Database, *cells: object, status: str = "Done", summary: str = "", **fields: object) -> None:
    """Keep a report "abc" with a row for each cell."""
    job = json.dumps({"status": status, **fields}, ensure_ascii=False)
    report_store.begin(database, Stored("abc", 1.0, job, ""))
    rows = [json.dumps([cell, 7], ensure_ascii=False) for cell in cells]
    report_store.keep(database, Stored("abc", 1.0, job, summary), 0, rows)


def cells(database: Database) -> list[object]:
    return [json.loads(row)[0] for row in report_store.rows(database, "abc")]


def test_an_address_is_erased_wherever_the_ledger_has_it(made: Make) -> None:
    database = made(
        entry("P1", 1, reverse_path="bob@fabrikam.com"),
        entry("P2", 2, header_from="ceo@contoso.com, bob@fabrikam.com"),
        entry("RCPT", 3, "bob@fabrikam.com"),
        entry("FORWARDED", 4, forwarded_to="ann@example.com, bob@fabrikam.com"),
        entry("RETURNED", 5, "bounces+srs=y3gtqm6c=cb=fabrikam.com=bob@contoso.com"),
        entry("OTHER", 6, "notbob@fabrikam.com", header_from="bob@fabrikam.com.example"),
    )
    erased = erase(database, "Bob@Fabrikam.com")
    assert erased.ledger == 5
    assert left(database) == "OTHER"


def test_erasing_goes_on_over_many_pages(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "_ERASED_AT_ONCE", 3)
    database = made(*(entry(f"R{number}", number, f"{'not' * (number % 2)}bob@fabrikam.com") for number in range(20)))
    assert erase(database, "bob@fabrikam.com").ledger == 10
    assert rows_of(database, schema.ledger) == 10


def test_the_bounces_to_the_erased_sender_are_forgotten_and_no_others(made: Make) -> None:
    compact = "bounces+srs=y3gtqm6cabcdefgh@contoso.com"
    database = made(
        rewritten("A", 1, reverse_path="bob@fabrikam.com", rewritten=compact),
        bounce(2, compact),
        bounce(3, "bounces+srs=aaaaaaaa=cb=fabrikam.com=bob@contoso.com"),
        bounce(4, SRS),
    )
    assert erase(database, "bob@fabrikam.com").bounces == 2
    assert rows_of(database, schema.bounces) == 1


@pytest.mark.parametrize(
    ("address", "other"),
    [
        ("brien@gmail.com", "o'brien@gmail.com"),
        ("brien@gmail.com", "d(brien@gmail.com"),
        ("brien@gmail.com", '"d brien"@gmail.com'),
        ("doe@gmail.com", "john doe@gmail.com"),
        ("x@gmail.com", "x@gmail.com.example"),
        ("a_b@gmail.com", "axb@gmail.com"),
        ("a%@gmail.com", "ab@gmail.com"),
    ],
)
def test_another_address_that_ends_or_begins_alike_stays(made: Make, address: str, other: str) -> None:
    database = made(entry("RCPT", 1, other), entry("P2", 2, "y@gmail.com", header_from=f"ceo@contoso.com, {other}"))
    assert erase(database, address).ledger == 0


@pytest.mark.parametrize(
    ("address", "stored"),
    [
        ("kunde@bücher.example", IDN),
        (IDN, "kunde@bücher.example"),
        (IDN.upper(), "bounces+srs=y3gtqm6c=cb=bücher.example=kunde@contoso.com"),
        ('"john doe"@gmail.com', '"john doe"@gmail.com'),
        ('"john doe"@gmail.com', "john doe@gmail.com"),
        ("john doe@gmail.com", '"john doe"@gmail.com'),
        ("bob@gmail.com", '"bob"@gmail.com'),
        (r'"a\"b\\c"@gmail.com', r'"a\"b\\c"@gmail.com'),
        (r'"a\"b\\c"@gmail.com', r'a"b\c@gmail.com'),
        ('"a, b"@gmail.com', "a, b@gmail.com"),
        ("jürgen@gmail.com", "jürgen@gmail.com"),
        ("john doe@gmail.com", '"bounces+srs=y3gtqm6c=cb=gmail.com=john doe"@contoso.com'),
        ("bob@gmail.com", "srs0=hash=tt=gmail.com=bob@contoso.com"),
        ("bob@[192.0.2.9]", "bob@[192.0.2.9]"),
    ],
)
def test_an_address_is_erased_however_it_is_spelt(made: Make, address: str, stored: str) -> None:
    database = made(entry("A", 1, stored), entry("B", 2, header_from=f"ceo@contoso.com, {stored}"))
    kept(database, f"{stored}##Relayed")
    assert erase(database, address) == Erased(2, 0, 0, {"abc": 1})
    assert cells(database) == []


def test_message_ids_and_subjects_that_are_or_have_the_address_go_too(made: Make) -> None:
    database = made(
        entry("A", 1, message_id="<Bob@Fabrikam.com>"),
        entry("B", 2, subject="Re: mail of (BOB@fabrikam.com)."),
        entry("C", 3, message_id="<123.bob@fabrikam.com>", subject="notbob@fabrikam.com bob@fabrikam.com.example"),
    )
    assert erase(database, "bob@fabrikam.com").ledger == 2
    assert left(database) == "C"


def test_a_row_that_says_nothing_of_the_address_but_its_parts_stays(made: Make) -> None:
    database = made(entry("A", 1, "bob@gmail.com", header_from="ann@fabrikam.com"))
    assert erase(database, "bob@fabrikam.com").ledger == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x@gmail.com##Relayed", True),
        ("ann@gmail.com, X@Gmail.com", True),
        ("<x@gmail.com> <y@gmail.com>", True),
        ("'x@gmail.com'", True),
        ("mailto:x@gmail.com.", True),
        ("o'x@gmail.com", False),
        ("n(x@gmail.com", False),
        ("[a]x@gmail.com", False),
        ("x@gmail.community", False),
        ("x@gmail.com-a.example", False),
    ],
)
def test_a_text_mentions_an_address_where_it_stands_by_itself(text: str, found: bool) -> None:
    assert Spellings("x@gmail.com").in_text(text) is found


def test_rows_of_kept_reports_that_name_the_address_go(made: Make) -> None:
    database = made()
    kept(database, "bob@fabrikam.com##Relayed", "Bob@fabrikam.com", "notbob@fabrikam.com", "o'bob@fabrikam.com")
    assert erase(database, "bob@fabrikam.com") == Erased(0, 0, 0, {"abc": 2})
    assert cells(database) == ["notbob@fabrikam.com", "o'bob@fabrikam.com"]


@pytest.mark.parametrize(
    "fields",
    [
        {"sender_addresses": ["bob@fabrikam.com"]},
        {"title": 'Mail of "Bob@fabrikam.com"'},
        {"summary": json.dumps({"groups": [{"remedies": ["bob@fabrikam.com is the kind of sender that"]}]})},
        {"summary": json.dumps({"by_domain": [["<bob@fabrikam.com>", 3]]})},
        {"status": "InProgress"},
    ],
    ids=["filter", "title", "remedy", "chart", "under way"],
)
def test_a_report_that_cannot_do_without_the_address_goes_as_a_whole(made: Make, fields: dict[str, str]) -> None:
    database = made()
    kept(database, "ann@fabrikam.com", **fields)
    assert erase(database, "bob@fabrikam.com") == Erased(0, 0, 1, {})
    assert (report_store.reports(database), cells(database)) == ([], [])


def test_what_is_erased_is_not_in_the_sqlite_file_any_more(tmp_path: Path) -> None:
    database = ledgers.sqlite(tmp_path, entry("A", 1, "bob@fabrikam.com"), entry("B", 2, "ann@fabrikam.com"))
    erase(database, "bob@fabrikam.com")
    database.close()
    octets = (tmp_path / "gatepost.db").read_bytes()
    assert (b"bob@fabrikam.com" in octets, b"ann@fabrikam.com" in octets) == (False, True)
