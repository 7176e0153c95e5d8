# SPDX-License-Identifier: GPL-3.0-or-later
"""Sendmail's milter: the relay rule at RCPT, by address and by certificate; relayed mail gets its SRS sender."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from ledgerrows import rows
from sendmaildaemon import ABROAD, MESSAGE, OURS, PARTNER, Sendmail, shape

from gatepost.admin.stage import transact

if TYPE_CHECKING:
    from .conftest import Boot

RELAYED = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
MIXED = "452 4.5.3 Inside and outside recipients need a message each, please try again"


@pytest.fixture(scope="module")
def booted(boot_sendmail: Boot) -> Iterator[Sendmail]:
    with boot_sendmail() as sendmail:
        yield sendmail


@pytest.fixture
def sendmail(booted: Sendmail) -> Iterator[Sendmail]:
    yield booted
    booted.forget()


# The rule


def test_foreign_p1_of_an_own_host_is_refused_at_rcpt_and_the_reference_explains_it(sendmail: Sendmail) -> None:
    transcript = sendmail.send("bob@fabrikam.com", "x@example.com")
    found = re.fullmatch(
        r"550 5\.7\.64 <x@example\.com>\.\.\. TenantAttribution; Relay Access Denied \[(\w{10})\]", str(transcript.last)
    )
    assert found, transcript
    told = sendmail.ask("explain", found[1])
    assert f"was refused with 550 5.7.64 TenantAttribution; Relay Access Denied [{found[1]}]" in " ".join(
        told.stdout.split()
    )
    assert sendmail.left() == []


def test_own_p1_of_an_own_host_leaves_as_it_is(sendmail: Sendmail) -> None:
    assert sendmail.send("ann@contoso.com", ["x@example.com", "mary@corp.contoso.com"]).accepted
    assert sendmail.left() == [("ann@contoso.com", "x@example.com")]
    assert sendmail.at_inside() == [("ann@contoso.com", "mary@corp.contoso.com")]


def test_what_sendmail_1_hands_on_from_this_host_leaves(sendmail: Sendmail) -> None:
    assert sendmail.send("root@mail.contoso.com", "x@example.com", client="127.0.0.1").accepted
    assert sendmail.left() == [("root@mail.contoso.com", "x@example.com")]


def test_null_sender_of_an_own_host_is_refused_to_outside_r5(sendmail: Sendmail) -> None:
    assert sendmail.send("", "x@example.com").last.code == 550


@pytest.mark.parametrize(
    "rcpt", ["postmaster", "games@contoso.com", "postmaster@mail.contoso.com", '"games"@contoso.com']
)
def test_anybody_may_write_to_inside_with_or_without_a_domain(sendmail: Sendmail, rcpt: str) -> None:
    assert sendmail.send("bob@fabrikam.com", rcpt, client=ABROAD).accepted


def test_sendmail_itself_still_refuses_strangers(sendmail: Sendmail) -> None:
    assert "Relaying denied" in str(sendmail.send("bob@fabrikam.com", "x@example.com", client=ABROAD).last)


# Certificates, chgfrom


def test_host_with_a_certificate_of_the_connector_relays_with_an_srs_sender_r8(sendmail: Sendmail) -> None:
    crm = sendmail.authority.issue("crm.contoso.com")
    transcript = sendmail.send("bob@fabrikam.com", ["x@example.com", "y@example.net"], client=PARTNER, certificate=crm)
    assert transcript.accepted, transcript
    assert sendmail.left() == [(RELAYED, "x@example.com"), (RELAYED, "y@example.net")]
    queue_id = transcript.end and transcript.end.text.split()[1]
    sendmail.gatepost.wait_for_log(rf": {queue_id}: action=rewrite, from=<bob@fabrikam.com>, .*organization=contoso")


def test_headers_and_body_of_what_is_relayed_stay_as_they_are_s6(sendmail: Sendmail) -> None:
    crm = sendmail.authority.issue("crm.contoso.com")
    assert sendmail.send("bob@fabrikam.com", "x@example.com", client=PARTNER, certificate=crm).accepted
    (mail,) = sendmail.internet.messages
    received, rest = re.fullmatch(rb"(?s)(Received: .*?\r\n)(?![ \t])(.*)", mail.content).groups()  # type: ignore[union-attr]
    assert rest == MESSAGE
    assert b"\r\nReceived:" not in received


def test_certificate_that_sendmail_lets_relay_and_no_connector_names_is_refused(sendmail: Sendmail) -> None:
    other = sendmail.authority.issue("other.contoso.com")
    assert "Relay Access Denied [" in str(
        sendmail.send("bob@fabrikam.com", "x@example.com", client=PARTNER, certificate=other).last
    )


def test_what_is_rewritten_by_the_milter_is_not_rewritten_again_on_its_way_out(sendmail: Sendmail) -> None:
    crm = sendmail.authority.issue("crm.contoso.com")
    assert sendmail.send("bob@fabrikam.com", "x@example.com", client=PARTNER, certificate=crm).accepted
    (mail,) = sendmail.internet.messages
    assert mail.mail_from.count("SRS") == 1
    assert sendmail.ask("srs", "reverse", mail.mail_from).stdout.strip() == "bob@fabrikam.com"


@pytest.mark.parametrize("first", ["x@example.com", "mary@corp.contoso.com"])
def test_of_inside_and_outside_recipients_the_second_kind_is_told_to_come_apart(sendmail: Sendmail, first: str) -> None:
    crm = sendmail.authority.issue("crm.contoso.com")
    rcpts = sorted(["x@example.com", "mary@corp.contoso.com"], key=first.__ne__)
    transcript = sendmail.send("bob@fabrikam.com", rcpts, client=PARTNER, certificate=crm)
    assert transcript.accepted
    assert str(transcript.rcpt[1]) == MIXED


def test_messages_of_one_session_are_judged_each_on_its_own(sendmail: Sendmail) -> None:
    with sendmail.session() as smtp:
        assert transact(smtp, "bob@fabrikam.com", "x@example.com").last.code == 550
        assert smtp.docmd("XYZZY")[0] == 500
        assert transact(smtp, "ann@contoso.com", "x@example.com").accepted
        assert smtp.docmd("MAIL", "FROM:<ann@contoso.com>")[0] == 250
        assert smtp.docmd("RSET")[0] == 250
        assert transact(smtp, "bob@fabrikam.com", "mary@corp.contoso.com").accepted
        assert transact(smtp, "bob@fabrikam.com", "y@example.com").last.code == 550
    sendmail.wait_until_idle()
    assert sendmail.left() == [("ann@contoso.com", "x@example.com")]
    assert sendmail.at_inside() == [("bob@fabrikam.com", "mary@corp.contoso.com")]


# What is written down


def test_each_recipient_is_one_row_of_the_ledger_and_explained_by_sendmails_queue_id(sendmail: Sendmail) -> None:
    crm = sendmail.authority.issue("crm.contoso.com")
    transcript = sendmail.send("bob@fabrikam.com", ["x@example.com", "y@example.net"], client=PARTNER, certificate=crm)
    queue_id = transcript.end.text.split()[1] if transcript.end else ""
    told = sendmail.ask("explain", queue_id)  # waits for the ledger
    assert re.search(rf"(?m)^Queue ID +{queue_id}$", told.stdout), told
    assert "x@example.com" in told.stdout
    found = [row for row in rows(sendmail.gatepost.state) if row["queue_id"] == queue_id]
    assert [(row["recipient"], row["action"], shape(row["rewritten"]).lower()) for row in found] == [
        ("x@example.com", "rewrite", found[0]["rewritten"]),
        ("y@example.net", "rewrite", found[0]["rewritten"]),
    ]
    assert {row["client"] for row in found} == {PARTNER}
    assert {row["message_id"] for row in found} == {"<1@fabrikam.com>"}


def test_check_says_beforehand_what_sendmail_then_answers(sendmail: Sendmail) -> None:
    question = ("check", "--ip", OURS, "--mail-from", "bob@fabrikam.com", "--rcpt", "x@example.com")
    told = " ".join(sendmail.ask(*question).stdout.split())
    assert "The recipient is refused with 550 5.7.64 TenantAttribution; Relay Access Denied." in told
