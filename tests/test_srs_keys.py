# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret keys of SRS."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.srs import Key, Keys


def test_first_key_signs_with_hmac_sha256() -> None:
    assert Keys([b"new", b"old"]).sign(b"text", 20500) == hmac.new(b"new", b"text", hashlib.sha256).digest()


def test_signing_twice_gives_the_same_digest() -> None:
    keys = Keys([b"secret"])
    assert keys.sign(b"text", 20500) == keys.sign(b"text", 20500)


def test_every_key_has_its_digest_in_order() -> None:
    assert list(Keys([b"new", b"old"]).digests(b"text")) == [
        Keys([b"new"]).sign(b"text", 20500),
        Keys([b"old"]).sign(b"text", 20500),
    ]


@pytest.mark.parametrize("secrets", [[], [b""], [b"good", b""]])
def test_no_key_or_an_empty_one_is_a_value_error(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret"):
        Keys(secrets)


def test_repr_shows_how_many_keys_there_are_and_none_of_them() -> None:
    assert repr(Keys([b"hush-hush", b"old-hush"])) == "<Keys: 2>"
    assert repr(Key(b"hush-hush", 20500)) == "<Key: signs from day 20500>"


ROTATED = Keys([Key(b"newest", 20600), Key(b"new", 20500), b"old"])


@pytest.mark.parametrize(
    ("day", "signer"), [(20499, b"old"), (20500, b"new"), (20599, b"new"), (20600, b"newest"), (30000, b"newest")]
)
def test_first_key_that_may_sign_on_the_day_signs(day: int, signer: bytes) -> None:
    assert ROTATED.sign(b"text", day) == hmac.new(signer, b"text", hashlib.sha256).digest()


def test_last_key_signs_where_none_may_sign_yet() -> None:
    keys = Keys([Key(b"tomorrow", 20501), Key(b"today", 20500)])
    assert keys.sign(b"text", 20000) == hmac.new(b"today", b"text", hashlib.sha256).digest()


def test_key_that_may_not_sign_yet_has_its_digest() -> None:  # another host's clock may be ahead
    assert Keys([b"newest"]).sign(b"text", 0) in list(ROTATED.digests(b"text"))


def test_keys_using_sha1_are_the_same_keys_with_another_digest() -> None:
    keys = ROTATED.using("sha1")
    assert keys.sign(b"text", 20550) == hmac.new(b"new", b"text", hashlib.sha1).digest()
    assert len(list(keys.digests(b"text"))) == 3


def test_order_of_the_list_counts_and_not_that_of_the_days() -> None:
    keys = Keys([Key(b"preferred", 20400), Key(b"younger", 20450)])
    assert keys.sign(b"text", 20500) == hmac.new(b"preferred", b"text", hashlib.sha256).digest()


@given(st.binary(min_size=1, max_size=200), st.binary(max_size=300), st.sampled_from(["sha1", "sha256"]))
@settings(deadline=None)
def test_any_key_and_message_give_the_hmac_of_rfc_2104(secret: bytes, message: bytes, digest: str) -> None:
    assert Keys([secret], digest).sign(message, 20500) == hmac.digest(secret, message, digest)


@pytest.mark.parametrize(("day", "since"), [(20499, 0), (20500, 20500), (20599, 20500), (20600, 20600)])
def test_key_that_signs_tells_since_when(day: int, since: int) -> None:
    assert ROTATED.signing_since(day) == since


def test_last_key_signs_since_its_day_where_none_may_sign_yet() -> None:
    assert Keys([Key(b"tomorrow", 20501), Key(b"today", 20500)]).signing_since(20000) == 20500


def test_length_is_how_many_keys_there_are() -> None:
    assert len(ROTATED) == 3


@pytest.mark.parametrize("octets", [63, 64, 65])
def test_key_as_long_as_a_block_of_the_hash_is_used_as_it_is_and_a_longer_one_hashed(octets: int) -> None:
    secret = b"k" * octets
    assert Keys([secret]).sign(b"text", 20500) == hmac.digest(secret, b"text", "sha256")
