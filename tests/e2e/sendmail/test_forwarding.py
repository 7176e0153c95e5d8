# SPDX-License-Identifier: GPL-3.0-or-later
"""Sendmail's aliases and .forward files that lead outside: only what leaves is rewritten, by the map, as it leaves."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from daemonprocess import poll
from sendmaildaemon import ABROAD, MESSAGE, OURS, PARTNER, Sendmail, shape

from gatepost.admin.stage import transact

if TYPE_CHECKING:
    from .conftest import Boot

REWRITTEN = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"


@pytest.fixture(scope="module")
def booted(boot_sendmail: Boot) -> Iterator[Sendmail]:
    with boot_sendmail() as sendmail:
        yield sendmail


@pytest.fixture
def sendmail(booted: Sendmail) -> Iterator[Sendmail]:
    yield booted
    booted.forget()


def bob_writes(sendmail: Sendmail, *rcpts: str, sender: str = "bob@fabrikam.com") -> str:
    """Send a message from Bob's server, an outside one; return its queue ID."""
    transcript = sendmail.send(sender, rcpts, client=ABROAD)
    assert transcript.accepted, transcript
    assert all(reply.code == 250 for reply in transcript.rcpt), transcript
    return transcript.end.text.split()[1] if transcript.end else ""


@pytest.mark.parametrize(
    ("rcpt", "homes"),
    [
        ("team@contoso.com", ["one@example.com", "two@example.net"]),
        ("games@contoso.com", ["games.home@example.com"]),
        ("john.work@contoso.com", ["john.home@example.com"]),
    ],
    ids=["alias", ".forward", "virtusertable"],
)
def test_forwarded_copy_leaves_with_an_srs_sender(sendmail: Sendmail, rcpt: str, homes: list[str]) -> None:
    bob_writes(sendmail, rcpt)
    assert sendmail.left() == [(REWRITTEN, home) for home in homes]


def test_copies_that_stay_keep_the_sender_of_the_same_message(sendmail: Sendmail) -> None:
    bob_writes(sendmail, "desk@contoso.com", "postmaster@contoso.com", "corp@contoso.com", "mary@corp.contoso.com")
    assert sendmail.mailbox("list") == ["bob@fabrikam.com"]
    assert sendmail.mailbox("root") == ["bob@fabrikam.com"]
    assert sendmail.at_inside() == [("bob@fabrikam.com", "mary@corp.contoso.com")]
    assert sendmail.left() == [(REWRITTEN, "desk@example.com"), (REWRITTEN, "far@example.org")]


@pytest.mark.parametrize("sender", ["ann@contoso.com", ""])
def test_own_and_null_senders_leave_as_they_are(sendmail: Sendmail, sender: str) -> None:
    assert sendmail.send(sender, "team@contoso.com", client=OURS).accepted
    assert sendmail.left() == [(sender, "one@example.com"), (sender, "two@example.net")]


@pytest.mark.parametrize(
    ("sender", "rewritten"),
    [
        ("Bob.Smith@Fabrikam.com", "bounces+SRS=HASH=TT=Fabrikam.com=Bob.Smith@contoso.com"),
        ('"john doe"@fabrikam.com', '"bounces+SRS=HASH=TT=fabrikam.com=john doe"@contoso.com'),
        ("a=b+c@fabrikam.com", "bounces+SRS=HASH=TT=fabrikam.com=a=b+c@contoso.com"),
        (
            "SRS0=Ab1d=JK=x.example=y@fabrikam.com",
            "bounces+SRS=HASH=TT=fabrikam.com=SRS0=Ab1d=JK=x.example=y@contoso.com",
        ),
    ],
    ids=["capitals", "quotes", "plus and equals sign", "another host's SRS address"],
)
def test_odd_senders_are_rewritten_and_come_back(sendmail: Sendmail, sender: str, rewritten: str) -> None:
    bob_writes(sendmail, "john.work@contoso.com", sender=sender)
    (mail,) = sendmail.internet.messages
    assert shape(mail.mail_from) == rewritten
    sendmail.forget()
    assert sendmail.send("", mail.mail_from, client=ABROAD).accepted
    assert sendmail.left() == [("", sender)]


def test_sender_that_is_too_long_gets_a_compact_address_and_comes_back(sendmail: Sendmail) -> None:
    sender = f"{'b' * 60}@fabrikam.com"
    bob_writes(sendmail, "john.work@contoso.com", sender=sender)
    (mail,) = sendmail.internet.messages
    assert re.fullmatch(r"bounces\+SRS=[a-z2-7]{16}=[A-Z2-7]{2}@contoso\.com", mail.mail_from)
    sendmail.forget()
    assert sendmail.send("", mail.mail_from, client=ABROAD).accepted
    assert sendmail.left() == [("", sender)]


@pytest.mark.parametrize("sender", ['""@fabrikam.com', "b\udce4b@fabrikam.com"], ids=["empty", "8-bit"])
def test_sender_that_cannot_be_rewritten_is_refused_or_gets_its_mail_back(sendmail: Sendmail, sender: str) -> None:
    transcript = sendmail.send(sender, "john.work@contoso.com", client=ABROAD)
    assert str(transcript.rcpt[0]).startswith("553 5.1.7")
    bob_writes(sendmail, "desk@contoso.com", sender=sender)
    assert sendmail.left() == [("", sender)]
    assert b"Status: 5.1.7" in sendmail.internet.messages[0].content
    sendmail.gatepost.wait_for_log(r"map forward: <.*@fabrikam.com> cannot be rewritten with SRS")


def test_sender_that_cannot_be_rewritten_in_form_long_is_refused(boot_sendmail: Boot) -> None:
    with boot_sendmail(configuration=lambda text: text.replace("[srs]\n", '[srs]\nform = "long"\n')) as sendmail:
        long = f"{'b' * 64}@{'c' * 60}.{'d' * 60}.{'e' * 40}.example"
        assert str(sendmail.send(long, "john.work@contoso.com", client=ABROAD).rcpt[0]).startswith("553 5.1.7")


def test_address_that_was_made_here_is_not_rewritten_again(sendmail: Sendmail) -> None:
    bob_writes(sendmail, "john.work@contoso.com")
    (mail,) = sendmail.internet.messages
    sendmail.forget()
    bob_writes(sendmail, "john.work@contoso.com", sender=mail.mail_from)
    assert [(mail.mail_from, "john.home@example.com")] == [
        (item.mail_from, *item.rcpt_to) for item in sendmail.internet.messages
    ]


def test_headers_and_body_of_a_forwarded_copy_stay_as_they_are_s6(sendmail: Sendmail) -> None:
    bob_writes(sendmail, "john.work@contoso.com")
    (mail,) = sendmail.internet.messages
    assert mail.content.endswith(MESSAGE)


def test_bypass_leaves_forwarded_mail_alone(sendmail: Sendmail) -> None:
    assert sendmail.ask("bypass", "on").returncode == 0
    try:
        bob_writes(sendmail, "john.work@contoso.com")
    finally:
        assert sendmail.ask("bypass", "off").returncode == 0
    assert sendmail.left() == [("bob@fabrikam.com", "john.home@example.com")]


# gatepost is away


def test_without_the_map_nothing_leaves_unrewritten_and_inside_copies_are_delivered(sendmail: Sendmail) -> None:
    with sendmail.without("policyd.sock"):
        bob_writes(sendmail, "desk@contoso.com", "corp@contoso.com")
        assert sendmail.left() == []
        assert sendmail.mailbox("list") == ["bob@fabrikam.com"]
        assert sendmail.at_inside() == [("bob@fabrikam.com", "mary@corp.contoso.com")]
        assert len(sendmail.queued()) == 1
        sendmail.flush()
        assert sendmail.left() == []
    sendmail.flush()
    assert sendmail.left() == [(REWRITTEN, "desk@example.com"), (REWRITTEN, "far@example.org")]
    assert sendmail.queued() == []
    assert sendmail.mailbox("list") == ["bob@fabrikam.com"]


BROKEN = {
    "unknown member": "nosuchuser, far@example.org",
    "unknown member last": "far@example.org, nosuchuser",
    "pipe": '"|exit 69", far@example.org',
    "file": "/nowhere/file, far@example.org",
    "refused elsewhere": "gone@corp.contoso.com, far@example.org",
}
"""Aliases of which one member fails for good."""


@pytest.fixture(scope="module")
def booted_broken(boot_sendmail: Boot) -> Iterator[Sendmail]:
    """A Sendmail with such aliases, a list with an owner, and a smart host to fall back to."""
    aliases = "".join(f"broken{number}: {members}\n" for number, members in enumerate(BROKEN.values()))
    aliases += "owned: near@example.net, one@example.com\nowner-owned: ann@contoso.com\n"
    aliases += "team: one@example.com, two@example.net\n"
    aliases += 'slow: "|touch @ROOT@/pipe/begun; while ! test -e @ROOT@/pipe/end; do sleep 0.1; done; exit 69", team\n'
    fallback = "define(`confFALLBACK_SMARTHOST', `[127.0.0.1]')dnl\n"
    with boot_sendmail(tables={"aliases": f"postmaster: root\n{aliases}"}, server=fallback) as sendmail:
        yield sendmail


@pytest.fixture
def broken(booted_broken: Sendmail) -> Iterator[Sendmail]:
    yield booted_broken
    booted_broken.forget()


@pytest.mark.parametrize("number", range(len(BROKEN)), ids=BROKEN)
def test_without_the_map_a_copy_waits_whatever_fails_beside_it(broken: Sendmail, number: int) -> None:
    broken.inside.refuse["gone@corp.contoso.com"] = "550 5.1.1 No such user"
    with broken.without("policyd.sock"):
        bob_writes(broken, f"broken{number}@contoso.com")
        waiting = broken.queued()
        broken.flush()
        assert broken.left() == [("", "bob@fabrikam.com")]  # the other member's bounce
        assert b"far@example.org" not in broken.internet.messages[0].content.split(b"\r\n\r\nFrom: ")[0]
        assert broken.queued() == waiting
    broken.flush()
    assert broken.left() == [("", "bob@fabrikam.com"), (REWRITTEN, "far@example.org")]
    assert broken.queued() == []


def test_without_the_map_a_copy_waits_whatever_was_refused_in_its_session(broken: Sendmail) -> None:
    with broken.without("policyd.sock"):
        with broken.session(ABROAD) as smtp:
            assert transact(smtp, "bob@fabrikam.com", "nosuchuser@contoso.com", MESSAGE).rcpt[0].code == 550
            smtp.rset()
            assert transact(smtp, "bob@fabrikam.com", ["nosuchuser@contoso.com", "team@contoso.com"], MESSAGE).accepted
        broken.wait_until_idle()
        assert broken.left() == []
    broken.flush()
    assert broken.left() == [(REWRITTEN, "one@example.com"), (REWRITTEN, "two@example.net")]


def test_without_the_map_clients_that_relay_are_told_to_come_again(broken: Sendmail) -> None:
    crm = broken.authority.issue("crm.contoso.com")
    with broken.without("policyd.sock"):
        transcript = broken.send("bob@fabrikam.com", "x@example.com", client=PARTNER, certificate=crm)
        assert str(transcript.last) == "451 4.4.3 gatepost cannot be asked now, please try again later"
    assert broken.send("bob@fabrikam.com", "x@example.com", client=PARTNER, certificate=crm).accepted
    assert broken.left() == [(REWRITTEN, "x@example.com")]


def test_map_that_goes_away_while_another_copy_fails_has_answered_already(broken: Sendmail) -> None:
    pipe = broken.root / "pipe"
    pipe.mkdir()
    pipe.chmod(0o777)

    def take_away() -> None:
        poll((pipe / "begun").exists, "the pipe has begun")
        (broken.sockets / "policyd.sock").rename(broken.sockets / "policyd.away")
        for worker in broken.gatepost.workers("policyd"):
            os.kill(worker, signal.SIGKILL)
        (pipe / "end").touch()

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        bob_writes(broken, "slow@contoso.com")
    finally:
        thread.join()
        (broken.sockets / "policyd.away").rename(broken.sockets / "policyd.sock")
    assert broken.left() == [("", "bob@fabrikam.com"), (REWRITTEN, "one@example.com"), (REWRITTEN, "two@example.net")]
    poll(lambda: len(broken.gatepost.workers("policyd")) == 2, "workers of policyd")


def test_without_the_map_mail_to_a_list_with_an_owner_waits(broken: Sendmail) -> None:
    with broken.without("policyd.sock"):
        bob_writes(broken, "owned@contoso.com", "broken0@contoso.com")
        assert [rcpt for _, rcpt in broken.left()] == ["bob@fabrikam.com"]
    broken.flush()
    assert broken.left() == [
        ("", "bob@fabrikam.com"),
        ("ann@contoso.com", "near@example.net"),
        ("ann@contoso.com", "one@example.com"),
        (REWRITTEN, "far@example.org"),
    ]


def test_without_the_milter_clients_are_told_to_come_again(sendmail: Sendmail) -> None:
    with sendmail.without("milter.sock"):
        assert str(sendmail.send("bob@fabrikam.com", "postmaster@contoso.com", client=ABROAD).last).startswith(
            "451 4.3.2"
        )
    bob_writes(sendmail, "postmaster@contoso.com")


def test_milter_that_dies_costs_an_open_session_a_451_and_no_mail(sendmail: Sendmail) -> None:
    with sendmail.session(ABROAD) as smtp:
        assert smtp.docmd("MAIL", "FROM:<bob@fabrikam.com>")[0] == 250
        for worker in sendmail.gatepost.workers("milter"):
            os.kill(worker, signal.SIGKILL)
        assert smtp.docmd("RCPT", "TO:<john.work@contoso.com>")[0] == 451
    poll(lambda: sendmail.send("bob@fabrikam.com", "john.work@contoso.com", client=ABROAD).accepted, "a new worker")
    assert sendmail.left() == [(REWRITTEN, "john.home@example.com")]


# The lines themselves


def test_sendmail_has_nothing_to_complain_of(sendmail: Sendmail) -> None:
    assert (sendmail.root / "output").read_text() == ""
    assert sendmail.test("/quit").splitlines()[0] == "WARNING: Ruleset EnvFromSMTP has multiple definitions"
