# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounces to SRS addresses come back through Sendmail: by map and milter, by either alone, and its own (S9)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from daemonprocess import poll
from ledgerrows import rows
from sendmaildaemon import ABROAD, PARTNER, Sendmail

from gatepost.service.secret import read_keys
from gatepost.srs import Address, Exchange

if TYPE_CHECKING:
    from .conftest import Boot

NULL = "MAILER-DAEMON"
"""What Sendmail calls the null sender towards local mailers."""
NDR = b"From: MAILER-DAEMON@example.com\r\nSubject: undelivered\r\n\r\nno such user\r\n"


def without_rules(text: str) -> str:
    """Return gatepost.m4 without the rules for recipients."""
    return re.sub(r"(?s)LOCAL_RULE_0\n.*?(?=dnl Forwarded mail)", "", text)


def by_map(text: str) -> str:
    return text.replace('reverse = "milter"', 'reverse = "map"')


@pytest.fixture(scope="module")
def booted(boot_sendmail: Boot) -> Iterator[Sendmail]:
    with boot_sendmail() as sendmail:
        yield sendmail


@pytest.fixture
def sendmail(booted: Sendmail) -> Iterator[Sendmail]:
    yield booted
    booted.forget()


@pytest.fixture(scope="module")
def milter_alone(boot_sendmail: Boot) -> Iterator[Sendmail]:
    with boot_sendmail(lines=without_rules) as sendmail:
        yield sendmail


@pytest.fixture(scope="module")
def map_alone(boot_sendmail: Boot) -> Iterator[Sendmail]:
    with boot_sendmail(configuration=by_map) as sendmail:
        yield sendmail


def srs(sendmail: Sendmail, original: str, days_ago: int = 0) -> str:
    """Return the address that gatepost gave *original* so many days ago."""
    exchange = Exchange(read_keys(sendmail.gatepost.state / "srs.secret"))
    return str(
        exchange.forward(Address.parse(original), "bounces", "contoso.com", int(time.time()) // 86400 - days_ago)
    )


def bounce(sendmail: Sendmail, *rcpts: str, sender: str = "") -> str:
    """Send a bounce from another site; return the last answer."""
    return str(sendmail.send(sender, rcpts, NDR, client=ABROAD).last)


# Map and milter


def test_bounce_from_outside_reaches_the_original_sender_and_the_others_once_each(sendmail: Sendmail) -> None:
    bob, eve = (srs(sendmail, original) for original in ("Bob@fabrikam.com", "eve@example.com"))
    assert bounce(sendmail, bob, "mary@corp.contoso.com", "root@contoso.com", eve, bob).startswith("250")
    assert sendmail.left() == [("", "Bob@fabrikam.com"), ("", "eve@example.com")]
    assert sendmail.at_inside() == [("", "mary@corp.contoso.com")]
    assert sendmail.mailbox("root") == [NULL]
    assert sendmail.mailbox("bounces") == []


def test_bounce_to_a_sender_on_this_host_arrives(sendmail: Sendmail) -> None:
    assert bounce(sendmail, srs(sendmail, "root@mail.contoso.com")).startswith("250")
    assert sendmail.mailbox("root") == [NULL]


def test_two_addresses_of_one_original_bring_it_one_copy(sendmail: Sendmail) -> None:
    today, yesterday = (srs(sendmail, "bob@fabrikam.com", days_ago=ago) for ago in (0, 1))
    assert bounce(sendmail, today, yesterday).startswith("250")
    assert sendmail.left() == [("", "bob@fabrikam.com")]


def test_bounce_that_sendmail_makes_itself_reaches_the_original_sender(sendmail: Sendmail) -> None:
    sendmail.internet.refuse["gone@example.com"] = "550 5.1.1 No such user"
    crm = sendmail.authority.issue("crm.contoso.com")
    assert sendmail.send("Bob@fabrikam.com", "gone@example.com", client=PARTNER, certificate=crm).accepted
    assert sendmail.left() == [("", "Bob@fabrikam.com")]
    assert b"550 5.1.1 No such user" in sendmail.internet.messages[0].content


def test_bounce_that_sendmail_makes_of_a_forwarded_copy_reaches_the_original_sender(sendmail: Sendmail) -> None:
    sendmail.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    assert sendmail.send("bob@fabrikam.com", "john.work@contoso.com", client=ABROAD).accepted
    assert sendmail.left() == [("", "bob@fabrikam.com")]


def test_forged_address_is_refused_at_rcpt(sendmail: Sendmail) -> None:
    forged = srs(sendmail, "bob@fabrikam.com").replace("=bob@", "=eve@")
    assert bounce(sendmail, forged).startswith("550 5.1.1")
    sendmail.gatepost.wait_for_log(r"action=reject, .*reason=srs-forged$")


def test_expired_address_is_refused_at_rcpt(sendmail: Sendmail) -> None:
    assert bounce(sendmail, srs(sendmail, "bob@fabrikam.com", days_ago=30)).startswith("550 5.1.1")
    sendmail.gatepost.wait_for_log(r"action=reject, .*reason=srs-expired$")


def test_message_that_is_no_bounce_is_refused_at_data(sendmail: Sendmail) -> None:
    answer = bounce(sendmail, srs(sendmail, "bob@fabrikam.com"), sender="eve@example.com")
    assert answer == "550 5.7.1 This address takes only bounces (null sender)"
    assert sendmail.left() == []


def test_srs_address_in_another_domain_is_left_alone(sendmail: Sendmail) -> None:
    foreign = srs(sendmail, "bob@fabrikam.com").replace("@contoso.com", "@example.org")
    assert "Relaying denied" in bounce(sendmail, foreign)


def test_bounce_that_came_back_is_in_the_ledger_and_counts_once(sendmail: Sendmail) -> None:
    address = srs(sendmail, "carol@fabrikam.com")
    assert bounce(sendmail, address).startswith("250")
    (row,) = [row for row in rows(sendmail.gatepost.state) if row["recipient"] == address.lower()]
    assert row.some("action", "forwarded_to") == ("return", "carol@fabrikam.com")
    bounces: list[object] = []

    def noted() -> bool:  # policyd writes it a moment later
        found = rows(sendmail.gatepost.state, "bounce")
        bounces[:] = [row["count"] for row in found if row["address"] == address.lower()]
        return bool(bounces)

    poll(noted, "the bounce is noted")
    assert bounces == [1]


def test_without_the_map_a_bounce_is_put_off_and_other_mail_is_not(sendmail: Sendmail) -> None:
    with sendmail.without("policyd.sock"):
        assert bounce(sendmail, srs(sendmail, "bob@fabrikam.com")).startswith("451 4.4.3")
        assert bounce(sendmail, "root@contoso.com").startswith("250")


def test_bounce_that_sendmail_makes_while_gatepost_is_away_waits_for_it(sendmail: Sendmail) -> None:
    sendmail.internet.refuse["x@example.com"] = "451 4.2.1 Try again later"
    crm = sendmail.authority.issue("crm.contoso.com")
    assert sendmail.send("bob@fabrikam.com", "x@example.com", client=PARTNER, certificate=crm).accepted
    (queued,) = sendmail.queued()
    path = sendmail.root / "queue" / queued
    path.write_bytes(re.sub(rb"(?m)^T\d+$", b"T1000000000", path.read_bytes()))  # too old to be kept
    with sendmail.without("policyd.sock"):
        sendmail.flush()
        sendmail.flush()
        assert len(sendmail.queued()) == 1
        assert sendmail.left() == []
    sendmail.flush()
    assert sendmail.left() == [("", "bob@fabrikam.com")]
    assert sendmail.queued() == []


# The milter alone, the map alone


def test_milter_alone_gives_back_what_comes_from_outside(milter_alone: Sendmail) -> None:
    bob = srs(milter_alone, "Bob@fabrikam.com")
    assert bounce(milter_alone, bob, "mary@corp.contoso.com").startswith("250")
    assert milter_alone.left() == [("", "Bob@fabrikam.com")]
    assert milter_alone.at_inside() == [("", "mary@corp.contoso.com")]
    milter_alone.forget()


def test_map_alone_gives_back_what_comes_from_outside(map_alone: Sendmail) -> None:
    bob = srs(map_alone, "Bob@fabrikam.com")
    assert bounce(map_alone, bob, "mary@corp.contoso.com").startswith("250")
    assert map_alone.left() == [("", "Bob@fabrikam.com")]
    assert map_alone.at_inside() == [("", "mary@corp.contoso.com")]
    map_alone.forget()
