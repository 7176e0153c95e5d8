# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay hub without the map: the milter gives bounces back, by adding and deleting recipients (S9)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

import pytest

from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage, Transcript, command
from gatepost.service.secret import read_keys
from gatepost.srs import Address, Exchange

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
relay_recipient_maps = inline:{ {mary@contoso.com = x} }
recipient_delimiter = +
local_header_rewrite_clients =
"""
NO_MAP = """
virtual_alias_maps = inline:{ {bounces@contoso.com = postmaster@contoso.com} }
smtpd_recipient_restrictions =
smtpd_data_restrictions =
"""
NDR = b"From: MAILER-DAEMON@example.com\r\nSubject: undelivered\r\n\r\nno such user\r\n"
LIMIT = 5
ABROAD = "198.51.100.7"


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    def by_milter(text: str) -> str:
        return (
            text.replace('mode = "monitor"', 'mode = "enforce"')
            + '\n[srs]\nreverse = "milter"\n'
            + f"failures_per_hour = {LIMIT}\n"
        )

    return boot("relay-hub", before=HUB, after=NO_MAP, configuration=by_milter)


def srs_address(stage: Stage, original: str, days_ago: int = 0) -> str:
    """Return the address that gatepost gave *original* so many days ago."""
    exchange = Exchange(read_keys(stage.state_directory / "srs.secret"))
    return str(
        exchange.forward(Address.parse(original), "bounces", "contoso.com", int(time.time()) // 86400 - days_ago)
    )


def copies(stage: Stage, subject: bytes) -> list[tuple[str, str]]:
    """Return sender and recipient of each copy of a message that has left, once the queue is empty."""
    stage.postfix.wait_until_idle()
    found: list[Received] = [*stage.internet.messages, *stage.inside.messages]
    return sorted((mail.mail_from, rcpt) for mail in found if subject in mail.content for rcpt in mail.rcpt_to)


def bounce(stage: Stage, subject: bytes, *rcpts: str, sender: str = "", client: str = ABROAD) -> Transcript:
    return stage.send(sender, rcpts, NDR.replace(b"undelivered", subject), client=client)


def forged(stage: Stage) -> str:
    return srs_address(stage, "bob@fabrikam.com").replace("=bob@", "=eve@")


@contextmanager
def parameter(stage: Stage, setting: str) -> Iterator[None]:
    """Have a line of main.cf for a while, as in `name=value`."""
    stage.postfix.postconf("-e", setting)
    stage.postfix.reload()
    try:
        yield
        stage.postfix.wait_until_idle()  # a reload with mail on its way can leave it there for long
    finally:
        stage.postfix.postconf("-X", setting.partition("=")[0])
        stage.postfix.reload()


# Who gets a copy


def test_bounce_to_two_srs_recipients_and_an_inside_one_brings_each_one_copy_and_nobody_else_any(hub: Stage) -> None:
    srs = [srs_address(hub, original) for original in ("Bob@fabrikam.com", "eve@example.com")]
    assert bounce(hub, b"first", srs[0], "mary@contoso.com", srs[1]).accepted
    assert copies(hub, b"first") == [("", "Bob@fabrikam.com"), ("", "eve@example.com"), ("", "mary@contoso.com")]


def test_original_of_two_srs_recipients_gets_one_copy(hub: Stage) -> None:
    today, yesterday = (srs_address(hub, "bob@fabrikam.com", days_ago=ago) for ago in (0, 1))
    assert bounce(hub, b"second", today, yesterday, today).accepted
    assert copies(hub, b"second") == [("", "bob@fabrikam.com")]


@pytest.mark.parametrize(("classes", "rcpt"), [("", "postmaster@contoso.com"), ("bounce", "bob@fabrikam.com")])
def test_bounce_made_by_this_postfix_reaches_the_original_sender_where_it_passes_the_milter(
    hub: Stage, classes: str, rcpt: str
) -> None:
    subject = f"own {classes}.".encode()
    hub.internet.refuse["gone@example.com"] = "550 5.1.1 No such user"
    with parameter(hub, f"internal_mail_filter_classes={classes}"):
        hub.postfix.sendmail(["-f", "bob@fabrikam.com", "gone@example.com"], b"Subject: " + subject + b"\n\nhello\n")
        # An extension stays on an aliased recipient (propagate_unmatched_extensions).
        assert [(sender, re.sub(r"\+[^@]*", "", to)) for sender, to in copies(hub, subject)] == [("", rcpt)]


@pytest.mark.parametrize(
    ("subject", "change"),
    [
        (b"lower-cased", str.lower),
        (b"quoted", lambda address: '"' + address.replace("@", '"@')),
        (b"percent-encoded", lambda address: address.replace("+", "%2B").replace("=", "%3D")),
        (b"escaped", lambda address: '"' + address.replace("SRS", r"\S\RS").replace("@", '"@')),
        (b"final dot", lambda address: address + "."),
        (b"source route", lambda address: "@relay.example:" + address),
        (b"domain in capitals", lambda address: address.replace("contoso.com", "CONTOSO.COM")),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_srs_recipient_that_the_bouncing_mta_has_rewritten_is_replaced(
    hub: Stage, subject: bytes, change: Callable[[str], str]
) -> None:
    assert bounce(hub, subject, change(srs_address(hub, "Bob@fabrikam.com"))).accepted
    case_survives = subject not in (b"lower-cased", b"escaped")
    assert copies(hub, subject) == [("", "Bob@fabrikam.com" if case_survives else "bob@fabrikam.com")]


def test_bounce_by_sendmail_command_reaches_the_original_sender(hub: Stage) -> None:
    hub.postfix.sendmail(["-f", "<>", srs_address(hub, "bob@fabrikam.com")], b"Subject: by sendmail\n\nhello\n")
    assert hub.internet.wait(lambda mail: b"by sendmail" in mail.content).rcpt_to == ["bob@fabrikam.com"]


def test_blind_copies_to_always_bcc_are_kept_and_orcpt_names_the_original_sender(hub: Stage) -> None:
    with parameter(hub, "always_bcc=mary@contoso.com"):
        bob = srs_address(hub, "bob@fabrikam.com")
        options = "NOTIFY=FAILURE ORCPT=rfc822;somebody@example.net"
        message = NDR.replace(b"undelivered", b"archived")
        assert hub.send("", bob, message, client=ABROAD, rcpt_options=options).accepted
    assert copies(hub, b"archived") == [("", "bob@fabrikam.com"), ("", "mary@contoso.com")]
    mail = hub.internet.wait(lambda mail: b"archived" in mail.content)
    assert mail.rcpt_options == [["ORCPT=rfc822;bob@fabrikam.com"]]


def test_message_is_untouched_but_for_the_received_line(hub: Stage) -> None:
    message = b"From: Bob\r\nSubject: octets\r\nX: " + b"a" * 900 + b"\r\n\r\n\xe9\xff.\r\n..dots\r\n"
    assert hub.send("", srs_address(hub, "bob@fabrikam.com"), message, client=ABROAD, mail_options="BODY=8BITMIME")
    content = hub.internet.wait(lambda mail: b"octets" in mail.content).content
    assert content.startswith(b"Received: ")
    assert content.endswith(b"\r\n" + message)


# Who gets none


def test_mail_with_a_sender_is_refused_at_data(hub: Stage) -> None:
    transcript = bounce(hub, b"vacation", srs_address(hub, "bob@fabrikam.com"), sender="eve@example.com")
    assert [reply.code for reply in transcript.rcpt] == [250]
    assert str(transcript.data) == "550 5.7.1 This address takes only bounces (null sender)"


@pytest.mark.parametrize("first", [True, False], ids=["SRS behind it", "SRS before it"])
def test_mail_with_a_sender_to_an_srs_recipient_and_another_is_taken_apart(hub: Stage, first: bool) -> None:
    srs, subject = srs_address(hub, "bob@fabrikam.com"), b"apart %d" % first
    rcpts = ["mary@contoso.com", srs] if first else [srs, "mary@contoso.com"]
    transcript = bounce(hub, subject, *rcpts, sender="eve@example.com")
    assert [str(reply)[:9] for reply in transcript.rcpt] == ["250 2.1.5", "452 4.5.3"]
    assert transcript.accepted is first
    assert copies(hub, subject) == ([("eve@example.com", "mary@contoso.com")] if first else [])


def test_sender_callout_to_an_srs_recipient_succeeds(hub: Stage) -> None:
    with hub.session(client=ABROAD) as smtp:
        command(smtp, "MAIL FROM:<double-bounce@example.com>")
        assert command(smtp, f"RCPT TO:<{srs_address(hub, 'bob@fabrikam.com')}>").code == 250


def test_forged_and_expired_srs_recipients_are_refused_and_the_right_one_is_replaced(hub: Stage) -> None:
    right, expired = (srs_address(hub, "bob@fabrikam.com", days_ago=ago) for ago in (0, 22))
    transcript = bounce(hub, b"forged", forged(hub), expired, right)
    assert [str(reply) for reply in transcript.rcpt] == [
        "550 5.1.1 SRS address with a wrong hash",
        "550 5.1.1 SRS address that has expired",
        "250 2.1.5 Ok",
    ]
    assert copies(hub, b"forged") == [("", "bob@fabrikam.com")]


def test_client_that_guesses_is_put_off_and_others_are_not(hub: Stage) -> None:
    guesses = [bounce(hub, b"guess", forged(hub), client="198.51.100.66").last for _ in range(LIMIT + 1)]
    assert [reply.code for reply in guesses] == [550] * LIMIT + [450]
    right = srs_address(hub, "bob@fabrikam.com")
    reply = bounce(hub, b"guess", right, client="198.51.100.66").last
    assert str(reply).startswith("450 4.7.1 Too many SRS addresses with a wrong hash")
    assert bounce(hub, b"guess", right, client="198.51.100.67").accepted
