# SPDX-License-Identifier: GPL-3.0-or-later
"""From headers that are written to show an accepted domain where no reader would see it as the author's (RFC 5322)."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.milter.header_from import addresses
from gatepost.milter.transaction import header_addresses

EVIL, OURS = "bob@evil.example", "app@contoso.com"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Bob <Bob@Evil.example>", ("Bob@Evil.example",)),
        ("a@b.example, <c@d.example>", ("a@b.example", "c@d.example")),
        ('"app@contoso.com" <bob@evil.example>', (EVIL,)),
        ('"<app@contoso.com>" <bob@evil.example>', (EVIL,)),
        (r'"a\" <app@contoso.com> \"" <bob@evil.example>', (EVIL,)),
        ("app@contoso.com <bob@evil.example>", (EVIL,)),
        ("[app@contoso.com] <bob@evil.example>", (EVIL,)),
        ("[Ticket 1] Bob <bob@evil.example>", (EVIL,)),
        ("=?utf-8?q?=3Capp=40contoso=2Ecom=3E?= <bob@evil.example>", (EVIL,)),
        ("=?utf-8?b?YXBwQGNvbnRvc28uY29t?= <bob@evil.example>", (EVIL,)),
        ("=?utf-8?q?=1b[31m?= <bob@evil.example>", (EVIL,)),
        ("bob@evil.example (app@contoso.com)", (EVIL,)),
        ("bob@evil.example (a (nested) app@contoso.com)", (EVIL,)),
        (r"bob@evil.example (\) app@contoso.com)", (EVIL,)),
        ('bob@evil.example (" app@contoso.com)', (EVIL,)),
        ("bob@evil.example\r\n\t(\r\n app@contoso.com)", (EVIL,)),
        ("bob@evil.example\n (app@contoso.com)", (EVIL,)),
        ("(app@contoso.com) bob@evil.example", (EVIL,)),
        ("bob(app@contoso.com)@evil.example", (EVIL,)),
        ("<@contoso.com:bob@evil.example>", (EVIL,)),
        ("<@contoso.com,@contoso.com:bob@evil.example>", (EVIL,)),
        ("contoso.com: bob@evil.example;", (EVIL,)),
        ('"app@contoso.com": bob@evil.example, <c@d.example>;', (EVIL, "c@d.example")),
        ("undisclosed-recipients:;", ()),
        ("", ()),
        ("<>", ()),
        (",,", ()),
        ("(app@contoso.com)", ()),
        ("bob", ("bob",)),
        ("Smith, John <j@evil.example>", ("Smith", "j@evil.example")),
        ("Evil GmbH, Info <i@evil.example>", ("i@evil.example",)),
        ("bob @ evil . example", (EVIL,)),
        ('"app"@evil.example', ('"app"@evil.example',)),
        ('"app@contoso.com"@evil.example', ('"app@contoso.com"@evil.example',)),
        ("bob@[192.0.2.1]", ("bob@[192.0.2.1]",)),
        ("bøb@evil.example", ("bøb@evil.example",)),
    ],
)
def test_addresses_are_those_that_a_reader_takes_for_the_author(value: str, found: tuple[str, ...]) -> None:
    assert addresses(value) == found


@pytest.mark.parametrize(
    "value",
    [
        "bob@evil.example)app@contoso.com",
        "app@contoso.com)bob@evil.example",
        "app@contoso.com (",
        "app@contoso.com(<bob@evil.example>",
        '"unclosed <bob@evil.example>, app@contoso.com',
        'bob@evil.example"@contoso.com',
        "(unclosed bob@evil.example, app@contoso.com",
        "bob@evil.example@contoso.com",
        "app@contoso.com@evil.example",
        "app@contoso.com>",
        "<app@contoso.com",
        "bob@evil.example <app@contoso.com> <x@evil.example>",
        "<bob@evil.example> app@contoso.com",
        "bob@evil.example [app@contoso.com]",
        "bob@evil.example;app@contoso.com",
        "bob@evil.example:app@contoso.com",
        "app@contoso.com: bob@evil.example;",
        "x: y: app@contoso.com;;",
        "x: app@contoso.com",
        "<bob@evil.example:app@contoso.com>",
        "app@contoso.com bob@evil.example",
        "app@contoso.com\r\n bob@evil.example",
        "app@cont\r\n oso.com",
        "app@contoso.com\rbob@evil.example",
        "app@contoso.com\nbob@evil.example",
        "app@contoso.com\0@evil.example",
        "\x0bapp@contoso.com <bob@evil.example>",
        r"app\@contoso.com",
        r"bob@evil.example\ <app@contoso.com>",
        "bob@evil.example: x <app@contoso.com>",
        "<bob>: x <app@contoso.com>",
        "(x: <app@contoso.com>",
        '"bob@evil.example": x <app@contoso.com>',
        '"r"<app@contoso\xa0.com>',
    ],
)
def test_what_can_be_read_in_several_ways_has_no_address(value: str) -> None:
    assert addresses(value) == ()


@pytest.mark.parametrize(
    "value",
    [
        r"CONTOSO\app <app@contoso.com>",
        "Contoso: Support <app@contoso.com>",
        "Re: contoso.com: news <app@contoso.com>",
        "10:30 News\r\n <app@contoso.com>",
        '"\x1b$B;3\x1b(B" <app@contoso.com>'.replace("(", "$"),
    ],
)
def test_address_with_the_only_at_sign_counts_beside_a_name_that_is_not_quoted_as_it_should(value: str) -> None:
    assert addresses(value) == (OURS,)


def test_quoted_text_without_a_domain_is_in_no_domain() -> None:
    assert addresses('"app@contoso.com"') == ('"app@contoso.com"',)


def test_one_header_cannot_begin_what_the_next_one_ends() -> None:
    assert header_addresses(["bob@evil.example (", "app@contoso.com)"]) == ()
    assert header_addresses(['"', 'x" <app@contoso.com>']) == ()
    assert header_addresses(["x:", "app@contoso.com;"]) == ()


def test_headers_count_each_for_itself() -> None:
    assert header_addresses(["Bob <bob@evil.example>", "a (b"]) == (EVIL,)
    assert header_addresses([EVIL, OURS]) == (EVIL, OURS)


@given(st.text(st.sampled_from('ab@.,:;<>()[]"\\ \t\r\n\0=?é'), max_size=60))
def test_no_text_is_a_fault_and_what_is_found_has_one_domain_at_most(value: str) -> None:
    for address in addresses(value):
        if address.endswith('"'):  # quoted, without a domain
            continue
        local, at, domain = address.rpartition("@")
        assert not at or (local and domain and not set(domain) & set(' "(),:;<>\\@'))


@pytest.mark.parametrize(
    "piece", ["@", '"', "(", "<", "a@b,", "\\", '"\\"', " .", '<"', "@a,", "x:", "[", "a ", "(\\", 'x""']
)
def test_eight_kilobytes_of_anything_are_read_in_time_that_grows_with_their_length_only(piece: str) -> None:
    began = time.process_time()
    addresses((piece * 8192)[:8192])
    assert time.process_time() - began < 0.5
