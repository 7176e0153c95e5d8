# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounces of forwarded mail reach the original sender, once, whoever makes them (S9)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from stages import NDR

from gatepost.service.reversal import day
from gatepost.service.snapshot import load_snapshot
from gatepost.srs import Address

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

FORWARDERS = ["john.work", "john.alias", "games"]
"""A virtual alias, an alias and a mailbox with a .forward file."""
OUTSIDE = {
    "john.work": "john.home@example.com",
    "john.alias": "john.alias.home@example.com",
    "games": "games.home@example.com",
}
TO_BOB = ("", "bob@fabrikam.com")


@pytest.fixture(scope="module", params=["", "+"], ids=["no delimiter", "delimiter +"])
def booted(boot_forwarder: Boot, request: pytest.FixtureRequest) -> Iterator[Forwarder]:
    with boot_forwarder(before=f"recipient_delimiter = {request.param}\n") as forwarder:
        yield forwarder


@pytest.fixture
def forwarder(booted: Forwarder) -> Iterator[Forwarder]:
    yield booted
    booted.forget()


def rewritten_p1(forwarder: Forwarder, mailbox: str = "john.work") -> str:
    """Have Bob's mail forwarded by *mailbox*, and return the P1 that it left with."""
    forwarder.bob_writes(f"{mailbox}@contoso.com")
    p1: str = forwarder.only_mail().mail_from
    assert p1.startswith(f"{mailbox}+SRS=")
    forwarder.stage.internet.messages.clear()
    return p1


def srs_address(forwarder: Forwarder, age_days: int) -> str:
    """Return an address that gatepost made *age_days* ago."""
    snapshot = load_snapshot(forwarder.stage.configuration)
    bob = Address("bob", "fabrikam.com")
    return str(snapshot.exchange.forward(bob, "john.work", "contoso.com", day(int(time.time())) - age_days))


@pytest.mark.parametrize("mailbox", FORWARDERS)
def test_forwarded_copy_that_the_next_hop_refuses_is_returned_to_the_original_sender(
    forwarder: Forwarder, mailbox: str
) -> None:
    forwarder.stage.internet.refuse[OUTSIDE[mailbox]] = "550 5.1.1 No such user"
    forwarder.bob_writes(f"{mailbox}@contoso.com")
    assert forwarder.left() == [TO_BOB]
    assert b"550 5.1.1 No such user" in forwarder.only_mail().content


@pytest.mark.parametrize("mailbox", FORWARDERS)
def test_ndr_of_a_remote_mta_is_returned_to_the_original_sender(forwarder: Forwarder, mailbox: str) -> None:
    p1 = rewritten_p1(forwarder, mailbox)
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [TO_BOB]
    assert forwarder.inside("games") == []


def test_ndr_to_a_lower_cased_address_is_returned_to_the_original_sender(forwarder: Forwarder) -> None:
    p1 = rewritten_p1(forwarder)
    forwarder.bob_writes(p1.lower(), sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [TO_BOB]


def test_ndr_goes_out_as_it_came_in_by_the_straight_way(forwarder: Forwarder) -> None:
    p1 = rewritten_p1(forwarder)
    start = len(forwarder.stage.postfix.log())
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.only_mail().content.endswith(NDR)
    assert "gatepost-egress" not in forwarder.stage.postfix.log()[start:]


def test_ndr_beside_another_recipient_reaches_both(forwarder: Forwarder) -> None:
    p1 = rewritten_p1(forwarder)
    forwarder.bob_writes(p1, "list@contoso.com", sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [TO_BOB]
    assert forwarder.inside("list") == [""]


def test_ndr_for_several_senders_reaches_each_of_them_once(forwarder: Forwarder) -> None:
    to_bob = rewritten_p1(forwarder)
    forwarder.bob_writes("carla@contoso.com", sender="ann@tailspin.example")
    to_ann = forwarder.only_mail().mail_from
    forwarder.stage.internet.messages.clear()
    forwarder.bob_writes(to_bob, to_ann, to_bob, "list@contoso.com", sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [("", "ann@tailspin.example"), TO_BOB]
    assert forwarder.inside("list") == [""]


@pytest.mark.parametrize("sender", ["bob@fabrikam.com", "bob+tag@fabrikam.com", "bounce=john@fabrikam.com"])
@pytest.mark.parametrize("plus", ["+", "%2B"])
def test_ndr_to_an_address_that_the_mta_has_percent_encoded_is_returned(
    forwarder: Forwarder, plus: str, sender: str
) -> None:
    forwarder.bob_writes("john.work@contoso.com", sender=sender)
    local, _, domain = forwarder.only_mail().mail_from.rpartition("@")
    forwarder.stage.internet.messages.clear()
    mailbox, _, rest = local.partition("+")
    encoded = f"{mailbox}{plus}{rest.replace('+', '%2B').replace('=', '%3D')}@{domain}"
    forwarder.bob_writes(encoded, sender="", message=NDR, client="203.0.113.9", rcpt_options="NOTIFY=NEVER")
    assert forwarder.left() == [("", sender)]


@pytest.mark.parametrize("local", ["list%other", "host!list", '"a@b"'])
def test_sender_whose_address_would_be_a_route_gets_his_bounce_too(forwarder: Forwarder, local: str) -> None:
    sender = f"{local}@fabrikam.com"
    forwarder.bob_writes("john.work@contoso.com", sender=sender)
    p1 = forwarder.only_mail().mail_from
    forwarder.stage.internet.messages.clear()
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [("", sender)]


def test_bounce_of_one_of_two_forwarded_copies_leaves_the_other_alone(forwarder: Forwarder) -> None:
    forwarder.stage.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    forwarder.bob_writes("john.work@contoso.com", "carla@contoso.com", "list@contoso.com")
    carla = "carla+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
    assert forwarder.left() == [TO_BOB, (carla, "carla.home@example.net")]
    assert forwarder.inside("list") == ["bob@fabrikam.com"]


def test_ndr_that_the_original_sender_refuses_ends_there(forwarder: Forwarder) -> None:
    p1 = rewritten_p1(forwarder)
    forwarder.stage.internet.refuse["bob@fabrikam.com"] = "550 5.1.1 Bob has left"
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == []
    assert forwarder.stage.postfix.queue() == []


def test_null_sender_mail_whose_forwarded_copy_is_refused_makes_no_bounce(forwarder: Forwarder) -> None:
    forwarder.stage.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    forwarder.bob_writes("john.work@contoso.com", sender="", message=NDR)
    assert forwarder.left() == []
    assert forwarder.stage.postfix.queue() == []


def test_original_sender_with_a_quoted_local_part_gets_his_bounce(forwarder: Forwarder) -> None:
    forwarder.stage.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    forwarder.bob_writes("john.work@contoso.com", sender='"bob, \\"b\\" =x"@fabrikam.com')
    assert forwarder.left() == [("", '"bob, \\"b\\" =x"@fabrikam.com')]


def test_forged_srs_recipient_is_refused_at_rcpt(forwarder: Forwarder) -> None:
    forged = rewritten_p1(forwarder).replace("=bob@", "=eve@")
    transcript = forwarder.attempt(forged, sender="", message=NDR)
    assert [str(reply) for reply in transcript.rcpt] == [
        f"550 5.1.1 <{forged}>: Recipient address rejected: SRS address with a wrong hash"
    ]


def test_srs_recipient_of_21_days_ago_is_taken(forwarder: Forwarder) -> None:
    forwarder.bob_writes(srs_address(forwarder, 21), sender="", message=NDR)
    assert forwarder.left() == [TO_BOB]


def test_srs_recipient_of_22_days_ago_is_refused_at_rcpt(forwarder: Forwarder) -> None:
    expired = srs_address(forwarder, 22)
    transcript = forwarder.attempt(expired, sender="", message=NDR)
    assert [str(reply) for reply in transcript.rcpt] == [
        f"550 5.1.1 <{expired}>: Recipient address rejected: SRS address that has expired"
    ]


def test_srs_recipient_of_mail_that_is_no_bounce_is_refused_at_data(forwarder: Forwarder) -> None:
    transcript = forwarder.attempt(rewritten_p1(forwarder), sender="spam@example.org")
    assert [reply.code for reply in transcript.rcpt] == [250]
    assert (transcript.data.code, transcript.data.text[:5]) == (550, "5.7.1")
    assert forwarder.left() == []


def test_copy_that_expires_in_the_queue_is_returned_to_the_original_sender(boot_forwarder: Boot) -> None:
    with boot_forwarder(before="maximal_queue_lifetime = 1s\nbounce_queue_lifetime = 1s\n") as forwarder:
        forwarder.stage.internet.refuse["john.home@example.com"] = "450 4.2.2 Mailbox full"
        forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
        bounce = forwarder.stage.internet.wait(lambda mail: True)
        assert (bounce.mail_from, bounce.rcpt_to) == ("", ["bob@fabrikam.com"])
        assert b"450 4.2.2 Mailbox full" in bounce.content
        assert forwarder.left() == [TO_BOB]
        assert forwarder.stage.postfix.queue() == []
        assert forwarder.inside("list") == ["bob@fabrikam.com"]


@pytest.fixture(scope="module")
def with_srs_domain(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder(
        after="virtual_alias_domains = srs.contoso.com\n",
        configuration=lambda text: text.replace(
            'name = "contoso"\n', 'name = "contoso"\nsrs_domain = "srs.contoso.com"\n', 1
        ),
    ) as forwarder:
        yield forwarder
        forwarder.forget()


def test_organization_with_an_srs_domain_gets_its_bounces_there(with_srs_domain: Forwarder) -> None:
    forwarder = with_srs_domain
    forwarder.bob_writes("john.work@contoso.com")
    assert forwarder.left() == [("john.work+SRS=HASH=TT=fabrikam.com=bob@srs.contoso.com", "john.home@example.com")]
    p1 = forwarder.only_mail().mail_from
    forwarder.stage.internet.messages.clear()
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [TO_BOB]
    forwarder.stage.internet.messages.clear()
    forwarder.stage.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    forwarder.bob_writes("john.work@contoso.com")
    assert forwarder.left() == [TO_BOB]


def test_srs_address_of_somebody_else_in_the_accepted_domain_is_left_alone(with_srs_domain: Forwarder) -> None:
    forwarder = with_srs_domain
    exchange_online = "bounces+SRS=44ldt=IX=fabrikam.com=bob@contoso.com"
    reverse = "socketmap:unix:gatepost/policyd.sock:reverse"
    assert forwarder.stage.postfix.postmap_query(exchange_online, reverse) is None
    transcript = forwarder.attempt(exchange_online, sender="", message=NDR)
    assert "User unknown" in str(transcript.rcpt[0])


def test_vacation_reply_reaches_the_original_sender_where_everyone_may_write(boot_forwarder: Boot) -> None:
    with boot_forwarder(configuration=lambda text: text + '\n[srs]\naccept_from = "everyone"\n') as forwarder:
        p1 = rewritten_p1(forwarder)
        forwarder.bob_writes(p1, "list@contoso.com", sender="john.home@example.com", client="203.0.113.9")
        own = "john.work+SRS=HASH=TT=example.com=john.home@contoso.com"
        assert forwarder.left() == [(own, "bob@fabrikam.com")]
        assert forwarder.inside("list") == ["john.home@example.com"]


def test_client_that_guesses_is_put_off_even_with_a_right_address_and_others_are_not(boot_forwarder: Boot) -> None:
    with boot_forwarder(configuration=lambda text: text + "\n[srs]\nfailures_per_hour = 3\n") as forwarder:
        p1 = rewritten_p1(forwarder)
        for guess in "abc":
            forged = forwarder.attempt(p1.replace("=bob@", f"={guess}@"), sender="", message=NDR, client="203.0.113.9")
            assert forged.rcpt[0].code == 550
        right = forwarder.attempt(p1, sender="", message=NDR, client="203.0.113.9")
        assert (right.rcpt[0].code, right.rcpt[0].text[:5]) == (450, "4.7.1")
        forwarder.bob_writes("list@contoso.com", client="203.0.113.9")
        forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.10")
        assert forwarder.left() == [TO_BOB]
