# SPDX-License-Identifier: GPL-3.0-or-later
"""The compact form of SRS addresses (S5): tokens for a store."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
from typing import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_srs_exchange_properties import addresses, days, edits, names

from gatepost.srs import (
    Address,
    AddressError,
    AddressTooLong,
    Compact,
    Expired,
    HashMismatch,
    Key,
    Keys,
    NotSrs,
    SrsError,
)

KEYS = Keys([b"a secret of the tests"])
COMPACT = Compact(KEYS)
TODAY = 20500  # 2026-02-16, stamp AU
BOB = Address("Bob", "Fabrikam.com")
TOKEN = "nnsu7l5fqjky2mkq"


def made(text: str = "Bob@Fabrikam.com", srs_domain: str = "contoso.com", day: int = TODAY) -> Address:
    return COMPACT.forward(Address.parse(text), srs_domain, day)


def test_address_is_bounces_token_and_stamp_in_the_srs_domain() -> None:
    assert str(made()) == f"bounces+SRS={TOKEN}=AU@contoso.com"
    assert COMPACT.token(made()) == TOKEN
    COMPACT.verify(made(), BOB, TODAY)


def test_token_is_base32_of_hmac_sha256_over_version_and_length_prefixed_fields() -> None:
    fields = (b"AU", b"Fabrikam.com", b"Bob", b"contoso.com")
    message = b"compact" + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    digest = hmac.new(b"a secret of the tests", message, hashlib.sha256).digest()
    assert base64.b32encode(digest)[:16].lower().decode() == TOKEN


def test_one_sender_on_one_day_has_one_token() -> None:
    assert made() == made()
    assert made(srs_domain="CONTOSO.com").local == made().local


@pytest.mark.parametrize(
    "other",
    [
        made("bob@Fabrikam.com"),
        made("Bob@fabrikam.com"),
        made("mBob@Fabrikam.co"),
        made(srs_domain="contoso.example"),
        made(day=TODAY + 1),
        Compact(Keys([b"another"])).forward(BOB, "contoso.com", TODAY),
    ],
)
def test_another_original_srs_domain_day_or_key_has_another_token(other: Address) -> None:
    assert COMPACT.token(other) != TOKEN


def test_local_part_stays_within_64_octets_for_any_original() -> None:
    assert len(made(f"{'a' * 200}@fabrikam.com").local) == 31


@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_case_of_the_srs_address_does_not_count(change: Callable[[str], str]) -> None:  # S8
    address = Address.parse(change(str(made())))
    assert COMPACT.token(address) == TOKEN
    COMPACT.verify(address, BOB, TODAY)


@pytest.mark.parametrize(
    "text",
    [
        "bob@contoso.com",
        "bounces@contoso.com",
        "bounces+SRS=HnE87=C7@contoso.com",
        f"bounces+SRS={TOKEN}@contoso.com",
        f"bounces+SRS={TOKEN}=@contoso.com",
        f"bounces+SRS={TOKEN}=A@contoso.com",
        f"bounces+SRS={TOKEN}=A1@contoso.com",
        f"bounces+SRS={TOKEN}=AUA@contoso.com",
        f"bounces+SRS={TOKEN}a=AU@contoso.com",
        f"bounces+SRS={TOKEN[:-1]}=AU@contoso.com",
        f"bounces+SRS={TOKEN[:-1]}1=AU@contoso.com",
        f"bounces+SRS={TOKEN[:-1]}\u212a=AU@contoso.com",
        f"john+SRS={TOKEN}=AU@contoso.com",
        f"bounces+SRS={TOKEN}=AU=fabrikam.com=bob@contoso.com",
        f"SRS0={TOKEN}=AU@contoso.com",
    ],
)
def test_address_without_the_form_is_not_srs(text: str) -> None:
    with pytest.raises(NotSrs):
        COMPACT.token(Address.parse(text))
    with pytest.raises(NotSrs):
        COMPACT.verify(Address.parse(text), BOB, TODAY)


@pytest.mark.parametrize("original", [Address("bob", "Fabrikam.com"), Address("Bob", "fabrikam.com")])
def test_other_original_than_the_one_that_was_signed_is_a_hash_mismatch(original: Address) -> None:
    with pytest.raises(HashMismatch):
        COMPACT.verify(made(), original, TODAY)


def test_other_srs_domain_is_a_hash_mismatch() -> None:
    with pytest.raises(HashMismatch):
        COMPACT.verify(Address(made().local, "contoso.example"), BOB, TODAY)


def test_wrong_token_is_told_before_an_expired_stamp() -> None:
    COMPACT.verify(made(), BOB, TODAY + 21)
    for day in (TODAY + 22, TODAY - 1):
        with pytest.raises(Expired):
            COMPACT.verify(made(), BOB, day)
        with pytest.raises(HashMismatch):
            COMPACT.verify(made(), Address("eve", "fabrikam.com"), day)


@pytest.mark.parametrize("validity_days", [1, 21, 1000])
def test_each_of_the_1024_stamps_is_good_for_validity_days_only(validity_days: int) -> None:
    compact = Compact(KEYS, validity_days)
    for day in range(20480, 20480 + 1024):
        address = compact.forward(BOB, "contoso.com", day)
        compact.verify(address, BOB, day)
        compact.verify(address, BOB, day + validity_days)
        for wrong in (day - 1, day - 23, day + validity_days + 1):
            with pytest.raises(Expired):
                compact.verify(address, BOB, wrong)


def test_key_signs_from_its_day_and_any_verifies() -> None:
    rotated = Compact(Keys([Key(b"new", TODAY + 1), b"a secret of the tests"]))
    assert rotated.forward(BOB, "contoso.com", TODAY) == made()
    tomorrow = rotated.forward(BOB, "contoso.com", TODAY + 1)
    assert tomorrow == Compact(Keys([b"new"])).forward(BOB, "contoso.com", TODAY + 1)
    rotated.verify(made(), BOB, TODAY + 1)
    rotated.verify(tomorrow, BOB, TODAY + 1)


@pytest.mark.parametrize("srs_domain", ["", "con toso.com", "contoso.com\r\n", "a\udc80"])
def test_srs_domain_that_is_no_domain_is_an_address_error(srs_domain: str) -> None:
    with pytest.raises(AddressError):
        COMPACT.forward(BOB, srs_domain, TODAY)


def test_srs_domain_that_leaves_no_room_is_too_long() -> None:
    assert len(str(made(srs_domain="a" * 222))) == 254
    with pytest.raises(AddressTooLong):
        made(srs_domain="a" * 223)


@pytest.mark.parametrize("validity_days", [0, 1001, -1])
def test_validity_outside_1_to_1000_days_is_a_value_error(validity_days: int) -> None:
    with pytest.raises(ValueError, match="validity_days"):
        Compact(KEYS, validity_days)


@given(addresses, names, days, st.integers(0, 21))
@settings(deadline=None, max_examples=300)
def test_any_original_is_verified_by_its_address_through_its_text(
    original: Address, srs_domain: str, day: int, age: int
) -> None:
    address = Address.parse(str(COMPACT.forward(original, srs_domain, day)))
    COMPACT.verify(address, original, day + age)
    assert set(COMPACT.token(address)) <= set(string.ascii_lowercase + "234567")


@given(addresses, days, st.data())
@settings(deadline=None, max_examples=500)
def test_any_edit_of_the_local_part_is_refused(original: Address, day: int, data: st.DataObject) -> None:
    address = COMPACT.forward(original, "contoso.com", day)
    edited = data.draw(edits(address.local))
    assume(edited.encode("utf-8", "surrogatepass").lower() != address.local.encode().lower())
    with pytest.raises(SrsError):
        COMPACT.verify(Address(edited, "contoso.com"), original, day)


@given(addresses, addresses, days)
@settings(deadline=None)
def test_original_of_another_address_is_a_hash_mismatch(original: Address, other: Address, day: int) -> None:
    assume(original != other)
    with pytest.raises(HashMismatch):
        COMPACT.verify(COMPACT.forward(original, "contoso.com", day), other, day)
