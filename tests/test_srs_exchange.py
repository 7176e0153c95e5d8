# SPDX-License-Identifier: GPL-3.0-or-later
"""The Exchange Online form of SRS by example: S1 to S10 and the defects of other implementations."""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import date

import pytest

from gatepost.srs import (
    Address,
    AddressError,
    AddressTooLong,
    Exchange,
    Expired,
    HashMismatch,
    Keys,
    NotSrs,
    SrsError,
    stamp,
)

EXCHANGE = Exchange(Keys([b"a secret of the tests"]))
TODAY = 20500  # 2026-02-16, stamp AU
BOB = Address("bob", "fabrikam.com")


def forward(text: str, mailbox: str = "john.work", srs_domain: str = "contoso.com") -> str:
    return str(EXCHANGE.forward(Address.parse(text), mailbox, srs_domain, TODAY))


def reverse(text: str, day: int = TODAY) -> str:
    return str(EXCHANGE.reverse(Address.parse(text), day))


def signed(local: str) -> Address:
    """`mailbox+SRS=?=stamp=domain=user` in contoso.com with the right hash for ?, however odd its fields."""
    mailbox, _, rest = local.partition("+SRS=?")
    made, domain, user = rest.partition("=")[2].split("=", 2)
    fields = [field.lower().encode() for field in (mailbox, made, domain, user, "contoso.com")]
    message = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    digest = hmac.new(b"a secret of the tests", message, hashlib.sha256).digest()
    return Address(local.replace("?", base64.b32encode(digest).decode().lower()[:8], 1), "contoso.com")


def test_forwarded_mail_gets_the_forwarding_mailbox_and_its_domain() -> None:  # S3
    assert forward("bob@fabrikam.com") == "john.work+SRS=oykyc25v=AU=fabrikam.com=bob@contoso.com"


def test_relayed_mail_gets_bounces_and_the_default_accepted_domain() -> None:  # S4
    rewritten = forward("bob@fabrikam.com", "bounces")
    assert rewritten.startswith("bounces+SRS=")
    assert rewritten.endswith("=AU=fabrikam.com=bob@contoso.com")


def test_hash_is_lower_case_base32_of_hmac_sha256_over_length_prefixed_fields() -> None:
    assert EXCHANGE.forward(BOB, "john.work", "contoso.com", TODAY) == signed("john.work+SRS=?=AU=fabrikam.com=bob")


def test_one_sender_on_one_day_has_one_address() -> None:
    assert forward("bob@fabrikam.com") == forward("bob@fabrikam.com")


@pytest.mark.parametrize(
    ("text", "local_part"),
    [
        ("bob@fabrikam.com", "=fabrikam.com=bob@contoso.com"),
        ("Bob.Smith@Fabrikam.COM", "=Fabrikam.COM=Bob.Smith@contoso.com"),
        ("bob=x+y@fabrikam.com", "=fabrikam.com=bob=x+y@contoso.com"),
        ("a+SRS=44ldt=IX=b.com=c@fabrikam.com", "=fabrikam.com=a+SRS=44ldt=IX=b.com=c@contoso.com"),
        ('"bob smith"@fabrikam.com', '=fabrikam.com=bob smith"@contoso.com'),
        (r'"b\"o\\b"@fabrikam.com', r'=fabrikam.com=b\"o\\b"@contoso.com'),
        ("bob@[192.0.2.1]", '=[192.0.2.1]=bob"@contoso.com'),
        ("bob@[IPv6:2001:db8::1]", '=[IPv6:2001:db8::1]=bob"@contoso.com'),
        ("jörg@bücher.example", "=bücher.example=jörg@contoso.com"),
    ],
)
def test_original_is_written_as_it_stands_and_comes_back_exactly(text: str, local_part: str) -> None:
    rewritten = forward(text)
    assert rewritten.endswith(local_part)
    assert reverse(rewritten) == text


def test_forwarding_twice_comes_back_in_two_steps() -> None:
    first = forward("bob@fabrikam.com")
    second = str(EXCHANGE.forward(Address.parse(first), "mary", "fabrikam.example", TODAY))
    assert reverse(second) == first
    assert reverse(first) == "bob@fabrikam.com"


def test_address_lower_cased_by_a_receiver_comes_back_lower_cased() -> None:  # S8
    assert reverse(forward("Bob.Smith@Fabrikam.COM").lower()) == "bob.smith@fabrikam.com"


def test_address_upper_cased_by_a_receiver_comes_back_upper_cased() -> None:
    assert reverse(forward("bob@fabrikam.com").upper()) == "BOB@FABRIKAM.COM"


def test_timestamp_of_validity_days_is_good_and_one_day_more_has_expired() -> None:
    rewritten = forward("bob@fabrikam.com")
    assert reverse(rewritten, TODAY + 21) == "bob@fabrikam.com"
    with pytest.raises(Expired):
        reverse(rewritten, TODAY + 22)


def test_timestamp_of_tomorrow_is_refused() -> None:
    with pytest.raises(Expired):
        reverse(forward("bob@fabrikam.com"), TODAY - 1)


@pytest.mark.parametrize("wrap", ["2026-01-27", "2028-11-16"])
def test_validity_runs_over_the_day_on_which_stamps_begin_anew(wrap: str) -> None:  # S7
    first = (date.fromisoformat(wrap) - date(1970, 1, 1)).days
    assert stamp(first) == "AA"
    for made in range(first - 21, first + 1):
        rewritten = EXCHANGE.forward(BOB, "john", "contoso.com", made)
        assert EXCHANGE.reverse(rewritten, made + 21) == BOB
        for day in (made + 22, made - 1):
            with pytest.raises(Expired):
                EXCHANGE.reverse(rewritten, day)


@pytest.mark.parametrize("validity_days", [1, 21, 1000])
def test_each_of_the_1024_stamps_is_good_for_validity_days_only(validity_days: int) -> None:
    exchange = Exchange(Keys([b"k"]), validity_days=validity_days)
    for made in range(20480, 20480 + 1024):
        rewritten = exchange.forward(BOB, "john", "contoso.com", made)
        for day in (made, made + validity_days):
            assert exchange.reverse(rewritten, day) == BOB
        for day in (made - 1, made - 23, made + validity_days + 1):
            with pytest.raises(Expired):
                exchange.reverse(rewritten, day)


def test_any_of_several_keys_verifies_and_the_first_one_signs() -> None:
    rotated = Exchange(Keys([b"new", b"old", b"older"]))
    for secret in (b"new", b"old", b"older"):
        made = Exchange(Keys([secret])).forward(BOB, "john", "contoso.com", TODAY)
        assert rotated.reverse(made, TODAY) == BOB
    made = rotated.forward(BOB, "john", "contoso.com", TODAY)
    assert made == Exchange(Keys([b"new"])).forward(BOB, "john", "contoso.com", TODAY)


def test_hash_of_another_key_is_a_hash_mismatch() -> None:
    made = Exchange(Keys([b"theirs"])).forward(BOB, "john", "contoso.com", TODAY)
    with pytest.raises(HashMismatch):
        EXCHANGE.reverse(made, TODAY)


def test_wrong_hash_is_told_before_an_expired_stamp() -> None:
    made = Exchange(Keys([b"theirs"])).forward(BOB, "john", "contoso.com", TODAY)
    with pytest.raises(HashMismatch):
        EXCHANGE.reverse(made, TODAY + 500)


def test_user_moved_into_the_domain_is_a_hash_mismatch() -> None:
    text = forward("test@otherdomain.com")
    assert text.endswith("=otherdomain.com=test@contoso.com")
    with pytest.raises(HashMismatch):
        reverse(text.replace("=otherdomain.com=test", "=otherdomain.co=mtest"))


@pytest.mark.parametrize("part", ["john.work", "AU", "fabrikam.com=", "=bob", "@contoso.com"])
def test_each_part_of_the_address_is_covered_by_the_hash(part: str) -> None:
    other = {"john.work": "john.home", "AU": "AV", "fabrikam.com=": "fabrikam.org=", "=bob": "=rob"}
    text = forward("bob@fabrikam.com")
    assert part in text
    with pytest.raises(HashMismatch):
        reverse(text.replace(part, other.get(part, "@contoso.example")))


@pytest.mark.parametrize("hash_length", [5, 8, 13, 51, 52])
def test_hash_has_the_configured_length_and_no_other_is_taken(hash_length: int) -> None:
    exchange = Exchange(Keys([b"k"]), hash_length=hash_length)
    made = exchange.forward(BOB, "john", "contoso.com", TODAY)
    hash_ = made.local.split("=")[1]
    assert len(hash_) == hash_length
    assert exchange.reverse(made, TODAY) == BOB
    for wrong in (hash_[:-1], hash_[0], hash_ + "a", hash_ + hash_):
        with pytest.raises(HashMismatch):
            exchange.reverse(Address(made.local.replace(hash_, wrong, 1), "contoso.com"), TODAY)


def test_hash_of_office_365_itself_is_a_hash_mismatch() -> None:
    with pytest.raises(HashMismatch):
        reverse("john+SRS=//f32=au=fabrikam.com=bob@contoso.com")


@pytest.mark.parametrize("char", ["ſ", "\u212a", "İ", "ı"])
def test_letters_that_unicode_folds_to_ascii_are_other_letters(char: str) -> None:
    folded = {"ſ": "s", "\u212a": "k", "İ": "i", "ı": "i"}[char]
    rewritten = forward(f"{folded}@fabrikam.com")
    with pytest.raises(HashMismatch):
        reverse(rewritten.replace(f"={folded}@", f"={char}@"))


def test_kelvin_sign_for_a_k_in_the_hash_is_a_hash_mismatch() -> None:
    with pytest.raises(HashMismatch):
        reverse(forward("bob@fabrikam.com").replace("oykyc25v", "oy\u212ayc25v"))


def test_long_s_in_the_mark_is_not_srs() -> None:
    with pytest.raises(NotSrs):
        reverse(forward("bob@fabrikam.com").replace("+SRS=", "+ſRS="))


def test_stray_space_of_the_announcement_is_refused() -> None:  # S10
    with pytest.raises(AddressError):
        Address.parse("bounces+SRS=44ldt=IX=fabrikam.com= bob@contoso.com")
    bob = EXCHANGE.forward(BOB, "bounces", "contoso.com", TODAY)
    with pytest.raises(HashMismatch):
        EXCHANGE.reverse(Address(bob.local.replace("=bob", "= bob"), "contoso.com"), TODAY)


@pytest.mark.parametrize(
    "local",
    [
        " john+SRS=?=AU=fabrikam.com=bob",
        "john +SRS=?=AU=fabrikam.com=bob",
        "john+SRS=? =AU=fabrikam.com=bob",
        "john+SRS=?= AU=fabrikam.com=bob",
        "john+SRS=?=AU= fabrikam.com=bob",
        "john+SRS=?=AU=fabrikam.com =bob",
        "+SRS=?=AU=fabrikam.com=bob",
        "john+SRS=?=AU==bob",
        "john+SRS=?=AU=fabrikam.com=",
        "john+SRS=?=AU=,=bob",
        "john+SRS=?=A=fabrikam.com=bob",
        "john+SRS=?=AUU=fabrikam.com=bob",
        "john+SRS=?==fabrikam.com=bob",
        "john+SRS=?=A1=fabrikam.com=bob",
    ],
)
def test_misshapen_address_is_not_srs_even_with_a_right_hash(local: str) -> None:
    with pytest.raises(NotSrs):
        EXCHANGE.reverse(signed(local), TODAY)


@pytest.mark.parametrize(
    "text",
    [
        "bob@contoso.com",
        "bob+tag@contoso.com",
        "SRS0=abcd=AU=fabrikam.com=bob@contoso.com",
        "bounces+SRS=44ldtabc=AU@contoso.com",
        "bounces+SRS==AU=fabrikam.com=bob@contoso.com",
        "bounces+SRS=44ldtabc=AU=fabrikam.com@contoso.com",
        "bounces+SRS@contoso.com",
    ],
)
def test_address_without_the_long_form_is_not_srs(text: str) -> None:
    with pytest.raises(NotSrs):
        reverse(text)


@pytest.mark.parametrize("mailbox", ["", "john+tag", "+", "john doe", "a+SRS=b", "john\r\n", "a\udc80"])
def test_forwarding_mailbox_that_could_not_be_found_again_is_an_address_error(mailbox: str) -> None:
    with pytest.raises(AddressError):
        EXCHANGE.forward(BOB, mailbox, "contoso.com", TODAY)


@pytest.mark.parametrize("srs_domain", ["", "con toso.com", "contoso.com\r\n", "a=b", "a@b", "a\udc80"])
def test_srs_domain_that_is_no_domain_is_an_address_error(srs_domain: str) -> None:
    with pytest.raises(AddressError):
        EXCHANGE.forward(BOB, "john", srs_domain, TODAY)


def test_mailbox_with_an_equals_sign_or_quotes_comes_back() -> None:
    for mailbox in ("a=b", "=", 'a"b', "a@b", "jörg"):
        made = EXCHANGE.forward(BOB, mailbox, "contoso.com", TODAY)
        assert EXCHANGE.reverse(Address.parse(str(made)), TODAY) == BOB


def test_local_part_over_64_octets_is_made_and_reversed() -> None:
    text = "a" * 64 + "@fabrikam.com"
    assert reverse(forward(text)) == text


@pytest.mark.parametrize("filler", ["a", "é"])
def test_254_octets_are_accepted_and_255_refused(filler: str) -> None:
    size = len(filler.encode())
    room = 254 - len(forward("b@fabrikam.com").encode())
    longest = filler * (room // size) + "b" * (1 + room % size)
    assert len(forward(f"{longest}@fabrikam.com").encode()) == 254
    assert reverse(forward(f"{longest}@fabrikam.com")) == f"{longest}@fabrikam.com"
    with pytest.raises(AddressTooLong):
        forward(f"{longest}b@fabrikam.com")


def test_quotes_count_for_the_length() -> None:
    room = 254 - len(forward('"b "@fabrikam.com'))
    assert len(forward(f'"b {"a" * room}"@fabrikam.com')) == 254
    with pytest.raises(AddressTooLong):
        forward(f'"b {"a" * room}a"@fabrikam.com')


@pytest.mark.parametrize("hash_length", [4, 53, 0, -1])
def test_hash_length_outside_5_to_52_is_a_value_error(hash_length: int) -> None:
    with pytest.raises(ValueError, match="hash_length"):
        Exchange(Keys([b"k"]), hash_length=hash_length)


@pytest.mark.parametrize("validity_days", [0, 1001, -1])
def test_validity_outside_1_to_1000_days_is_a_value_error(validity_days: int) -> None:
    with pytest.raises(ValueError, match="validity_days"):
        Exchange(Keys([b"k"]), validity_days=validity_days)


def test_every_exception_about_an_address_is_an_srs_error() -> None:
    for error in (AddressError, AddressTooLong, NotSrs, HashMismatch, Expired):
        assert issubclass(error, SrsError)


@pytest.mark.parametrize("length", [5, 8, 9, 10, 52])
def test_hash_is_the_start_of_the_whole_one_in_as_many_characters(length: int) -> None:
    original = Address("bob", "fabrikam.com")
    keys = Keys([b"secret"])
    whole = Exchange(keys, hash_length=52).forward(original, "john", "contoso.com", TODAY).local
    made = Exchange(keys, hash_length=length).forward(original, "john", "contoso.com", TODAY).local
    assert made.split("=")[1] == whole.split("=")[1][:length]
    assert len(made.split("=")[1]) == length


@pytest.mark.parametrize("octets", [1, 63, 64, 65, 66, 90, 91])
def test_length_of_a_field_is_signed_as_it_is_whatever_letter_it_looks_like(octets: int) -> None:
    local = "b" * octets
    made = Exchange(Keys([b"secret"]), hash_length=52).forward(
        Address(local, "fabrikam.com"), "j", "contoso.com", 20500
    )
    fields = ["j", made.local.split("=")[2].lower(), "fabrikam.com", local, "contoso.com"]
    message = b"".join(len(field).to_bytes(4, "big") + field.encode() for field in fields)
    digest = hmac.digest(b"secret", message, "sha256")
    assert made.local.split("=")[1] == base64.b32encode(digest).decode().lower()[:52]
