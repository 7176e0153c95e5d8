# SPDX-License-Identifier: GPL-3.0-or-later
"""Recipients as policy requests have them, of which Postfix makes SRS addresses for its maps only later."""

from __future__ import annotations

import time

import pytest
from snapshots import CONTOSO, NOW, snapshot

from gatepost.policyd.decisions import Action, Aids, Transaction, decide
from gatepost.service.reversal import unreadable

EXCHANGE, COMPACT, SRS0, SRS1 = (
    "bounces+SRS=aaaaaaaa=RA=example.org=victim",
    "bounces+SRS=aaaaaaaaaaaaaaaa=RA",
    "SRS0=aaaa=RA=example.org=victim",
    "SRS1=aaaa=first.example==aaaa=RA=example.org=victim",
)
AIDS = Aids(lambda: "ABCDEFGHIJ", lambda token: None, lambda ip: False)


@pytest.mark.parametrize("local", [EXCHANGE, COMPACT, SRS0, SRS1])
@pytest.mark.parametrize(
    "spelling",
    [
        "contoso.com!{}",
        "{}%contoso.com",
        "{}@contoso.com@",
        "{}",
        '"{}"',
        "{}@",
        "{}@srs",
        "srs!{}",
        "a!b!{}",
        "{}%a%b",
        "CONTOSO.COM!{}",
        "@relay.example:{}",
        "@relay.example:{}@contoso.com",
        "@@relay.example:{}@contoso.com",
        "@relay:{}%contoso.com",
        "@relay.example:contoso.com!{}",
        "{}%de.example",
    ],
)
def test_srs_address_that_only_the_mta_can_read_is_refused(local: str, spelling: str) -> None:
    encoded = local.replace("+", "%2B").replace("=", "%3D")
    written = spelling.format(local)
    for rcpt in (written, written.upper(), written.lower(), spelling.format(encoded)):
        assert unreadable(CONTOSO, rcpt)
        for state in (b"RCPT", b"VRFY"):
            request = {b"protocol_state": state, b"instance": b"1", b"recipient": rcpt.encode(), b"sender": b""}
            answer = decide(CONTOSO, request, Transaction(), NOW, AIDS)[0]
            assert (answer.action, answer.text) == (Action.REJECT, "550 5.1.1 SRS address with a wrong hash")


@pytest.mark.parametrize("local", [EXCHANGE, COMPACT, SRS0])
@pytest.mark.parametrize("domain", ["contoso.com", "contoso.com.", "example.com", "[192.0.2.1]", "mail.contoso.net"])
def test_srs_address_with_a_whole_domain_is_judged_by_its_hash(local: str, domain: str) -> None:
    assert not unreadable(CONTOSO, f"{local}@{domain}")


@pytest.mark.parametrize(
    "rcpt",
    ["postmaster", "x%example.com", "example.com!x", "john+srs@localhost", "srs0@localhost", "srs!x", "+srs=a", ""],
)
def test_other_recipients_without_a_domain_are_left_to_the_mta(rcpt: str) -> None:
    assert not unreadable(CONTOSO, rcpt)


def test_stamp_or_hash_with_percent_encoding_is_seen_too() -> None:
    for rcpt in (
        "contoso.com!bounces+SRS=aaaa%61aaa=%52A=example.org=victim",
        "srs!SRS0%3Daa%61a=RA=example.org=victim",
    ):
        assert unreadable(CONTOSO, rcpt)


@pytest.mark.parametrize("piece", ["srs0-", "+srs=a", "srs0-%", "@srs1+"])
def test_longest_request_is_read_in_time_that_grows_with_its_length_only(piece: str) -> None:
    began = time.process_time()
    unreadable(CONTOSO, ("@" + piece * 65536)[:65536])
    assert time.process_time() - began < 0.5


def test_accepted_domain_without_a_dot_is_whole() -> None:
    raw = {"name": "lan", "accepted_domain": [{"domain": "lan", "default": True}], "connector": []}
    assert not unreadable(snapshot(raw), f"{EXCHANGE}@lan")


def test_data_with_such_a_recipient_is_refused_where_rcpt_was_not_asked() -> None:
    request = {
        b"protocol_state": b"DATA",
        b"instance": b"1",
        b"recipient": f"contoso.com!{EXCHANGE}".encode(),
        b"recipient_count": b"1",
        b"sender": b"eve@evil.example",
    }
    answer = decide(CONTOSO, request, Transaction(), NOW, AIDS)[0]
    assert (answer.action, answer.text[:9]) == (Action.REJECT, "550 5.7.1")
