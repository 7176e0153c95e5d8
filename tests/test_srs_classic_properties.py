# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS0 and SRS1 for any address: it comes back exactly, and no single edit does."""

from __future__ import annotations

import string

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_srs_exchange_properties import addresses, days, edits, names

from gatepost.srs import Address, AddressTooLong, Classic, Keys, SrsError, first_hop, inspect, is_srs

# The whole hash, so that no edit is right by chance, and none by being a shorter hash.
CLASSIC = Classic(Keys([b"new secret", b"old secret"]), hash_length=27, hash_minimum=27)

tags = st.sampled_from(["SRS0=", "SRS1=", "srs0+", "sRs1-", "SRS1=hash=first.example="])
chained = st.builds(lambda tag, address: Address(tag + address.local, address.domain), tags, addresses)


def forward(original: Address, srs_domain: str, day: int) -> Address:
    """Rewrite, with the few examples left out that cannot be."""
    try:
        srs = CLASSIC.forward(original, srs_domain, day)
    except AddressTooLong:
        assume(False)
        raise
    assume(srs is not original)
    return srs


def lower(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


ordinary = addresses.filter(lambda address: not lower(address.local).startswith(("srs0", "srs1")))
rewritten = st.builds(lambda *given: (given[0], forward(*given), given[2]), ordinary, names, days)


@given(rewritten, st.integers(0, 21))
@settings(deadline=None, max_examples=500)
def test_what_is_rewritten_comes_back_exactly_through_its_text(made: tuple[Address, Address, int], age: int) -> None:
    original, srs, day = made
    assert len(str(srs).encode()) <= 254
    assert CLASSIC.reverse(Address.parse(str(srs)), day + age) == original


@given(rewritten)
@settings(deadline=None, max_examples=500)
def test_address_lower_cased_by_a_receiver_comes_back_lower_cased(made: tuple[Address, Address, int]) -> None:  # S8
    original, srs, day = made
    assert str(CLASSIC.reverse(Address.parse(lower(str(srs))), day)) == lower(str(original))


@given(chained, names, names, days)
@settings(deadline=None, max_examples=500)
def test_chained_sender_is_refused_or_goes_back_to_its_first_host_from_every_hop(
    original: Address, second: str, third: str, day: int
) -> None:
    assume(len({lower(original.domain), lower(second), lower(third)}) == 3)
    try:
        at_second = CLASSIC.forward(original, second, day)
        at_third = CLASSIC.forward(at_second, third, day)
    except SrsError:
        return
    first = CLASSIC.reverse(Address.parse(str(at_second)), day)
    assert first.local[:4] == "SRS0"
    assert CLASSIC.reverse(Address.parse(str(at_third)), day) == first
    if original.local[3] == "0":
        assert (first.local[4:], first.domain) == (original.local[4:], original.domain)


@given(rewritten, st.data())
@settings(deadline=None, max_examples=1000)
def test_single_edit_of_the_local_part_is_refused_or_changes_nothing_but_case_and_user_boundary(
    made: tuple[Address, Address, int], data: st.DataObject
) -> None:
    original, srs, day = made
    try:
        found = CLASSIC.reverse(Address(data.draw(edits(srs.local)), srs.domain), day)
    except SrsError:
        return
    # A moved or swapped character may be the boundary of domain and user, which the format does not cover.
    joined = [lower(address.domain + address.local) for address in (found, original)]  # one of them may need quotes
    assert joined[0] == joined[1] or lower(str(found)) == lower(str(original))


def test_every_changed_inserted_or_deleted_character_is_refused() -> None:
    srs = CLASSIC.forward(Address("a=b", "fabrikam.com"), "example.com", 20500)
    local = srs.local
    same = {lower(local).replace("srs0=", f"srs0{separator}") for separator in "=+-"}
    for i in range(len(local) + 1):
        for char in string.printable + "éſ\u212a":
            for edited in (local[:i] + char + local[i:], local[:i] + char + local[i + 1 :], local[:i] + local[i + 1 :]):
                hash_ = edited[5:32].translate(str.maketrans("-_", "+/"))
                if lower(edited[:5] + hash_ + edited[32:]) in same:
                    continue
                try:
                    found = CLASSIC.reverse(Address(edited, srs.domain), 20500)
                except SrsError:
                    continue
                raise AssertionError(f"{edited} is taken for {found}")


@given(st.text() | st.binary().map(lambda octets: octets.decode("utf-8", "surrogateescape")), days)
@settings(deadline=None, max_examples=500)
def test_any_text_is_reversed_and_inspected_or_an_srs_error(text: str, day: int) -> None:
    for tag in ("", "SRS0=", "SRS0=hash=AA=a.example=", "SRS1=", "SRS1=hash=a.example=", 'SRS0=hash=AA=a.example="'):
        try:
            address = Address(tag + text, "example.com")
        except SrsError:
            continue
        is_srs(address.local)
        first_hop(address)
        for function in (CLASSIC.reverse, inspect):
            try:
                function(address, day)
            except SrsError:
                continue
