# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail addresses: what is one, how it is read and written (RFC 5321, 4.1.2; RFC 6531)."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatepost.srs import Address, AddressError, address


@pytest.mark.parametrize(
    ("text", "local", "domain"),
    [
        ("bob@fabrikam.com", "bob", "fabrikam.com"),
        ("Bob.O'Hara+x=y/z@Fabrikam.COM", "Bob.O'Hara+x=y/z", "Fabrikam.COM"),
        ('"john doe"@contoso.com', "john doe", "contoso.com"),
        (r'"a\"b\\c\d"@contoso.com', r'a"b\cd', "contoso.com"),
        ('"bob"@contoso.com', "bob", "contoso.com"),
        ('"a@b"@contoso.com', "a@b", "contoso.com"),
        ("bob@[192.0.2.1]", "bob", "[192.0.2.1]"),
        ("bob@[IPv6:2001:db8::1]", "bob", "[IPv6:2001:db8::1]"),
        ("jörg@bücher.example", "jörg", "bücher.example"),
        ("用户@例子.广告", "用户", "例子.广告"),
        ("root@localhost", "root", "localhost"),
    ],
)
def test_address_is_read_into_the_value_of_its_local_part_and_its_domain(
    text: str, local: str, domain: str
) -> None:
    assert Address.parse(text) == Address(local, domain)


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (Address("bob", "fabrikam.com"), "bob@fabrikam.com"),
        (Address("john.work+SRS=x=AA=a.com=b", "contoso.com"), "john.work+SRS=x=AA=a.com=b@contoso.com"),
        (Address("john doe", "contoso.com"), '"john doe"@contoso.com'),
        (Address(r'a"b\c', "contoso.com"), r'"a\"b\\c"@contoso.com'),
        (Address("a@b", "contoso.com"), '"a@b"@contoso.com'),
        (Address("a..b", "contoso.com"), '"a..b"@contoso.com'),
        (Address(".a", "contoso.com"), '".a"@contoso.com'),
        (Address("a.", "contoso.com"), '"a."@contoso.com'),
        (Address("a[1]", "contoso.com"), '"a[1]"@contoso.com'),
        (Address("jörg", "bücher.example"), "jörg@bücher.example"),
    ],
)
def test_address_is_written_with_quotes_only_where_the_local_part_is_no_dot_string(
    address: Address, text: str
) -> None:
    assert str(address) == text


@pytest.mark.parametrize("text", ["john..doe@docomo.example", "john.@docomo.example", ".john@docomo.example"])
def test_misplaced_dots_are_taken_without_quotes_as_found_in_real_mail(text: str) -> None:
    assert Address.parse(text).local == text.partition("@")[0]


def test_last_at_sign_outside_quotes_splits() -> None:
    assert Address.parse("a@b@contoso.com") == Address("a@b", "contoso.com")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bob",
        "@",
        "@contoso.com",
        "bob@",
        '""@contoso.com',
        "<bob@contoso.com>",
        "Bob <bob@contoso.com>",
        " bob@contoso.com",
        "bob@contoso.com ",
        "bob smith@contoso.com",
        "bob@con toso.com",
        "bob@contoso\u3000.com",
        "bob(comment)@contoso.com",
        "a,b@contoso.com",
        "a:b@contoso.com",
        r"a\b@contoso.com",
        'a"b"@contoso.com',
        '"a"b@contoso.com',
        '"a@contoso.com',
        '"a\\"@contoso.com',
        '"a"',
        '"a"@b@contoso.com',
        "bob@con=toso.com",
        "bob@contoso.com,example.com",
        'bob@"contoso.com"',
        "bob@contoso.com>",
        "bob@.contoso.com",
        "bob@contoso..com",
        "bob@contoso.com.",
        "bob@[192.0.2.1",
        "bob@[192.0.2.1=x]",
        "bob@[]",
    ],
)
def test_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize("text", ["@a,@b:user@c", "@a:user@c", "@hub.example:bob@contoso.com"])
def test_source_route_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(text)


@pytest.mark.parametrize("char", ["\r", "\n", "\0", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\udc80"])
@pytest.mark.parametrize(
    "template", ["b{}b@a.com", '"b{}b"@a.com', '"b\\{}b"@a.com', "bob@a{}.com", "bob@a.com{}", "{}bob@a.com"]
)
def test_control_character_or_octet_that_is_no_utf8_is_refused_everywhere(template: str, char: str) -> None:
    with pytest.raises(AddressError):
        Address.parse(template.format(char))


@pytest.mark.parametrize(
    ("local", "domain"), [("", "a.com"), ("bob", ""), ("b\r\nb", "a.com"), ("bob", "a.com\n"), ("bob", "a=b")]
)
def test_constructor_refuses_what_could_not_be_written_into_smtp(local: str, domain: str) -> None:
    with pytest.raises(AddressError):
        Address(local, domain)


@given(st.text() | st.binary().map(lambda octets: octets.decode("utf-8", "surrogateescape")))
@example("@")
@example('"')
@example('"\\')
@settings(deadline=None, max_examples=500)
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = Address.parse(text)
    except AddressError:
        return
    assert Address.parse(str(address)) == address


@given(st.text(st.sampled_from('ab.@"\\ =+<>[],:(é\r\n\udc80'), max_size=12))
@settings(deadline=None, max_examples=1000)
def test_any_text_of_the_dangerous_characters_reads_back_as_written(text: str) -> None:
    try:
        address = Address.parse(text)
    except AddressError:
        return
    assert Address.parse(str(address)) == address
    assert not set("\r\n\udc80") & set(str(address))


PRINTABLE = "aZ09!#'*+-/=?^_`{|}~."
REFUSED = "@\"\\ ,:;<>[]()\x00\x7f\x80é\u2028\ud800"


@given(
    st.builds(
        "{}@{}".format,
        st.text(st.sampled_from(PRINTABLE * 3 + REFUSED), max_size=8),
        st.text(st.sampled_from("aZ09-_." * 5 + PRINTABLE + REFUSED), max_size=8),
    )
)
@settings(deadline=None, max_examples=2000)
def test_an_ordinary_address_passes_all_checks_and_is_written_as_it_is(text: str) -> None:
    local, _, domain = text.rpartition("@")
    if address._ORDINARY(text) is None:
        return
    assert re.fullmatch(address._LOCAL_PART, local)
    assert re.fullmatch(address._DOMAIN, domain)
    assert re.fullmatch(address._UNQUOTED, local)
    assert address._written(local) == local
    assert Address.parse(text) == Address(local, domain)


def test_repr_shows_the_two_parts() -> None:
    assert repr(Address("bob", "fabrikam.com")) == "Address(local='bob', domain='fabrikam.com')"
