# SPDX-License-Identifier: GPL-3.0-or-later
"""The secret keys of SRS."""

from __future__ import annotations

import hashlib
import hmac

import pytest

from gatepost.srs import Keys


def test_first_key_signs_with_hmac_sha256() -> None:
    assert Keys([b"new", b"old"]).sign(b"text") == hmac.new(b"new", b"text", hashlib.sha256).digest()


def test_signing_twice_gives_the_same_digest() -> None:
    keys = Keys([b"secret"])
    assert keys.sign(b"text") == keys.sign(b"text")


def test_every_key_has_its_digest_and_the_signing_one_comes_first() -> None:
    assert list(Keys([b"new", b"old"]).digests(b"text")) == [
        Keys([b"new"]).sign(b"text"),
        Keys([b"old"]).sign(b"text"),
    ]


@pytest.mark.parametrize("secrets", [[], [b""], [b"good", b""]])
def test_no_key_or_an_empty_one_is_a_value_error(secrets: list[bytes]) -> None:
    with pytest.raises(ValueError, match="secret"):
        Keys(secrets)


def test_repr_shows_how_many_keys_there_are_and_none_of_them() -> None:
    assert repr(Keys([b"hush-hush", b"old-hush"])) == "<Keys: 2>"
