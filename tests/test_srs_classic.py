# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS0 and SRS1: what the other implementations agree on, and what they do wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gatepost.srs import (
    Address,
    AddressError,
    AddressTooLong,
    Classic,
    Expired,
    HashMismatch,
    Key,
    Keys,
    NotSrs,
    SrsError,
)

CASES = json.loads((Path(__file__).parent / "vectors" / "srs_classic.json").read_text(encoding="utf-8"))["cases"]
# Their notes say which secret of several signs or verifies; the file has the first one only.
OLD_SECRETS = {"v087": [b"tops3cr3t"], "v124": [b"tops3cr3t"], "v125": [b"between", b"tops3cr3t"]}

TODAY = 18262  # 2020-01-01, stamp 2W, as in most of the cases
KEYS = Keys([b"tops3cr3t"])
CLASSIC = Classic(KEYS)


def run(case: dict[str, Any]) -> str:
    """Do what the case says with addresses as text, as tables get them."""
    keys = Keys([case["secret"].encode(), *OLD_SECRETS.get(case["id"], [])])
    classic = Classic(keys, case["separator"], case["hashlength"], case["hashmin"], case["maxage"])
    day = case["timestamp"] // 86400
    local, _, domain = case["input"].rpartition("@")
    if case["kind"] not in {"forward", "roundtrip"}:
        return "@".join(classic.reverse_text(local, day))
    if not local and not domain.endswith(".com"):  # "foo", "", "<>", '""': all of it is a local part
        local, domain = domain, ""
    made = classic.forward_text(local, domain, case["alias_domain"], day)
    if case["kind"] == "roundtrip":
        return "@".join(classic.reverse_text(made, day))
    return f"{made}@{domain if domain.lower() == case['alias_domain'] else case['alias_domain']}"


@pytest.mark.parametrize("case", [case for case in CASES if "output" in case], ids=lambda case: case["id"])
def test_result_is_the_one_that_the_other_implementations_agree_on(case: dict[str, Any]) -> None:
    assert run(case) == case["output"]


@pytest.mark.parametrize("case", [case for case in CASES if "output" not in case], ids=lambda case: case["id"])
def test_what_the_other_implementations_refuse_is_refused(case: dict[str, Any]) -> None:
    assert case["refused"]
    with pytest.raises(Expired if case["kind"] == "expire" else SrsError):
        run(case)


def forward(text: str, srs_domain: str = "example.com", classic: Classic = CLASSIC) -> str:
    return str(classic.forward(Address.parse(text), srs_domain, TODAY))


def reverse(text: str, classic: Classic = CLASSIC, day: int = TODAY) -> str:
    return str(classic.reverse(Address.parse(text), day))


SRS0 = "SRS0=vmyz=2W=otherdomain.com=test@example.com"


def test_sender_becomes_srs0_and_comes_back() -> None:
    assert forward("test@otherdomain.com") == SRS0
    assert reverse(SRS0) == "test@otherdomain.com"


@pytest.mark.parametrize(
    ("text", "srs"),
    [
        ('"john doe"@otherdomain.com', r'"SRS0=knnY=2W=otherdomain.com=\"john doe\""@example.com'),
        (r'"a\"b"@otherdomain.com', r'"SRS0=wQYB=2W=otherdomain.com=\"a\\\"b\""@example.com'),
    ],
)
def test_quoted_sender_is_signed_as_the_others_do_and_written_legally(text: str, srs: str) -> None:
    assert forward(text) == srs
    assert reverse(srs) == text


def test_quotes_that_the_sender_did_not_need_are_not_signed() -> None:
    assert forward('"test"@otherdomain.com') == SRS0


def test_quotes_that_an_mta_dropped_inside_are_put_back() -> None:
    # Postfix reads SRS0=knnY=2W=otherdomain.com="john doe"@example.com, which the others write, without the quotes.
    assert reverse('"SRS0=knnY=2W=otherdomain.com=john doe"@example.com') == '"john doe"@otherdomain.com'
    with pytest.raises(HashMismatch):
        reverse('"SRS0=knnY=2W=otherdomain.com=john  doe"@example.com')


def test_local_part_that_the_others_signed_without_the_quotes_it_needs_gets_them() -> None:
    made = CLASSIC.forward_text("john doe", "otherdomain.com", "example.com", TODAY)
    assert str(CLASSIC.reverse(Address(made, "example.com"), TODAY)) == '"john doe"@otherdomain.com'


def test_right_hash_over_quotes_that_are_not_closed_is_not_srs() -> None:
    made = CLASSIC.forward_text('"john', "otherdomain.com", "example.com", TODAY)
    with pytest.raises(NotSrs):
        CLASSIC.reverse(Address(made, "example.com"), TODAY)


def test_srs0_of_another_host_becomes_srs1_and_goes_back_to_it() -> None:
    made = forward("SRS0=TGjY=2W=orig.example=alice@first.example", "second.example")
    assert made.startswith("SRS1=")
    assert made.endswith("=first.example==TGjY=2W=orig.example=alice@second.example")
    assert reverse(made) == "SRS0=TGjY=2W=orig.example=alice@first.example"


def test_srs1_with_another_first_host_is_a_hash_mismatch() -> None:
    made = forward("SRS0=TGjY=2W=orig.example=alice@first.example", "second.example")
    with pytest.raises(HashMismatch):
        reverse(made.replace("first.example", "other.example"))


def test_srs1_of_another_host_keeps_its_first_host() -> None:
    third = Classic(Keys([b"three"]))
    made = forward("SRS1=ABCD=first.example==TGjY=2W=orig.example=alice@second.example", "third.example", third)
    assert made == "SRS1=xs1E=first.example==TGjY=2W=orig.example=alice@third.example"
    assert reverse(made, third) == "SRS0=TGjY=2W=orig.example=alice@first.example"


def test_chain_of_a_quoted_sender_does_not_nest_quotes() -> None:
    first = forward('"john doe"@otherdomain.com')
    second = forward(first, "second.example")
    third = forward(second, "third.example")
    rest = r'=example.com==knnY=2W=otherdomain.com=\"john doe\""@'
    assert second.startswith('"SRS1=')
    assert second.endswith(rest + "second.example")
    assert third.endswith(rest + "third.example")
    assert reverse(third) == reverse(second) == first


def test_srs1_does_not_expire() -> None:
    made = forward("SRS0=TGjY=2W=orig.example=alice@first.example", "second.example")
    assert reverse(made, day=TODAY + 500) == "SRS0=TGjY=2W=orig.example=alice@first.example"


@pytest.mark.parametrize("text", ["Test@EXAMPLE.com", SRS0, "SRS1=ABCD=a.example==x@example.com", '"a b"@example.com'])
def test_address_in_the_srs_domain_is_left_as_it_is(text: str) -> None:
    assert forward(text) == text


@pytest.mark.parametrize("local", ["SRS1=", "SRS1=X", "SRS1=X=", "SRS1=X=a.example", "SRS1=X==y", "SRS1=X=a..b=y"])
def test_srs1_without_first_host_or_user_is_an_address_error(local: str) -> None:
    with pytest.raises(AddressError):
        CLASSIC.forward(Address(local, "otherdomain.com"), "example.com", TODAY)


@pytest.mark.parametrize("srs_domain", ["", "con toso.com", "contoso.com\r\n", "a=b", "a@b", "a\udc80"])
def test_srs_domain_that_is_no_domain_is_an_address_error(srs_domain: str) -> None:
    with pytest.raises(AddressError):
        CLASSIC.forward(Address("test", "otherdomain.com"), srs_domain, TODAY)


def test_address_without_a_domain_is_an_address_error() -> None:
    with pytest.raises(AddressError):
        CLASSIC.forward_text("test", "", "example.com", TODAY)


def test_254_octets_are_accepted_and_255_refused() -> None:
    room = 254 - len(SRS0)
    assert len(forward(f"test{'a' * room}@otherdomain.com")) == 254
    with pytest.raises(AddressTooLong):
        forward(f"test{'a' * room}a@otherdomain.com")


@pytest.mark.parametrize("mark", ["=", "+", "-"])
@pytest.mark.parametrize("configured", ["=", "+", "-"])
def test_all_three_separators_are_read_whichever_is_written(mark: str, configured: str) -> None:
    classic = Classic(KEYS, separator=configured)
    assert forward("test@otherdomain.com", classic=classic) == SRS0.replace("=", configured, 1)
    assert reverse(SRS0.replace("=", mark, 1), classic) == "test@otherdomain.com"


def test_lower_cased_address_comes_back_lower_cased() -> None:  # S8
    text = forward("Test.User@OtherDomain.COM").lower()
    assert reverse(text) == "test.user@otherdomain.com"


def test_base64url_writes_minus_and_underscore() -> None:
    assert forward("hash234@somedomain.com") == "SRS0=+3/5=2W=somedomain.com=hash234@example.com"
    url = Classic(KEYS, base64url=True)
    assert forward("hash234@somedomain.com", classic=url) == "SRS0=-3_5=2W=somedomain.com=hash234@example.com"


@pytest.mark.parametrize("base64url", [False, True])
@pytest.mark.parametrize("hash_", ["+3/5", "-3_5", "+3_5", "-3/5"])
def test_both_base64_alphabets_are_read(hash_: str, base64url: bool) -> None:
    classic = Classic(KEYS, base64url=base64url)
    assert reverse(f"SRS0={hash_}=2W=somedomain.com=hash234@example.com", classic) == "hash234@somedomain.com"


@pytest.mark.parametrize("length", range(4, 28))
def test_hash_of_any_length_from_the_minimum_on_is_taken_whatever_length_is_written(length: int) -> None:
    made = forward("test@otherdomain.com", classic=Classic(KEYS, hash_length=length))
    for written in (4, 12, 27):
        assert reverse(made, Classic(KEYS, hash_length=written)) == "test@otherdomain.com"


@pytest.mark.parametrize("length", range(4, 28))
def test_junk_behind_a_right_hash_is_a_hash_mismatch(length: int) -> None:
    classic = Classic(KEYS, hash_length=length)
    made = forward("test@otherdomain.com", classic=classic)
    for junk in ("!", "~", "!" * 30, "é"):
        with pytest.raises(HashMismatch):
            reverse(made.replace("=2W=", f"{junk}=2W="), classic)


def test_hash_shorter_than_the_minimum_is_a_hash_mismatch() -> None:
    strict = Classic(KEYS, hash_length=8, hash_minimum=6)
    with pytest.raises(HashMismatch):
        reverse("SRS0=vmyz7=2W=otherdomain.com=test@example.com", strict)
    assert reverse("SRS0=vmyz7B=2W=otherdomain.com=test@example.com", strict) == "test@otherdomain.com"


def test_boundary_of_domain_and_user_is_not_covered_as_compatibility_demands() -> None:
    assert reverse("SRS0=vmyz=2W=otherdomain.co=mtest@example.com") == "mtest@otherdomain.co"


def test_wrong_hash_is_told_before_an_expired_stamp() -> None:
    with pytest.raises(HashMismatch):
        reverse(SRS0.replace("vmyz", "FAKE"), day=TODAY + 22)
    with pytest.raises(Expired):
        reverse(SRS0, day=TODAY + 22)


@pytest.mark.parametrize("validity_days", [1, 21, 1000])
def test_each_of_the_1024_stamps_is_two_characters_and_good_for_validity_days_only(validity_days: int) -> None:
    classic = Classic(KEYS, validity_days=validity_days)
    for made in range(20480, 20480 + 1024):
        local = classic.forward_text("test", "otherdomain.com", "example.com", made)
        assert len(local) == len("SRS0=hash=TT=otherdomain.com=test")
        for day in (made, made + validity_days):
            assert classic.reverse_text(local, day) == ("test", "otherdomain.com")
        for day in (made - 1, made - 23, made + validity_days + 1):
            with pytest.raises(Expired):
                classic.reverse_text(local, day)


@pytest.mark.parametrize("made", ["", "W", "A2W", "08", "2 ", " 2", "ſW"])
def test_stamp_that_is_not_two_characters_is_not_srs(made: str) -> None:
    with pytest.raises(NotSrs):
        CLASSIC.reverse(Address(f"SRS0=vmyz={made}=otherdomain.com=test", "example.com"), TODAY)


@pytest.mark.parametrize(
    "local",
    ["SRS0==2W=otherdomain.com=test", "SRS0=vmyz=2W==test", "SRS0=vmyz=2W=otherdomain.com=", "SRS1==a.example==x"],
)
def test_local_part_with_an_empty_field_is_not_srs(local: str) -> None:
    with pytest.raises(NotSrs):
        CLASSIC.reverse_text(local, TODAY)


def test_octets_that_are_no_utf8_are_signed_and_come_back() -> None:
    made = CLASSIC.forward_text("te\udc80st", "otherdomain.com", "example.com", TODAY)
    assert made == "SRS0=YzUU=2W=otherdomain.com=te\udc80st"
    assert CLASSIC.reverse_text(made, TODAY) == ("te\udc80st", "otherdomain.com")
    with pytest.raises(HashMismatch):
        CLASSIC.reverse_text("SRS0=vm\udc80z=2W=otherdomain.com=test", TODAY)


@pytest.mark.parametrize("char", ["ſ", "\u212a"])
def test_letters_that_unicode_folds_to_ascii_are_other_letters(char: str) -> None:
    folded = {"ſ": "s", "\u212a": "k"}[char]
    made = forward(f"{folded}@otherdomain.com")
    with pytest.raises(HashMismatch):
        reverse(made.replace(f"={folded}@", f"={char}@"))
    with pytest.raises(NotSrs):
        reverse(SRS0.replace("S", "ſ", 1))


def test_key_signs_from_its_day_and_verifies_before() -> None:
    rotated = Classic(Keys([Key(b"new", TODAY + 1), b"tops3cr3t"]))
    assert forward("test@otherdomain.com", classic=rotated) == SRS0
    tomorrow = rotated.forward(Address("test", "otherdomain.com"), "example.com", TODAY + 1)
    assert tomorrow == Classic(Keys([b"new"])).forward(Address("test", "otherdomain.com"), "example.com", TODAY + 1)
    assert reverse(SRS0, rotated, TODAY + 21) == "test@otherdomain.com"
    with pytest.raises(Expired):
        rotated.reverse(tomorrow, TODAY)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"separator": "."}, "separator"),
        ({"separator": ""}, "separator"),
        ({"separator": "=+"}, "separator"),
        ({"hash_length": 3}, "hash_length"),
        ({"hash_length": 28}, "hash_length"),
        ({"hash_minimum": 3}, "hash_minimum"),
        ({"hash_length": 5, "hash_minimum": 6}, "hash_minimum"),
        ({"validity_days": 0}, "validity_days"),
        ({"validity_days": 1001}, "validity_days"),
    ],
)
def test_setting_out_of_range_is_a_value_error(settings: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Classic(KEYS, **settings)


def test_forms_with_the_same_settings_are_equal_and_repr_shows_no_more_than_these() -> None:
    assert Classic(KEYS, separator="-") == Classic(KEYS, separator="-") != CLASSIC
    assert repr(CLASSIC) == (
        "Classic(keys=<Keys: 1>, separator='=', hash_length=4, hash_minimum=4, validity_days=21, base64url=False)"
    )
