# SPDX-License-Identifier: GPL-3.0-or-later
"""The timestamp of SRS addresses (S7)."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.srs import NotSrs, age, stamp

OBSERVED = json.loads((Path(__file__).parent / "vectors" / "office365_observed.json").read_text())["observed"]


def day_of(iso: str) -> int:
    return (date.fromisoformat(iso) - date(1970, 1, 1)).days


@pytest.mark.parametrize(
    ("iso", "expected"),
    [
        ("2023-07-13", "C7"),
        ("2022-05-19", "V3"),
        ("2024-08-30", "P5"),
        ("2024-02-19", "J4"),
        ("2024-08-26", "PZ"),
        ("2026-01-26", "77"),
        ("2026-01-27", "AA"),
        ("2026-01-28", "AB"),
        ("2028-11-15", "77"),
        ("2028-11-16", "AA"),
    ],
)
def test_stamp_of_a_date_is_the_one_that_office_365_writes(iso: str, expected: str) -> None:
    assert stamp(day_of(iso)) == expected


@pytest.mark.parametrize("sample", OBSERVED, ids=lambda sample: f"{sample['stamp']}-{sample['date_utc']}")
def test_observed_stamp_is_the_day_number_modulo_1024(sample: dict[str, object]) -> None:
    day = day_of(str(sample["date_utc"]))
    assert day % 1024 == sample["stamp_value"] == sample["day_mod_1024"]
    assert stamp(day) == str(sample["stamp"]).upper()
    assert age(str(sample["stamp"]), day) == 0


def test_all_1024_stamps_are_different_and_two_characters_long() -> None:
    stamps = {stamp(day) for day in range(20480, 20480 + 1024)}
    assert len(stamps) == 1024
    assert {len(text) for text in stamps} == {2}


def test_each_of_the_1024_stamps_has_every_age_it_should_have() -> None:
    for day in range(1024):
        assert age(stamp(day), day) == 0
        assert age(stamp(day), day + 21) == 21
        assert age(stamp(day), day + 1024) == 0
        assert age(stamp(day), day - 1) == 1023


def test_case_of_a_stamp_does_not_count() -> None:
    assert age("pz", 19961) == age("pZ", 19961) == age("Pz", 19961) == age("PZ", 19961) == 0


@pytest.mark.parametrize("text", ["", "A", "AAA", "A1", "0A", "A8", "A=", " A", "A ", "ſA", "\u212aA", "A\n"])
def test_text_that_is_no_stamp_is_not_srs(text: str) -> None:
    with pytest.raises(NotSrs):
        age(text, 20480)


@given(st.integers(-5000, 60000), st.integers(0, 1023))
@settings(deadline=None)
def test_age_is_the_number_of_days_since(day: int, days: int) -> None:
    assert age(stamp(day), day + days) == days
