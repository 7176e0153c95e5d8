# SPDX-License-Identifier: GPL-3.0-or-later
"""What reports read of the ledger, and what is kept of them, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ledgers
import pytest
import sqlalchemy as sa
from ledgers import bounce, entry, rewritten

from gatepost.service import report_store, schema
from gatepost.service.database import Database
from gatepost.service.report_store import ReportGone, Stored

Make = Callable[..., Database]


@pytest.fixture
def made(url: str) -> Make:
    """A function that makes a store with records in it."""
    return lambda *records: ledgers.store(url, *records)


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


def test_what_was_put_off_held_or_tagged_was_refused_and_not_let_through_by_mode_monitor(made: Make) -> None:
    actions = ("defer", "quarantine", "tag")
    inside = entry("INSIDE", 9, action="quarantine", verdict_current="inside", verdict_legacy="inside")
    database = made(*(entry(action, number, action=action) for number, action in enumerate(actions)), inside)
    assert references(database, "Refused") == "defer quarantine tag"
    assert references(database, "WouldRefuse") == ""


def test_refusals_that_make_room_are_those_that_were_turned_away(made: Make) -> None:
    database = made(*(entry(action, 5, action=action) for action in ("reject", "defer", "quarantine", "tag")))
    assert report_store.refusals_begin(database, 2) == 5.0
    assert report_store.refusals_begin(database, 3) is None


def test_where_legacy_is_in_force_what_it_relays_is_not_refused(made: Make) -> None:
    database = made(entry("A", 1, requirements="legacy"), entry("B", 2, requirements="legacy", verdict_legacy="refuse"))
    assert references(database, "Refused") == "B"


def test_what_policyd_leaves_to_the_mta_is_not_refused(made: Make) -> None:
    database = made(entry("A", 1, reason="left-to-mta", verdict_legacy=""))
    assert references(database, "Refused") == ""
    assert references(database, "WouldRefuse") == ""
    assert references(database, "P2Unseen") == ""


def test_p2_is_unseen_where_the_new_rules_refuse_and_legacy_said_nothing(made: Make) -> None:
    database = made(
        entry("A", 1, verdict_legacy=""),
        entry("REFUSED", 2, verdict_legacy="", action="reject"),
        entry("SEEN", 3, verdict_legacy="refuse"),
        entry("SRS", 4, verdict_current="", verdict_legacy="", action="reject", reason="srs-forged"),
    )
    assert references(database, "P2Unseen") == "A REFUSED"


def test_refusals_begin_where_there_are_so_many_that_older_ones_made_room(made: Make) -> None:
    database = made(rewritten("A", 1), entry("B", 5, action="reject"), entry("C", 6, action="reject"))
    assert report_store.refusals_begin(database, 2) == 5.0
    assert report_store.refusals_begin(database, 3) is None


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
    report_store.begin(database, Stored("abc", 1.0, "asked", ""))
    report_store.keep(database, Stored("abc", 1.0, "begun", ""), 0, ['["1"]', '["2"]'])
    report_store.keep(database, Stored("abc", 1.0, "done", "summary"), 2, ['["3"]'])
    assert report_store.reports(database) == [Stored("abc", 1.0, "done", "summary")]
    assert list(report_store.rows(database, "abc")) == ['["1"]', '["2"]', '["3"]']


def test_a_report_that_was_deleted_is_not_kept_anew(made: Make) -> None:
    database = made()
    report_store.begin(database, Stored("abc", 1.0, "begun", ""))
    report_store.forget_report(database, "abc")
    with pytest.raises(ReportGone):
        report_store.keep(database, Stored("abc", 1.0, "done", ""), 0, ["[]"])
    assert (report_store.reports(database), list(report_store.rows(database, "abc"))) == ([], [])


def test_reports_come_newest_first_and_by_the_beginning_of_their_id(made: Make) -> None:
    database = made()
    for job_id, submitted in (("aa1", 1.0), ("aa2", 3.0), ("bb1", 2.0), ("a%", 0.0)):
        report_store.begin(database, Stored(job_id, submitted, "", ""))
    assert [item.job_id for item in report_store.reports(database)] == ["aa2", "bb1", "aa1", "a%"]
    assert [item.job_id for item in report_store.reports(database, "aa")] == ["aa2", "aa1"]
    assert [item.job_id for item in report_store.reports(database, "a%")] == ["a%"]


def test_forgetting_the_rows_of_a_report_leaves_those_of_others(made: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_store, "PAGE", 2)
    database = made()
    for job_id in ("a", "b"):
        report_store.begin(database, Stored(job_id, 1.0, "", ""))
        report_store.keep(database, Stored(job_id, 1.0, "", ""), 0, ["[]"] * 5)
    report_store.forget_rows(database, "a")
    assert (len(list(report_store.rows(database, "a"))), len(list(report_store.rows(database, "b")))) == (0, 5)
