# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay hub: bounces of rewritten mail come back to bob@fabrikam.com, the original sender (S9).

In this Postfix mail expires within seconds, extensions are cut at `+`, and bounces@contoso.com is an alias of its own.
"""

from __future__ import annotations

import time
from typing import Callable

import pytest

from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage, command, transact
from gatepost.service.secret import read_keys
from gatepost.srs import Address, Exchange

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x} }
recipient_delimiter = +
local_header_rewrite_clients =
maximal_queue_lifetime = 1s
bounce_queue_lifetime = 1s
"""
ALIASES = """
virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse, inline:{ {bounces@contoso.com = mary@contoso.com} }
"""
NDR = b"From: MAILER-DAEMON@example.com\r\nSubject: undelivered\r\n\r\nno such user\r\n"
ABROAD = "198.51.100.7"


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    def enforcing(text: str) -> str:
        return text.replace('mode = "monitor"', 'mode = "enforce"')

    return boot("relay-hub", before=HUB, after=ALIASES, configuration=enforcing)


def srs_address(stage: Stage, original: str, days_ago: int = 0) -> str:
    """Return the address that gatepost gave *original* so many days ago."""
    exchange = Exchange(read_keys(stage.state_directory / "srs.secret"), 8, 21)
    day = int(time.time()) // 86400 - days_ago
    return str(exchange.forward(Address.parse(original), "bounces", "contoso.com", day))


def bounced_to(stage: Stage, rcpt: str) -> Received:
    """Wait for the one bounce that leaves for *rcpt*."""
    mail = stage.internet.wait(lambda mail: mail.rcpt_to == [rcpt])
    assert mail.mail_from == ""
    return mail


def send_local(stage: Stage, sender: str, rcpt: str) -> None:
    stage.postfix.sendmail(["-f", sender, rcpt], b"From: x@contoso.com\nSubject: x\n\nhello\n")


# Three ways on which a bounce comes about


def test_next_hop_refuses_a_rewritten_message_and_postfix_bounce_reaches_the_original_sender(hub: Stage) -> None:
    hub.internet.refuse["gone@example.com"] = "550 5.1.1 No such user"
    send_local(hub, "bob1@fabrikam.com", "gone@example.com")
    assert b"550 5.1.1 No such user" in bounced_to(hub, "bob1@fabrikam.com").content


def test_rewritten_message_expires_in_the_queue_and_the_bounce_reaches_the_original_sender(hub: Stage) -> None:
    hub.internet.refuse["later@example.com"] = "450 4.2.1 Not now"
    send_local(hub, "bob2@fabrikam.com", "later@example.com")
    assert b"450 4.2.1 Not now" in bounced_to(hub, "bob2@fabrikam.com").content


def test_remote_ndr_reaches_the_original_sender(hub: Stage) -> None:
    assert hub.send("", srs_address(hub, "bob3@fabrikam.com"), NDR, client=ABROAD).accepted
    assert bounced_to(hub, "bob3@fabrikam.com").content.endswith(NDR[NDR.index(b"Subject") :])


def test_ndr_submitted_by_sendmail_reaches_the_original_sender(hub: Stage) -> None:
    send_local(hub, "<>", srs_address(hub, "bob4@fabrikam.com"))
    bounced_to(hub, "bob4@fabrikam.com")


def test_round_trip_by_smtp_brings_the_ndr_to_the_sender_of_the_message(hub: Stage) -> None:
    send_local(hub, "Bob.5@fabrikam.com", "trip@example.com")
    rewritten = hub.internet.wait(lambda mail: mail.rcpt_to == ["trip@example.com"]).mail_from
    assert hub.send("", rewritten, NDR, client=ABROAD).accepted
    bounced_to(hub, "Bob.5@fabrikam.com")


# Addresses that come back changed, forged, old


def test_lower_cased_srs_address_comes_back_s8(hub: Stage) -> None:
    assert hub.send("", srs_address(hub, "bob6@fabrikam.com").lower(), NDR, client=ABROAD).accepted
    bounced_to(hub, "bob6@fabrikam.com")


def test_forged_srs_address_is_refused_with_5_1_1(hub: Stage) -> None:
    forged = srs_address(hub, "bob@fabrikam.com").replace("=bob@", "=eve@")
    reply = hub.send("", forged, client=ABROAD).last
    assert str(reply) == f"550 5.1.1 <{forged}>: Recipient address rejected: SRS address with a wrong hash"


def test_forged_srs_address_is_refused_to_hosts_of_mynetworks_too(hub: Stage) -> None:
    forged = srs_address(hub, "bob@fabrikam.com").replace("=bob@", "=eve@")
    assert str(hub.send("", forged, client="192.0.2.5").last).startswith("550 5.1.1 ")


def test_expired_srs_address_is_refused_with_5_1_1(hub: Stage) -> None:
    expired = srs_address(hub, "bob@fabrikam.com", days_ago=22)
    reply = hub.send("", expired, client=ABROAD).last
    assert str(reply) == f"550 5.1.1 <{expired}>: Recipient address rejected: SRS address that has expired"


def test_srs_address_of_the_last_valid_day_comes_back(hub: Stage) -> None:
    assert hub.send("", srs_address(hub, "bob7@fabrikam.com", days_ago=20), NDR, client=ABROAD).accepted
    bounced_to(hub, "bob7@fabrikam.com")


def test_plain_extension_of_the_bounces_mailbox_is_no_srs_address(hub: Stage) -> None:
    assert hub.send("", "bounces+news@contoso.com", NDR, client=ABROAD).accepted
    # Postfix keeps the extension of an aliased recipient (propagate_unmatched_extensions).
    hub.inside.wait(lambda mail: mail.rcpt_to == ["mary+news@contoso.com"])


# What may be sent to an SRS address


def test_mail_with_a_sender_to_an_srs_address_is_refused_at_data(hub: Stage) -> None:
    transcript = hub.send("eve@example.com", srs_address(hub, "bob@fabrikam.com"), client=ABROAD)
    assert [reply.code for reply in transcript.rcpt] == [250]
    text = "550 5.7.1 <DATA>: Data command rejected: This address takes only bounces (null sender)"
    assert str(transcript.data) == text


def test_sender_callout_to_an_srs_address_succeeds(hub: Stage) -> None:
    with hub.session(client=ABROAD) as smtp:
        command(smtp, "MAIL FROM:<double-bounce@example.com>")
        assert command(smtp, f"RCPT TO:<{srs_address(hub, 'bob@fabrikam.com')}>").code == 250


def test_srs_recipient_beside_another_is_put_off_so_that_the_other_gets_the_mail(hub: Stage) -> None:
    srs = srs_address(hub, "bob@fabrikam.com")
    transcript = hub.send("eve@example.com", ["mary@contoso.com", srs], client=ABROAD)
    assert [reply.code for reply in transcript.rcpt] == [250, 452]
    assert transcript.accepted
    assert hub.inside.wait(lambda mail: mail.mail_from == "eve@example.com").rcpt_to == ["mary@contoso.com"]


def test_bounce_to_two_srs_addresses_reaches_both_original_senders(hub: Stage) -> None:
    both = [srs_address(hub, "bob8@fabrikam.com"), srs_address(hub, "bob9@fabrikam.com")]
    assert hub.send("", both, NDR, client=ABROAD).accepted
    mail = hub.internet.wait(lambda mail: "bob8@fabrikam.com" in mail.rcpt_to)
    assert (mail.mail_from, sorted(mail.rcpt_to)) == ("", ["bob8@fabrikam.com", "bob9@fabrikam.com"])


def test_messages_after_a_refused_one_go_through_on_the_same_connection(hub: Stage) -> None:
    with hub.session(client=ABROAD) as smtp:
        refused = transact(smtp, "eve@example.com", srs_address(hub, "bob@fabrikam.com"))
        accepted = transact(smtp, "", srs_address(hub, "bob10@fabrikam.com"), NDR)
    assert [refused.accepted, accepted.accepted] == [False, True]
    bounced_to(hub, "bob10@fabrikam.com")


# Metrics


def test_metrics_count_reversals_by_result(hub: Stage) -> None:
    def counts() -> list[float]:
        return [hub.metric("gatepost_srs_reversals_total", result=result) for result in ("forged", "expired")]

    before = counts()
    hub.send("", srs_address(hub, "bob@fabrikam.com").replace("=bob@", "=eve@"), client=ABROAD)
    hub.send("", srs_address(hub, "bob@fabrikam.com", days_ago=22), client=ABROAD)
    assert [after - count for after, count in zip(counts(), before)] == [1, 1]
    assert hub.metric("gatepost_srs_reversals_total", result="original") > 0
