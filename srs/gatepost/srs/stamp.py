# SPDX-License-Identifier: GPL-3.0-or-later
"""The timestamp of SRS addresses: two base32 characters for a day, which come again every 1,024 days (S7)."""

from __future__ import annotations

from .errors import NotSrs

PERIOD_DAYS = 1024

_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
PAIRS = [high + low for high in _BASE32 for low in _BASE32]
"""All of two characters: what ten bits are."""
_DIGITS = {char: value for value, upper in enumerate(_BASE32) for char in (upper, upper.lower())}
_VALUES = {a + b: 32 * high + low for a, high in _DIGITS.items() for b, low in _DIGITS.items()}


def stamp(day: int) -> str:
    """Return the two upper-case characters for *day*, days since 1970-01-01 UTC."""
    return PAIRS[day % PERIOD_DAYS]


def age(stamp: str, day: int) -> int:
    """Return how many days before *day* the stamp was made, 0 to 1023; case does not count.

    Tomorrow's stamp is 1,023 days old: a stamp cannot tell. Raises NotSrs where it is not two characters of
    A-Z and 2-7.
    """
    value = _VALUES.get(stamp)
    if value is None:
        raise NotSrs("the timestamp is not two characters of A-Z and 2-7")
    return (day - value) % PERIOD_DAYS
