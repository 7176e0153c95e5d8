# SPDX-License-Identifier: GPL-3.0-or-later
"""What an SRS address says about itself, for people: no key is asked and nothing is verified."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Literal, NamedTuple, Optional

from . import classic, exchange
from .address import Address
from .errors import NotSrs
from .stamp import age

_EPOCH = date(1970, 1, 1)


class Inspection(NamedTuple):
    """The fields of an SRS address as written, Exchange Online's own included.

    mailbox: "" in SRS0 and SRS1. date: the ISO date that the stamp most likely means. original_domain and
    original_user: None in the compact form (S5), whose original only the store of its maker knows. SRS1 has its own
    hash, but stamp, date and original of the SRS0 address that it stands for; where that cannot be read, stamp and
    date are "" and the original is None. first_host: where bounces to an SRS1 address go, None in the other forms.
    """

    form: Literal["long", "compact", "SRS0", "SRS1"]
    mailbox: str
    hash: str
    stamp: str
    date: str
    original_domain: Optional[str]
    original_user: Optional[str]
    srs_domain: str
    first_host: Optional[str] = None


def inspect(address: Address, day: int) -> Inspection:
    """Take an SRS address of any form apart; raises NotSrs.

    The date is the latest one with that stamp up to the day after *day* (days since 1970-01-01 UTC): a stamp
    of tomorrow is rather a clock ahead than an address of 1,023 days ago.
    """
    if classic.is_tagged(address.local):
        parts = classic.split(address.local)
        if isinstance(parts, classic.Srs1):
            return _inspect_srs1(parts, address, day)
        return _inspect_srs0(parts, address, day)
    mailbox, hash_, made, original = exchange.split(address.local)
    return Inspection(
        form="long" if original else "compact",
        mailbox=mailbox,
        hash=hash_,
        stamp=made,
        date=_date(made, day),
        original_domain=original.domain if original else None,
        original_user=original.local if original else None,
        srs_domain=address.domain,
    )


def _inspect_srs0(parts: classic.Srs0, address: Address, day: int) -> Inspection:
    original = classic.wrapped(parts)
    return Inspection(
        form="SRS0",
        mailbox="",
        hash=parts.hash,
        stamp=parts.stamp,
        date=_date(parts.stamp, day),
        original_domain=original.domain,
        original_user=original.local,
        srs_domain=address.domain,
    )


def _inspect_srs1(parts: classic.Srs1, address: Address, day: int) -> Inspection:
    first = classic.wrapped(parts)
    try:
        inner = inspect(first, day) if classic.is_tagged(first.local) else None
    except NotSrs:
        inner = None
    return Inspection(
        form="SRS1",
        mailbox="",
        hash=parts.hash,
        stamp=inner.stamp if inner else "",
        date=inner.date if inner else "",
        original_domain=inner.original_domain if inner else None,
        original_user=inner.original_user if inner else None,
        srs_domain=address.domain,
        first_host=parts.first_host,
    )


def _date(made: str, day: int) -> str:
    tomorrow = day + 1
    return (_EPOCH + timedelta(days=tomorrow - age(made, tomorrow))).isoformat()
