# SPDX-License-Identifier: GPL-3.0-or-later
"""What an SRS address says about itself, for people: no key is asked and nothing is verified."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Optional

from .address import Address
from .exchange import split
from .stamp import age

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Inspection:
    """The fields of an SRS address as written, Exchange Online's own included.

    date: the ISO date that the stamp most likely means. original_domain and original_user: None in the
    compact form (S5), whose original only the store of its maker knows.
    """

    mailbox: str
    hash: str
    stamp: str
    date: str
    original_domain: Optional[str]
    original_user: Optional[str]
    srs_domain: str


def inspect(address: Address, day: int) -> Inspection:
    """Take an SRS address of the long or the compact form apart; raises NotSrs.

    The date is the latest one with that stamp up to the day after *day* (days since 1970-01-01 UTC): a stamp
    of tomorrow is rather a clock ahead than an address of 1,023 days ago.
    """
    mailbox, hash_, made, original = split(address.local)
    tomorrow = day + 1
    return Inspection(
        mailbox=mailbox,
        hash=hash_,
        stamp=made,
        date=(_EPOCH + timedelta(days=tomorrow - age(made, tomorrow))).isoformat(),
        original_domain=original.domain if original else None,
        original_user=original.local if original else None,
        srs_domain=address.domain,
    )
