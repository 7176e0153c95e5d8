# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatepost doctor`, the SRS keys and the clock."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Optional

import pytest
from doctors import circumstances, found, texts

from gatepost.admin.doctor.keys import judged_clock, synchronised
from gatepost.admin.doctor.model import Circumstances
from gatepost.service.secret import iso_day

DAY_S = 86400
TODAY = 20_400
NOW = TODAY * DAY_S + 3600
OLD, NEW, THIRD = "the old key of 24 octets", "the new key of 24 octets", "another one of 24 octets"


def name(key: str) -> str:
    """The fingerprint that `gatepost config check` shows, too."""
    return hashlib.sha256(key.encode()).hexdigest()[:8]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "srs.secret"


def looking(file: Path, *keys: tuple[str, Optional[int]], changed: int = TODAY) -> Circumstances:
    """Circumstances with these keys, each with the day from which it signs, or None; *changed*: day of the file."""
    lines = [f"# signs from {iso_day(day)}\n{key}\n" if day is not None else f"{key}\n" for key, day in keys]
    file.write_text("".join(lines))
    file.chmod(0o600)
    os.utime(file, (changed * DAY_S, changed * DAY_S))
    return circumstances({"srs": {"secret_file": str(file)}}, now=NOW)


def test_a_fresh_key_is_well(file: Path) -> None:
    assert texts(looking(file, (OLD, None)), "keys") == [f"ok: SRS key {name(OLD)} signs"]


def test_hosts_can_be_compared_by_what_is_told(file: Path) -> None:
    looked_at = looking(file, (NEW, TODAY - 3), (OLD, None))
    assert texts(looked_at, "keys") == [f"ok: SRS key {name(NEW)} signs, {name(OLD)} verify"]


def test_a_key_of_more_than_a_year_is_mentioned(file: Path) -> None:
    assert texts(looking(file, (OLD, TODAY - 400)), "keys")[0] == (
        f"info: {file}: {name(OLD)} has signed for 400 days, since {iso_day(TODAY - 400)}"
    )


def test_a_key_of_more_than_two_years_is_a_warning(file: Path) -> None:
    finding, _ = found(looking(file, (OLD, None), changed=TODAY - 800), "keys")
    assert finding.severity.value == "warning"
    assert finding.what == f"{file}: {name(OLD)} has signed for 800 days, since {iso_day(TODAY - 800)}"
    assert finding.remedy == ("gatepost -c gatepost.toml srs rotate",)


def test_a_key_that_signs_from_tomorrow_is_well(file: Path) -> None:
    assert texts(looking(file, (NEW, TODAY + 1), (OLD, None)), "keys") == [
        f"ok: SRS key {name(OLD)} signs, {name(NEW)} verify"
    ]


def test_a_key_that_signs_from_next_year_is_mentioned(file: Path) -> None:
    assert texts(looking(file, (NEW, TODAY + 365), (OLD, None)), "keys")[0] == (
        f"info: {file}: {name(NEW)} signs from {iso_day(TODAY + 365)} on, in 365 days"
    )


def test_keys_that_may_all_not_sign_yet_are_a_warning(file: Path) -> None:
    assert texts(looking(file, (NEW, TODAY + 2)), "keys")[0] == (
        f"warning: {file}: no key may sign before {iso_day(TODAY + 2)}; {name(NEW)} does so all the same"
    )


def test_a_key_whose_addresses_have_expired_can_go(file: Path) -> None:
    looked_at = looking(file, (NEW, TODAY - 30), (OLD, TODAY - 100), changed=TODAY - 30)
    finding, _ = found(looked_at, "keys")
    assert finding.what == f"{file}: all addresses of {name(OLD)} have expired"
    assert finding.remedy == ("gatepost -c gatepost.toml srs rotate   # removes them; or delete their lines",)


def test_a_key_that_addresses_still_need_stays(file: Path) -> None:
    looked_at = looking(file, (NEW, TODAY - 10), (OLD, TODAY - 100), changed=TODAY - 10)
    assert texts(looked_at, "keys") == [f"ok: SRS key {name(NEW)} signs, {name(OLD)} verify"]


def test_a_short_key_is_a_warning(file: Path) -> None:
    assert texts(looking(file, ("sesame", None)), "keys")[0] == (
        f"warning: {file}: {name('sesame')} has 6 octets, safe are 16 and more"
    )


def test_no_secret_yet_is_mentioned(file: Path) -> None:
    looked_at = circumstances({"srs": {"secret_file": str(file)}}, missing_secret=file)
    assert texts(looked_at, "keys") == [f"info: {file} is not there yet"]


def test_a_secret_that_has_gone_meanwhile_is_not_known(file: Path) -> None:
    (line,) = texts(circumstances({"srs": {"secret_file": str(file)}}), "keys")
    assert line.startswith(f"unknown: {file} cannot be read: ")


# The clock

AUGUST = 1_786_000_000


def judged(dated: list[tuple[Path, float]], synchronised: Optional[bool]) -> str:
    finding = judged_clock(AUGUST, dated, synchronised)
    return f"{finding.severity.value}: {finding.what}"


def test_a_clock_that_is_kept_right_is_well() -> None:
    assert judged([(Path("/x"), AUGUST - 5)], True) == "ok: the clock shows 2026-08-06 07:06 UTC, and is kept right"


def test_a_clock_that_the_kernel_says_nothing_of_is_well() -> None:
    assert judged([], None) == "ok: the clock shows 2026-08-06 07:06 UTC"


def test_a_clock_that_nothing_keeps_right_is_mentioned() -> None:
    assert judged([], False) == "info: nothing keeps the clock right; it shows 2026-08-06 07:06 UTC"


def test_a_file_of_the_future_shows_that_the_clock_is_wrong() -> None:
    dated = [(Path("/usr/lib/a"), AUGUST + 3 * DAY_S), (Path("/var/lib/b"), AUGUST + 2 * DAY_S)]
    assert judged(dated, True) == (
        "error: the clock shows 2026-08-06 07:06 UTC, and /usr/lib/a was written on 2026-08-09 07:06 UTC"
    )


def test_a_few_minutes_do_not_matter() -> None:
    assert judged([(Path("/x"), AUGUST + 600)], True).startswith("ok: ")


def test_the_files_of_this_release_are_looked_at() -> None:
    (line,) = texts(circumstances(now=0), "clock")
    assert line.startswith("error: the clock shows 1970-01-01 00:00 UTC, and ")
    assert "version.py was written on " in line


def test_the_kernel_is_asked() -> None:
    assert synchronised() in (True, False)
