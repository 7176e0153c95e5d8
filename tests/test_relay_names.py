# SPDX-License-Identifier: GPL-3.0-or-later
"""Normal form of domain names."""

from __future__ import annotations

import pytest

from gatepost.relay.names import NO_NAME, certificate_domain, domain_of, nameless, normalize_domain


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("contoso.com", "contoso.com"),
        ("Contoso.COM", "contoso.com"),
        ("contoso.com.", "contoso.com"),
        ("localhost", "localhost"),
        ("mail_1.contoso.com", "mail_1.contoso.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example.", "xn--bcher-kva.example"),
        ("XN--BCHER-KVA.example", "xn--bcher-kva.example"),
        ("1and1.example", "1and1.example"),
    ],
)
def test_domain_name_is_brought_to_normal_form(text: str, domain: str) -> None:
    assert normalize_domain(text) == domain


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "contoso..com",
        ".contoso.com",
        "contoso.com..",
        " contoso.com",
        "contoso.com\n",
        "con toso.com",
        "-contoso.com",
        "contoso-.com",
        "*.contoso.com",
        "[192.0.2.1]",
        "[IPv6:2001:db8::1]",
        "192.0.2.1",
        "contoso.com>",
        "con\udcfftoso.com",
        "con\x00toso.com",
        "a" * 64 + ".com",
        ".".join(["a" * 60] * 5),
        "ü" * 300,
        "℀.example",
        "straße.example",
        "bücher。example",
        "nai\u200dve.example",
    ],
)
def test_what_is_no_domain_name_gives_none(text: str) -> None:
    assert normalize_domain(text) is None


def test_name_of_253_characters_is_the_longest() -> None:
    longest = ".".join(["a" * 62, "b" * 62, "c" * 62, "d" * 64][:3]) + "." + "d" * 62 + ".e"
    assert len(longest) == 253
    assert normalize_domain(longest + ".") == longest
    assert normalize_domain("a" + longest) is None


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("bob@Contoso.com", "contoso.com"),
        ('"a@b"@contoso.com', "contoso.com"),
        ("", None),
        ("root", None),
        ("bob@", None),
        ("bob@[192.0.2.1]", None),
        ('"bob@contoso.com"', None),
    ],
)
def test_domain_of_an_address_is_what_follows_the_last_at_sign(address: str, domain: str) -> None:
    assert domain_of(address) == domain


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("mail.contoso.com", "mail.contoso.com"),
        ("*.contoso.com", "contoso.com"),
        ("*", None),
        ("mail*.contoso.com", None),
        ("*.*.contoso.com", None),
        ("Contoso CRM", None),
    ],
)
def test_r9_wildcard_certificate_name_counts_as_its_domain(name: str, domain: str) -> None:
    assert certificate_domain(name) == domain


def test_certificate_whose_names_are_not_known_is_told_by_its_fingerprint_if_any() -> None:
    assert nameless("no name known: fingerprint 46:06") == "fingerprint 46:06"
    assert nameless(NO_NAME) == nameless("no name known") == ""
    assert nameless("no.name.example") is None
