# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong SRS recipients of a client: so many an hour, counted by all workers together."""

from __future__ import annotations

from pathlib import Path

import pytest

from gatepost.service.guesses import Guesses

NOW = 1_700_000_000
HOUR_S = 3600
CLIENT = "203.0.113.9"


def fail(guesses: Guesses, client: str, *times: int) -> None:
    for now in times:
        guesses.failed(client, now)


def test_client_may_fail_as_often_as_the_limit_says_and_then_is_one_too_many() -> None:
    guesses = Guesses(None, 3)
    fail(guesses, CLIENT, NOW, NOW + 1)
    assert not guesses.too_many(CLIENT, NOW + 1)
    fail(guesses, CLIENT, NOW + 2)
    assert guesses.too_many(CLIENT, NOW + 2)


def test_client_that_never_failed_is_none_too_many() -> None:
    assert not Guesses(None, 1).too_many(CLIENT, NOW)


def test_limit_0_is_no_limit() -> None:
    guesses = Guesses(None, 0)
    fail(guesses, CLIENT, *[NOW] * 1000)
    assert not guesses.too_many(CLIENT, NOW)


def test_hour_begins_with_the_first_failure() -> None:
    guesses = Guesses(None, 2)
    fail(guesses, CLIENT, NOW, NOW + HOUR_S - 1)
    assert guesses.too_many(CLIENT, NOW + HOUR_S - 1)
    assert not guesses.too_many(CLIENT, NOW + HOUR_S)


def test_failure_after_the_hour_begins_another_one() -> None:
    guesses = Guesses(None, 2)
    fail(guesses, CLIENT, NOW, NOW, NOW + HOUR_S)
    assert not guesses.too_many(CLIENT, NOW + HOUR_S)
    fail(guesses, CLIENT, NOW + 2 * HOUR_S - 1)
    assert guesses.too_many(CLIENT, NOW + 2 * HOUR_S - 1)


def test_clock_that_was_put_back_locks_nobody_out() -> None:
    guesses = Guesses(None, 1)
    fail(guesses, CLIENT, NOW)
    assert not guesses.too_many(CLIENT, NOW - 10 * HOUR_S)


@pytest.mark.parametrize(
    ("guesser", "other", "together"),
    [
        (CLIENT, "203.0.113.10", False),
        ("2001:db8:1:2::5", "2001:db8:1:2:ffff::1", True),
        ("2001:db8:1:2::5", "2001:DB8:1:2::6", True),
        ("::1", "::2", True),
        ("2001:db8:1:2::5", "2001:db8:1:ff::5", True),
        ("2001:db8:1:2::5", "2001:db8:1:102::5", False),
        ("::ffff:203.0.113.9", CLIENT, True),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.10", False),
        ("", CLIENT, False),
        ("unknown", "unknown", True),
    ],
)
def test_ipv4_addresses_count_each_for_itself_and_those_of_an_ipv6_56_network_together(
    guesser: str, other: str, together: bool
) -> None:
    guesses = Guesses(None, 1)
    fail(guesses, guesser, NOW)
    assert guesses.too_many(other, NOW) is together


def test_processes_count_together_in_one_file(tmp_path: Path) -> None:
    one, other = Guesses(tmp_path / "guesses", 2), Guesses(tmp_path / "guesses", 2)
    fail(one, CLIENT, NOW)
    fail(other, CLIENT, NOW)
    assert [one.too_many(CLIENT, NOW), other.too_many(CLIENT, NOW)] == [True, True]


def test_folder_that_is_not_there_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Guesses(tmp_path / "state" / "guesses", 1)
