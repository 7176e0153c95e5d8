# SPDX-License-Identifier: GPL-3.0-or-later
"""Mail that aliases and .forward files send on to other sites leaves with a P1 of the forwarding mailbox (S1 to S3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

JOHN_REWRITTEN = ("john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.home@example.com")
CERTIFICATE_CONNECTOR = """
[[organization.connector]]
name = "partner"
tls_sender_certificate_name = "mail.contoso.com"

[relay]"""


@pytest.fixture(scope="module")
def booted(boot_forwarder: Boot) -> Iterator[Forwarder]:
    before = "relay_domains = corp.contoso.com\nrelay_transport = relay:[exchange.contoso.com]:25\n"
    before += "recipient_delimiter = +\n"
    domain = '\n[[organization.accepted_domain]]\ndomain = "corp.contoso.com"\n'
    with boot_forwarder(
        before=before,
        configuration=lambda text: text.replace("default = true\n", f"default = true\n{domain}", 1).replace(
            "[relay]", CERTIFICATE_CONNECTOR, 1
        ),
        tls=True,
    ) as forwarder:
        yield forwarder


@pytest.fixture
def forwarder(booted: Forwarder) -> Iterator[Forwarder]:
    yield booted
    booted.forget()


@pytest.mark.parametrize(
    ("rcpt", "p1", "outside"),
    [
        ("john.work", *JOHN_REWRITTEN),
        ("john.alias", "john.alias+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.alias.home@example.com"),
        ("games", "games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com"),
        ("games+news", "games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com"),
    ],
    ids=["virtual alias", "alias", ".forward file", "mailbox+tag"],
)
def test_forwarded_mail_leaves_with_the_forwarding_mailbox_in_p1(
    forwarder: Forwarder, rcpt: str, p1: str, outside: str
) -> None:
    forwarder.bob_writes(f"{rcpt}@contoso.com")
    assert forwarder.left() == [(p1, outside)]


def test_header_from_of_forwarded_mail_is_untouched(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com")
    assert b"\r\nFrom: Bob <bob@fabrikam.com>\r\n" in forwarder.only_mail().content


def test_mailbox_with_a_name_in_utf8_is_named_as_it_is(forwarder: Forwarder) -> None:
    forwarder.bob_writes("jörg@contoso.com", mail_options="SMTPUTF8")
    assert forwarder.left() == [("jörg+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "joerg.home@example.com")]


def test_each_forwarded_recipient_of_one_message_leaves_in_the_name_of_its_own_mailbox(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com", "carla@contoso.com", "games@contoso.com")
    assert forwarder.left() == [
        ("carla+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "carla.home@example.net"),
        ("games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com"),
        JOHN_REWRITTEN,
    ]


def test_inside_recipient_beside_a_forwarded_one_keeps_the_original_p1(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
    assert forwarder.left() == [JOHN_REWRITTEN]
    assert forwarder.inside("list") == ["bob@fabrikam.com"]


def test_alias_to_a_mailbox_and_an_outside_address_keeps_p1_for_the_mailbox_only(forwarder: Forwarder) -> None:
    forwarder.bob_writes("desk@contoso.com")
    assert forwarder.left() == [("desk+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "desk.home@example.com")]
    assert forwarder.inside("list") == ["bob@fabrikam.com"]


def test_alias_to_two_outside_addresses_is_rewritten_for_both(forwarder: Forwarder) -> None:
    forwarder.bob_writes("sales@contoso.com")
    assert forwarder.left() == [
        ("sales+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "one@example.com"),
        ("sales+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "two@example.net"),
    ]


def test_mail_to_a_relay_domain_keeps_p1_and_takes_no_hop(forwarder: Forwarder) -> None:
    start = len(forwarder.stage.postfix.log())
    forwarder.bob_writes("ann@corp.contoso.com")
    assert forwarder.left() == []
    (mail,) = forwarder.stage.inside.messages
    assert (mail.mail_from, mail.rcpt_to) == ("bob@fabrikam.com", ["ann@corp.contoso.com"])
    assert "gatepost-egress" not in forwarder.stage.postfix.log()[start:]
    forwarder.stage.inside.messages.clear()


@pytest.mark.parametrize("sender", ["ann@contoso.com", ""], ids=["own sender", "null sender"])
def test_p1_that_needs_no_rewriting_is_forwarded_straight_out(forwarder: Forwarder, sender: str) -> None:
    start = len(forwarder.stage.postfix.log())
    forwarder.bob_writes("john.work@contoso.com", sender=sender)
    assert forwarder.left() == [(sender, "john.home@example.com")]
    assert "gatepost-egress" not in forwarder.stage.postfix.log()[start:]


def test_relayed_mail_to_outside_only_is_rewritten_at_ingress(forwarder: Forwarder) -> None:
    certificate = forwarder.stage.authority.issue("mail.contoso.com")
    start = len(forwarder.stage.postfix.log())
    forwarder.stage.send("bob@fabrikam.com", ["x@example.com", "y@example.net"], certificate=certificate)
    bounces = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
    assert forwarder.left() == [(bounces, "x@example.com"), (bounces, "y@example.net")]
    assert "gatepost-egress" not in forwarder.stage.postfix.log()[start:]


def test_relayed_mail_to_inside_and_outside_is_left_to_the_egress(forwarder: Forwarder) -> None:
    certificate = forwarder.stage.authority.issue("mail.contoso.com")
    rcpt = ["x@example.com", "list@contoso.com", "john.work@contoso.com"]
    forwarder.stage.send("bob@fabrikam.com", rcpt, certificate=certificate)
    assert forwarder.left() == [("bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "x@example.com"), JOHN_REWRITTEN]
    assert forwarder.inside("list") == ["bob@fabrikam.com"]


def test_outside_recipient_is_refused_to_a_client_that_no_connector_covers(forwarder: Forwarder) -> None:
    transcript = forwarder.attempt("x@example.com", "john.work@contoso.com")
    assert [reply.code for reply in transcript.rcpt] == [454, 250]  # Postfix refuses before it asks the milter
    assert forwarder.left() == [JOHN_REWRITTEN]


def test_mail_of_sendmail_command_is_forwarded_in_the_mailbox_name(forwarder: Forwarder) -> None:
    forwarder.stage.postfix.sendmail(["-f", "bob@fabrikam.com", "games@contoso.com"], b"Subject: hello\n\nhello\n")
    assert forwarder.left() == [("games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com")]


@pytest.mark.parametrize(
    "forged",
    [
        "ORCPT=rfc822;ceo@contoso.com",
        "orcpt=RFC822;ceo@contoso.com",
        "NOTIFY=FAILURE ORCPT=rfc822;ceo@contoso.com",
        "ORCPT=rfc822;ceo@contoso.com NOTIFY=FAILURE",
        "\tORCPT=rfc822;ceo@contoso.com",
        "ORCPT=utf-8;ceo@contoso.com",
    ],
)
def test_orcpt_of_a_client_names_nobody(forwarder: Forwarder, forged: str) -> None:
    forwarder.bob_writes("john.work@contoso.com", rcpt_options=forged)
    assert forwarder.left() == [JOHN_REWRITTEN]


def test_two_orcpt_of_a_client_are_refused(forwarder: Forwarder) -> None:
    twice = "ORCPT=rfc822;ceo@contoso.com ORCPT=rfc822;bob@fabrikam.com"
    transcript = forwarder.attempt("john.work@contoso.com", rcpt_options=twice)
    assert [reply.code for reply in transcript.rcpt] == [501]


@pytest.mark.parametrize(
    "command",
    [
        b'RCPT TO:<john.work@contoso.com> "ORCPT=rfc822;ceo@contoso.com"',
        rb"RCPT TO:<john.work@contoso.com> \ORCPT=rfc822;ceo@contoso.com",
        b"RCPT TO:<john.work@contoso.com>ORCPT=rfc822;ceo@contoso.com",
        b"RCPT TO:<john.work@contoso.com> <>ORCPT=rfc822;ceo@contoso.com",
        b"RCPT  TO: john.work@contoso.com  ORCPT=rfc822;ceo@contoso.com",
        b"RCPT TO:john.work@contoso.com\tORCPT=rfc822;ceo@contoso.com\t",
        b" RCPT TO:<john.work@contoso.com> ORCPT=rfc822;ceo@contoso.com",
        b"RCPT\x0bTO:<john.work@contoso.com>\x0bORCPT=rfc822;ceo@contoso.com",
        b"RCPT TO:<john.work@contoso.com> \x00ORCPT=rfc822;ceo@contoso.com",
        b"RCPT TO:<john.work@contoso.com> \xe4 ORCPT=rfc822;ceo@contoso.com",
    ],
)
def test_orcpt_that_is_hidden_from_the_filter_does_not_get_in(forwarder: Forwarder, command: bytes) -> None:
    with forwarder.stage.session(client="198.51.100.7") as smtp:
        smtp.docmd("MAIL FROM:<bob@fabrikam.com>")
        smtp.send(command + b"\r\n")
        if smtp.getreply()[0] == 250:
            smtp.data(b"Subject: x\r\n\r\nx\r\n")
    assert all(mail == JOHN_REWRITTEN for mail in forwarder.left())


def test_notify_of_a_client_reaches_the_next_hop(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com", rcpt_options="NOTIFY=NEVER ORCPT=rfc822;ceo@contoso.com")
    (options,) = forwarder.only_mail().rcpt_options
    assert sorted(options) == ["NOTIFY=NEVER", "ORCPT=rfc822;john.work@contoso.com"]


def test_mail_put_straight_into_the_egress_port_is_rewritten_with_bounces_only(forwarder: Forwarder) -> None:
    port = int(forwarder.stage.ports["10027"])
    with forwarder.stage.session(client="", port=port) as smtp:
        smtp.sendmail(
            "bob@fabrikam.com",
            ["john.home@example.com"],
            b"Subject: x\r\n\r\nx\r\n",
            rcpt_options=["ORCPT=rfc822;ceo@contoso.com"],
        )
    bounces = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
    assert forwarder.left() == [(bounces, "john.home@example.com")]


def test_egress_port_takes_one_recipient_a_message(forwarder: Forwarder) -> None:
    with forwarder.stage.session(client="", port=int(forwarder.stage.ports["10027"])) as smtp:
        smtp.docmd("MAIL FROM:<bob@fabrikam.com>")
        assert smtp.docmd("RCPT TO:<one@example.com>")[0] == 250
        assert smtp.docmd("RCPT TO:<two@example.com>")[0] == 452


def test_log_line_of_the_hop_names_both_senders_and_the_reference_of_ingress(forwarder: Forwarder) -> None:
    start = len(forwarder.stage.log())
    queue_id = forwarder.bob_writes("john.work@contoso.com")
    forwarder.left()
    came, left = forwarder.stage.log()[start:].splitlines()
    assert f"{queue_id}: action=pass, from=<bob@fabrikam.com>" in came
    assert "action=rewrite, from=<bob@fabrikam.com>, rewritten=<john.work+SRS=" in left
    assert came.rpartition("reference=")[2] == left.rpartition("reference=")[2]


def test_rewrites_are_counted_by_form(forwarder: Forwarder) -> None:
    before = forwarder.stage.metric("gatepost_srs_rewrites_total", form="forward")
    forwarder.bob_writes("john.work@contoso.com", "carla@contoso.com")
    assert len(forwarder.left()) == 2
    assert forwarder.stage.metric("gatepost_srs_rewrites_total", form="forward") == before + 2
