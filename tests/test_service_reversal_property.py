# SPDX-License-Identifier: GPL-3.0-or-later
"""The reversal's short cuts change nothing: every format, asked the long way, gives the same."""

from __future__ import annotations

import re
import sys
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snapshots import ADDRESSES, DAY, KEYS, LOCAL_PARTS, NOW, Shelf, organization, snapshot, snapshots

from gatepost.relay import normalize_domain
from gatepost.service import reversal, rewriting
from gatepost.service.addresses import parse_address
from gatepost.service.reversal import Bounce, Reversal, Stored
from gatepost.service.snapshot import Snapshot
from gatepost.srs import Address, AddressError, Classic, Exchange, Expired, HashMismatch, Keys, NotSrs

SHAPE = re.compile(r'(?:\+|%2[Bb])[Ss][Rr][Ss](?:=|%3[Dd])|^"?[Ss][Rr][Ss][01](?:[=+-]|%3[Dd]|%2[BbDd])')
ALL = snapshot(organization("contoso", "contoso.com"), also_reverse=["exchange", "srs0", "compact"], form="auto")
COMPACT = snapshot(organization("contoso", "contoso.com"), form="compact")


def the_long_way(made: Snapshot, rcpt: str, now: int, stored: Stored) -> Reversal:
    """Do what `reversal.reverse` does, in its order, and ask every format about everything."""
    try:
        given = parse_address(rcpt)
    except AddressError:
        return Reversal(Bounce.NOT_SRS)
    if SHAPE.search(rcpt) is None:
        return Reversal(Bounce.NOT_SRS)
    domain = normalize_domain(given.domain)
    if domain is None or not reversal.ours(made, domain):
        return Reversal(Bounce.FOREIGN)
    found = Reversal(Bounce.NOT_SRS)
    for local in dict.fromkeys((given.local, unquote(given.local))):
        try:
            bounce, original = asked(made, Address(local, domain), now, stored)
        except AddressError:
            continue
        if bounce in (Bounce.ORIGINAL, Bounce.EXPIRED):
            return Reversal(bounce, original)
        if bounce is not Bounce.NOT_SRS:
            found = Reversal(bounce if reversal._mints(made, domain) else Bounce.FOREIGN)
    return found


def asked(made: Snapshot, address: Address, now: int, stored: Stored) -> tuple[Bounce, str]:
    """Return what *address* is by the last format that has a word on it, the first that knows it. AddressError too."""
    verdict = Bounce.NOT_SRS
    for form in ("srs0", "exchange", "compact"):
        if form not in made.reversed_forms:
            continue
        for moment in (now, now + 300):
            try:
                return Bounce.ORIGINAL, str(read(made, form, address, moment // 86400, stored))
            except NotSrs:
                if moment > now:
                    return Bounce.NOT_SRS, ""
            except Unknown:
                verdict = Bounce.UNKNOWN
            except HashMismatch:
                verdict = Bounce.FORGED
            except Expired:
                if moment > now or now // 86400 == (now + 300) // 86400:
                    return Bounce.EXPIRED, ""
                continue
            break
    return verdict, ""


class Unknown(HashMismatch):
    """The store knows no original."""


def read(made: Snapshot, form: str, address: Address, day: int, stored: Stored) -> Address:
    if form == "srs0":
        return made.classic.reverse(address, day)
    if form == "exchange":
        return made.exchange.reverse(address, day)
    text = stored(made.compact.token(address))
    if text is None:
        raise Unknown("no original")
    original = Address.parse(text)
    made.compact.verify(address, original, day)
    return original


@st.composite
def srs_addresses(draw: st.DrawFn) -> tuple[str, Shelf]:
    """An SRS address of any format, as it was made or changed by a receiver or a forger; and the store."""
    shelf = Shelf()
    original = Address(draw(st.sampled_from(["bob", "a b", "SRS0=abcd=RA=x.example=ann", "srs1=x"])), "fabrikam.com")
    domain = draw(st.sampled_from(["contoso.com", "Contoso.COM", "srs.contoso.com", "fabrikam.example", "example.org"]))
    day = DAY + draw(st.integers(-23, 1))
    keys = draw(st.sampled_from([KEYS, KEYS, Keys([b"somebody else's"])]))
    form = draw(st.sampled_from(["srs0", "srs1", "exchange", "compact"]))
    if form == "compact":
        text = shelf.put(rewriting.relayed(COMPACT, str(original), None, day * 86400))
        shelf = shelf if draw(st.booleans()) else Shelf()
    elif form == "exchange":
        mailbox = draw(st.sampled_from(["bounces", "SRS0=aaaa=RA=x.example=john"]))
        text = str(Exchange(keys).forward(original, mailbox, domain, day))
    else:
        classic = Classic(keys, separator=draw(st.sampled_from("=+-")))
        sender = classic.forward(Address("bob", "fabrikam.com"), "first.example", day) if form == "srs1" else original
        try:
            text = str(classic.forward(sender, domain, day))
        except AddressError:
            text = str(sender)
    for change in draw(st.lists(st.sampled_from(["lower", "upper", "encode", "bare", "edit"]), max_size=2)):
        if change == "edit":
            place, char = draw(st.integers(0, len(text))), draw(st.sampled_from('=+-%aSs@"\x7fſ') | st.just(""))
            text = text[:place] + char + text[place + draw(st.integers(0, 1)) :]
        elif change == "encode":
            text = text.replace("+", "%2B").replace("=", draw(st.sampled_from(["%3D", "%3d"])))
        else:
            text = {"lower": text.lower(), "upper": text.upper(), "bare": text.replace('"', "")}[change]
    return text, shelf


moments = st.builds(lambda days, seconds: NOW + days * 86400 + seconds, st.integers(-1, 24), st.integers(-301, 1))


@given(srs_addresses(), moments, st.just(ALL) | snapshots())
@settings(max_examples=600)
def test_srs_address_of_any_format_is_what_every_format_asked_the_long_way_says(
    made: tuple[str, Shelf], now: int, configured: Snapshot
) -> None:
    text, shelf = made
    assert reversal.reverse(configured, text, now, shelf.get) == the_long_way(configured, text, now, shelf.get)


@given(ADDRESSES | st.builds("{}@contoso.com".format, LOCAL_PARTS), st.just(ALL) | snapshots())
@settings(max_examples=400)
@example("x+ſrs=aaaaaaaa=RA=x.example=bob@contoso.com", ALL)
@example("SRS0@contoso.com", ALL)
@example("ſRS0=abcd=RA=x.example=bob@contoso.com", ALL)
@example('"srs0=abcd=RA=x.example=b ob"@contoso.com', ALL)
def test_any_address_is_what_every_format_asked_the_long_way_says(text: str, configured: Snapshot) -> None:
    nothing = Shelf().get
    assert reversal.reverse(configured, text, NOW, nothing) == the_long_way(configured, text, NOW, nothing)


@pytest.mark.parametrize("letter", "+srs=")
def test_no_letter_but_ascii_becomes_one_of_the_tag_in_lower_case(letter: str) -> None:
    found = {char for char in map(chr, range(sys.maxunicode + 1)) if letter in char.lower()}
    assert found == {letter, letter.upper()}
