# SPDX-License-Identifier: GPL-3.0-or-later
"""What an SRS address says about itself, without keys."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.srs import Address, Inspection, NotSrs, inspect

OBSERVED = json.loads((Path(__file__).parent / "vectors" / "office365_observed.json").read_text())["observed"]


def day_of(iso: str) -> int:
    return (date.fromisoformat(iso) - date(1970, 1, 1)).days


def inspect_text(text: str, iso: str) -> Inspection:
    return inspect(Address.parse(text), day_of(iso))


def test_example_of_the_announcement_is_taken_apart() -> None:
    assert inspect_text("john.work+SRS=44ldt=IX=fabrikam.com=bob@contoso.com", "2018-07-01") == Inspection(
        form="long",
        mailbox="john.work",
        hash="44ldt",
        stamp="IX",
        date="2018-06-05",
        original_domain="fabrikam.com",
        original_user="bob",
        srs_domain="contoso.com",
    )


def test_compact_form_has_no_original() -> None:
    assert inspect_text("bounces+SRS=HnE87=C7@contoso.com", "2023-07-20") == Inspection(
        form="compact",
        mailbox="bounces",
        hash="HnE87",
        stamp="C7",
        date="2023-07-13",
        original_domain=None,
        original_user=None,
        srs_domain="contoso.com",
    )


@pytest.mark.parametrize("sample", OBSERVED, ids=lambda sample: f"{sample['stamp']}-{sample['date_utc']}")
@pytest.mark.parametrize(
    "template", ["john+SRS={}={}=fabrikam.com=bob@contoso.com", "bounces+SRS={}={}@contoso.com"]
)
def test_observed_hash_and_stamp_are_read_in_both_forms(template: str, sample: dict[str, str]) -> None:
    text = template.format(sample["hash"], sample["stamp"])
    found = inspect_text(text, sample["date_utc"])
    assert (found.hash, found.stamp, found.date) == (sample["hash"], sample["stamp"], sample["date_utc"])


@pytest.mark.parametrize(
    ("today", "meant"),
    [
        ("2026-01-27", "2026-01-27"),
        ("2026-01-26", "2026-01-27"),
        ("2026-01-25", "2023-04-09"),
        ("2028-11-14", "2026-01-27"),
        ("2028-11-15", "2028-11-16"),
    ],
)
def test_date_is_the_latest_with_that_stamp_up_to_tomorrow(today: str, meant: str) -> None:
    assert inspect_text("john+SRS=44ldt=AA=fabrikam.com=bob@contoso.com", today).date == meant


@pytest.mark.parametrize(
    "text",
    [
        "john@contoso.com",
        "john+tag@contoso.com",
        "john+SRS=@contoso.com",
        "john+SRS=44ldt@contoso.com",
        "john+SRS==IX@contoso.com",
        "john+SRS=44ldt=IX=@contoso.com",
        "john+SRS=44ldt=IX=fabrikam.com@contoso.com",
        "john+SRS=44ldt=IX=fabrikam.com=@contoso.com",
        "john+SRS=44ldt=I1=fabrikam.com=bob@contoso.com",
        "+SRS=44ldt=IX=fabrikam.com=bob@contoso.com",
        '"bounces+SRS=44ldt=IX= fabrikam.com=bob"@contoso.com',
        "SRS0@contoso.com",
        "SRS0=HHHH=TT=fabrikam.com@contoso.com",
        "SRS0=HHHH=T1=fabrikam.com=bob@contoso.com",
        "SRS0=HHHH=T=fabrikam.com=bob@contoso.com",
        "SRS0=HHHH=TT=a..b=bob@contoso.com",
        "SRS1=HHHH@contoso.com",
        "SRS1=HHHH=first.example@contoso.com",
        "SRS1=HHHH=a..b==HHHH=TT=fabrikam.com=bob@contoso.com",
        "SRS2=HHHH=TT=fabrikam.com=bob@contoso.com",
    ],
)
def test_address_without_the_form_is_not_srs(text: str) -> None:
    with pytest.raises(NotSrs):
        inspect_text(text, "2018-07-01")


def test_srs0_is_taken_apart() -> None:
    assert inspect_text('"SRS0=vmyz=2W=otherdomain.com=\\"john doe\\""@example.com', "2020-01-02") == Inspection(
        form="SRS0",
        mailbox="",
        hash="vmyz",
        stamp="2W",
        date="2020-01-01",
        original_domain="otherdomain.com",
        original_user="john doe",
        srs_domain="example.com",
    )


def test_srs1_shows_its_first_host_and_the_original_of_the_srs0_there() -> None:
    text = "SRS1+xs1E=first.example=-TGjY=2W=orig.example=alice@third.example"
    assert inspect_text(text, "2020-01-02") == Inspection(
        form="SRS1",
        mailbox="",
        hash="xs1E",
        stamp="2W",
        date="2020-01-01",
        original_domain="orig.example",
        original_user="alice",
        srs_domain="third.example",
        first_host="first.example",
    )


@pytest.mark.parametrize(
    "rest",
    ["nosep", "=", "=TGjY=2=orig.example=alice", "=TGjY=2W=,=alice", "x+SRS=44ldt=IX=fabrikam.com=bob"],
)
def test_srs1_of_an_srs0_that_cannot_be_read_shows_its_first_host_only(rest: str) -> None:
    assert inspect_text(f'"SRS1=xs1E=first.example={rest}"@third.example', "2020-01-02") == Inspection(
        form="SRS1",
        mailbox="",
        hash="xs1E",
        stamp="",
        date="",
        original_domain=None,
        original_user=None,
        srs_domain="third.example",
        first_host="first.example",
    )


def test_tag_decides_the_form_where_the_user_of_srs0_is_an_exchange_address() -> None:
    found = inspect_text("SRS0=vmyz=2W=a.example=john+SRS=44ldt=IX=fabrikam.com=bob@b.example", "2020-01-02")
    assert (found.form, found.original_user) == ("SRS0", "john+SRS=44ldt=IX=fabrikam.com=bob")


@given(
    st.text(st.sampled_from("+SRSsrsſ=aA2 .@\"é"), min_size=1, max_size=30)
    | st.lists(st.sampled_from(["SRS0=", "srs1-", "+SRS=", "=", "AA", "a.b", '"', "x"]), min_size=1).map("".join)
)
@settings(deadline=None, max_examples=1000)
def test_any_address_is_inspected_or_not_srs(local: str) -> None:
    try:
        found = inspect(Address(local, "contoso.com"), 20600)
    except NotSrs:
        return
    assert found.hash
    assert found.mailbox or found.form in {"SRS0", "SRS1"}
