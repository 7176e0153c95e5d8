# SPDX-License-Identifier: GPL-3.0-or-later
"""What a recipient is as an SRS address, and whose bounce comes with it (S9). Pure but for the store's answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import NamedTuple, Optional
from urllib.parse import unquote

from gatepost.relay import normalize_domain
from gatepost.service.addresses import parse_address
from gatepost.service.snapshot import Snapshot, srs_domain_of
from gatepost.service.srs_config import COMPACT, Format
from gatepost.srs import Address, AddressError, Expired, HashMismatch, NotSrs, SrsError
from gatepost.srs.classic import is_tagged

DAY_S = 86400
SKEW_S = 300
"""How far the clock of another host with the same keys may be ahead."""
Stored = Callable[[str], Optional[str]]
"""The original address that the store has for a token, None where it has none."""


class Bounce(Enum):
    """What a recipient is as an SRS address."""

    NOT_SRS = "not-srs"
    FOREIGN = "foreign"
    """SRS-shaped, in a domain in which this host makes none (yet), or not one of ours: perhaps somebody else's."""
    ORIGINAL = "original"
    FORGED = "forged"
    EXPIRED = "expired"
    UNKNOWN = "unknown"
    """Compact, and the store has no original for its token: expired long ago, forged, or in another host's store."""

    def __init__(self, word: str) -> None:
        self.labels = (word,)
        """For metrics. `value` is a descriptor, which costs more than all else there."""


class Reversal(NamedTuple):
    """*original*: the original sender in its written form, "" unless *bounce* is ORIGINAL."""

    bounce: Bounce
    original: str = ""


_NOT_SRS = Reversal(Bounce.NOT_SRS)
_SRS0, _EXCHANGE = Format.SRS0.value, Format.EXCHANGE.value
_SHAPE = re.compile(r'(?:\+|%2[Bb])[Ss][Rr][Ss](?:=|%3[Dd])|^"?[Ss][Rr][Ss][01](?:[=+-]|%3[Dd]|%2[BbDd])')
_HAS_SRS = re.compile(r"\+srs=[^=@]{1,64}=[a-z2-7]{2}|srs[01][=+-][^=@]{1,64}=")
_COMPACT_SHAPE = re.compile(r'"?bounces(?:\+|%2B)SRS(?:=|%3D)[A-Z2-7]{16}(?:=|%3D)\w\w"?@', re.IGNORECASE)


def day(now: int) -> int:
    """Return the days since 1970-01-01 (UTC)."""
    return now // DAY_S


def reverse(snapshot: Snapshot, rcpt: str, now: int, stored: Stored) -> Reversal:
    """Tell what *rcpt* is, and whose bounce comes with it; *now* in Unix seconds.

    Some MTAs lower-case it, put it into quotes, or write %2B and %3D for + and =. *stored* is asked about a token of
    the compact form only; what it raises passes through.
    """
    lowered = rcpt.lower()
    # Fast, and enough for nearly all; the expression says the same of what has +srs= in it.
    if "srs" not in lowered or ("+srs=" not in lowered and _SHAPE.search(rcpt) is None):
        return _NOT_SRS
    try:
        address = parse_address(rcpt)
    except AddressError:
        return _NOT_SRS
    domain = normalize_domain(address.domain)
    if domain is None or not ours(snapshot, domain):
        return Reversal(Bounce.FOREIGN)
    if address.domain != domain:
        address = Address(address.local, domain)
    found = _NOT_SRS
    for spelling in _spellings(address):
        try:
            return Reversal(Bounce.ORIGINAL, str(_original(snapshot, spelling, now, stored)))
        except HashMismatch as error:
            bounce = Bounce.UNKNOWN if isinstance(error, _Unknown) else Bounce.FORGED
            found = Reversal(bounce if _mints(snapshot, domain) else Bounce.FOREIGN)
        except Expired:
            return Reversal(Bounce.EXPIRED)
        except (NotSrs, AddressError):
            continue
    return found


def _spellings(address: Address) -> Sequence[Address]:
    if "%" not in address.local:
        return (address,)
    try:
        return (address, Address(unquote(address.local), address.domain))
    except AddressError:
        return (address,)


class _Unknown(HashMismatch):
    """The store has no original for a token."""


def _original(snapshot: Snapshot, address: Address, now: int, stored: Stored) -> Address:
    """Return the original by the first format that verifies *address*. Raises SrsError.

    `SRS0=…=a+SRS=…` has the form of both formats, so that a wrong hash for one does not end the search.
    """
    failure: Optional[SrsError] = None
    today = day(now)
    for read in _readers(snapshot, address, stored):
        try:
            return read(address, today)
        except NotSrs:
            continue
        except HashMismatch as error:
            failure = error
        except Expired:
            if day(now + SKEW_S) == today:
                raise
            return read(address, day(now + SKEW_S))  # made just now, where it is tomorrow already
    raise failure or NotSrs("no format that is reversed here")


def _readers(snapshot: Snapshot, address: Address, stored: Stored) -> Iterator[Callable[[Address, int], Address]]:
    forms = snapshot.reversed_forms
    if _SRS0 in forms and is_tagged(address.local):
        yield snapshot.classic.reverse
    if _EXCHANGE in forms:
        yield snapshot.exchange.reverse
    if COMPACT in forms:
        yield partial(_read_compact, snapshot, stored)


def _read_compact(snapshot: Snapshot, stored: Stored, address: Address, day: int) -> Address:
    text = stored(snapshot.compact.token(address))
    if text is None:
        raise _Unknown("the store does not know the token")
    original = Address.parse(text)
    snapshot.compact.verify(address, original, day)
    return original


def unreadable(snapshot: Snapshot, rcpt: str) -> bool:
    """Tell whether only the MTA knows which SRS address *rcpt* is: `contoso.com!bounces+SRS=…`, one without a domain.

    Postfix swaps, completes and cuts it behind its policy service, so that the map `reverse` gets an address of ours.
    Of `@a.example:@b.example:bounces+SRS=…` it has cut the first source route only.
    """
    lowered = rcpt.lower()
    if "srs" not in lowered:
        return False
    domain = lowered.rpartition("@")[2] if "@" in lowered else ""
    whole = "." in domain or (domain and ours(snapshot, normalize_domain(domain)))
    if whole and not lowered.startswith("@"):
        return False
    return any(map(_HAS_SRS.search, (lowered, unquote(rcpt).lower())))


def token(snapshot: Snapshot, rcpt: str) -> Optional[str]:
    """Return the token that *rcpt* can only be reversed with, for who can't wait for the store in `reverse`."""
    if _COMPACT_SHAPE.match(rcpt) is None:
        return None
    asked: list[str] = []

    def ask(token: str) -> None:
        asked.append(token)

    reverse(snapshot, rcpt, 0, ask)
    return asked[0] if asked else None


def ours(snapshot: Snapshot, domain: Optional[str]) -> bool:
    """Tell whether *domain*, in normal form, is an accepted domain or an srs_domain."""
    return domain is not None and (domain in snapshot.srs_domains or snapshot.rules.accepted(domain) is not None)


def _mints(snapshot: Snapshot, domain: str) -> bool:
    """Tell whether this host makes SRS addresses in *domain*, one of ours.

    An srs_domain takes the place of what it is declared for, and in monitor mode nothing is rewritten.
    """
    name = snapshot.srs_domains.get(domain)
    accepted = snapshot.rules.accepted(domain)
    if name is None and accepted:
        name = accepted.organization.name
        if srs_domain_of(snapshot.config, accepted.organization, accepted.accepted_domain.domain) is not None:
            return False
    if name is None:
        return False
    upstream = snapshot.upstream_by_p1
    if upstream and upstream.organization.name == name:  # in its name all mail is rewritten, whoever's it is
        return bool(snapshot.enforcing)
    return snapshot.enforces(snapshot.rules.organizations[name])
