# SPDX-License-Identifier: GPL-3.0-or-later
"""Octets of the policy delegation, socketmap and tcp_table protocols, and the requests that they are."""

from __future__ import annotations

import contextlib
from typing import Union
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatepost.policyd.wire import (
    PolicyParser,
    ProtocolError,
    SocketmapParser,
    TcpTableParser,
    netstring,
    parser_for,
    policy_reply,
    tcp_table_reply,
)

POLICY = b"request=smtpd_access_policy\nprotocol_state=RCPT\nsender=\nrecipient=a=b@contoso.com\n\n"
POLICY_READ = {
    b"request": b"smtpd_access_policy",
    b"protocol_state": b"RCPT",
    b"sender": b"",
    b"recipient": b"a=b@contoso.com",
}


def test_policy_request_is_read_attribute_by_attribute() -> None:
    assert PolicyParser().feed(POLICY) == [POLICY_READ]


def test_two_pipelined_policy_requests_are_both_read() -> None:
    assert PolicyParser().feed(POLICY + POLICY) == [POLICY_READ, POLICY_READ]


def test_policy_request_that_arrives_octet_by_octet_is_read_once_at_its_end() -> None:
    parser = PolicyParser()
    read = [parser.feed(POLICY[index : index + 1]) for index in range(len(POLICY))]
    assert read == [[]] * (len(POLICY) - 1) + [[POLICY_READ]]
    assert not parser.unfinished


def test_half_a_policy_request_is_unfinished() -> None:
    parser = PolicyParser()
    assert parser.feed(POLICY + b"request=smtpd") == [POLICY_READ]
    assert parser.unfinished


@pytest.mark.parametrize(
    "data",
    [
        b"request=smtpd_access_policy\nrecipient\n\n",
        b"request=smtpd_access_policy\nsender=a\0b\n\n",
        b"request=smtpd_access_policy\nsender=a\nsender=b\n\n",
        b"request=junk\n\n",
        b"protocol_state=RCPT\n\n",
        b"\n\n",
        b"\n" + POLICY,
        b"request=smtpd_access_policy\n" + b"".join(b"a%d=\n" % number for number in range(256)) + b"\n",
        b"request=smtpd_access_policy\nsender=" + b"x" * 65536 + b"\n\n",
        b"x" * 65538,
    ],
    ids=[
        "line without =",
        "NUL",
        "attribute given twice",
        "another request",
        "no request",
        "empty request",
        "empty line in front",
        "too many lines",
        "too long",
        "endless line",
    ],
)
def test_broken_policy_request_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        PolicyParser().feed(data)


def test_policy_request_of_the_greatest_length_is_read_also_octet_by_octet_at_its_end() -> None:
    head = b"request=smtpd_access_policy\nsender="
    request = head + b"x" * (65536 - len(head))
    parser = PolicyParser()
    assert parser.feed(request) == []
    assert parser.feed(b"\n") == []
    assert len(parser.feed(b"\n")) == 1


def test_socketmap_request_is_map_name_and_key() -> None:
    assert SocketmapParser().feed(b"22:reverse x@contoso.com ,") == [(b"reverse", b"x@contoso.com ")]


def test_three_pipelined_socketmap_requests_are_all_read() -> None:
    assert SocketmapParser().feed(b"3:a b,3:a c,3:a d,") == [(b"a", b"b"), (b"a", b"c"), (b"a", b"d")]


def test_empty_key_is_a_request() -> None:
    assert SocketmapParser().feed(b"7:egress ,") == [(b"egress", b"")]


def test_half_a_socketmap_request_is_unfinished() -> None:
    parser = SocketmapParser()
    assert parser.feed(b"3:a b,12:revers") == [(b"a", b"b")]
    assert parser.unfinished


def test_socketmap_request_of_the_greatest_length_is_read() -> None:
    assert SocketmapParser().feed(netstring(b"a " + b"k" * 9998)) == [(b"a", b"k" * 9998)]


@pytest.mark.parametrize(
    "data",
    [b"10001:", b"100000", b"03:a b,", b"3:a bx", b"3:abc,", b"0:,", b"-3:a b,", b"x", b":", b"1x:", b"3 :a b,"],
)
def test_broken_netstring_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        SocketmapParser().feed(data)


def test_digit_begins_socketmap_and_letter_begins_policy() -> None:
    assert isinstance(parser_for(b"7:egress ,"), SocketmapParser)
    assert isinstance(parser_for(POLICY), PolicyParser)


@pytest.mark.parametrize("data", [b"\n", b"\0", b" request=", b"\xff", b"-1:"])
def test_any_other_first_octet_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parser_for(data)


def test_replies_are_a_netstring_and_an_action_with_an_empty_line() -> None:
    assert netstring(b"NOTFOUND ") == b"9:NOTFOUND ,"
    assert policy_reply(b"DUNNO") == b"action=DUNNO\n\n"


VALUES = st.binary(max_size=40).map(lambda value: value.replace(b"\n", b"").replace(b"\0", b""))
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=12).map(str.encode)
POLICY_REQUESTS = st.lists(
    st.dictionaries(NAMES, VALUES, max_size=5).map(lambda some: {**some, b"request": b"smtpd_access_policy"}),
    max_size=4,
)
SOCKETMAP_REQUESTS = st.lists(st.tuples(NAMES, st.binary(max_size=40)), max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=8)


def in_pieces(
    parser: Union[PolicyParser, SocketmapParser, TcpTableParser], data: bytes, cuts: list[int]
) -> list[object]:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    read: list[object] = []
    for start, end in zip(places, places[1:]):
        read.extend(parser.feed(data[start:end]))
    return read


@given(POLICY_REQUESTS, CUTS)
def test_policy_requests_are_the_same_however_they_are_split(
    requests: list[dict[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(b"".join(name + b"=" + value + b"\n" for name, value in item.items()) + b"\n" for item in requests)
    assert in_pieces(PolicyParser(), data, cuts) == requests


@given(SOCKETMAP_REQUESTS, CUTS)
def test_socketmap_requests_are_the_same_however_they_are_split(
    requests: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b"".join(netstring(name + b" " + key) for name, key in requests)
    assert in_pieces(SocketmapParser(), data, cuts) == requests


NOISE = st.binary(max_size=60) | st.text("0123456789:,abget= %\n", max_size=60).map(str.encode)


@given(NOISE, CUTS)
def test_arbitrary_octets_raise_nothing_but_protocol_errors(data: bytes, cuts: list[int]) -> None:
    for parser in (PolicyParser(), SocketmapParser(), TcpTableParser()):
        with contextlib.suppress(ProtocolError):
            in_pieces(parser, data, cuts)


@given(NOISE, CUTS)
def test_whether_octets_break_the_protocol_does_not_depend_on_their_split(data: bytes, cuts: list[int]) -> None:
    for kind in (PolicyParser, SocketmapParser, TcpTableParser):
        outcomes = []
        for places in ([], cuts):
            try:
                outcomes.append(in_pieces(kind(), data, places))
            except ProtocolError:
                outcomes.append(["broken"])
        assert outcomes[0] == outcomes[1]


# --- tcp_table(5)


def test_tcp_table_request_is_its_key() -> None:
    assert TcpTableParser().feed(b"get bob@fabrikam.com\n") == [b"bob@fabrikam.com"]


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (b"get a%20b@contoso.com\n", b"a b@contoso.com"),
        (b"get %25%0A%ff%C3%bc\n", b"%\n\xff\xc3\xbc"),
        (b"get a b\n", b"a b"),
        (b"get \n", b""),
        (b"get 100%\n", b"100%"),
        (b"get %zz%4\n", b"%zz%4"),
    ],
)
def test_key_is_percent_decoded(request_: bytes, key: bytes) -> None:
    assert TcpTableParser().feed(request_) == [key]


@pytest.mark.parametrize(
    ("code", "text", "reply"),
    [
        (200, b"bounces+SRS=x=AA=y.example=z@contoso.com", b"200 bounces+SRS=x=AA=y.example=z@contoso.com\n"),
        (200, b'"a b%\n"@contoso.com', b'200 "a%20b%25%0A"@contoso.com\n'),
        (200, b"b\xc3\xb8b@contoso.com", b"200 b%C3%B8b@contoso.com\n"),
        (500, b"not found", b"500 not%20found\n"),
        (400, b"", b"400 \n"),
    ],
)
def test_tcp_table_reply_is_a_code_and_a_percent_encoded_text(code: int, text: bytes, reply: bytes) -> None:
    assert tcp_table_reply(code, text) == reply


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"put bob@fabrikam.com x\n",
        b"GET bob\n",
        b"get\n",
        b" get bob\n",
        b"get bob\n\n",
        b"get " + b"k" * 4092 + b"\n",
        b"g" * 4096,
    ],
    ids=["empty line", "put", "upper case", "no key", "space in front", "empty line behind", "too long", "endless"],
)
def test_broken_tcp_table_request_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        TcpTableParser().feed(data)


def test_tcp_table_request_of_the_greatest_length_is_read() -> None:
    assert TcpTableParser().feed(b"get " + b"k" * 4091 + b"\n") == [b"k" * 4091]


def test_half_a_tcp_table_request_is_unfinished() -> None:
    parser = TcpTableParser()
    assert parser.feed(b"get a\nget") == [b"a"]
    assert parser.unfinished
    assert parser.feed(b" b\n") == [b"b"]
    assert not parser.unfinished


@given(st.lists(st.binary(max_size=60), max_size=4), CUTS)
def test_tcp_table_keys_survive_their_coding_however_they_are_split(keys: list[bytes], cuts: list[int]) -> None:
    data = b"".join(b"get " + quote_from_bytes(key, safe="").encode() + b"\n" for key in keys)
    assert in_pieces(TcpTableParser(), data, cuts) == keys


@given(st.binary(max_size=80))
def test_tcp_table_reply_is_one_line_of_printable_ascii_that_decodes_to_the_text(text: bytes) -> None:
    reply = tcp_table_reply(200, text)
    assert all(0x20 < octet < 0x7F for octet in reply[4:-1])
    assert unquote_to_bytes(reply[4:-1]) == text
