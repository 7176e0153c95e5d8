# SPDX-License-Identifier: GPL-3.0-or-later
"""Sendmail with mode monitor, with what else may become of refused mail, and with sockets of gatepost's own user."""

from __future__ import annotations

import os
import pwd
import re
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from sendmaildaemon import ABROAD, OURS, Sendmail

if TYPE_CHECKING:
    from .conftest import Boot

RELAYED = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"


@pytest.fixture(scope="module")
def booted(boot_sendmail: Boot) -> Iterator[Sendmail]:
    with boot_sendmail() as sendmail:
        yield sendmail


@pytest.fixture
def sendmail(booted: Sendmail) -> Iterator[Sendmail]:
    yield booted
    booted.forget()


def relay(sendmail: Sendmail, lines: str) -> None:
    """Have gatepost load *lines* in the place of `mode = ...` and what follows it in [relay]."""
    gatepost = sendmail.gatepost
    text = gatepost.configuration.read_text()
    gatepost.configuration.write_text(re.sub(r"(?m)^mode = .*\n((action|requirements) = .*\n)*", f"{lines}\n", text))
    after = gatepost.mark()
    gatepost.signal(signal.SIGHUP)
    gatepost.wait_for_log(r"configuration reloaded", after=after)


def test_monitor_mode_refuses_and_rewrites_nothing_and_logs_the_verdict(sendmail: Sendmail) -> None:
    relay(sendmail, 'mode = "monitor"')
    assert sendmail.send("bob@fabrikam.com", ["x@example.com", "mary@corp.contoso.com"]).accepted
    assert sendmail.send("bob@fabrikam.com", "john.work@contoso.com", client=ABROAD).accepted
    assert sendmail.left() == [
        ("bob@fabrikam.com", "john.home@example.com"),
        ("bob@fabrikam.com", "x@example.com"),
    ]
    sendmail.gatepost.wait_for_log(r"action=monitor, from=<bob@fabrikam.com>, to=<x@example.com>")


def test_action_rewrite_mends_what_would_be_refused_and_its_bounce_comes_home(sendmail: Sendmail) -> None:
    relay(sendmail, 'mode = "enforce"\naction = "rewrite"')
    assert sendmail.send("bob@fabrikam.com", "x@example.com", client=OURS).accepted
    assert sendmail.left() == [(RELAYED, "x@example.com")]
    (mail,) = sendmail.internet.messages
    assert sendmail.send("", mail.mail_from, client=ABROAD).accepted
    assert sendmail.left() == [("", "bob@fabrikam.com"), (RELAYED, "x@example.com")]


def test_action_quarantine_keeps_the_message_in_the_queue_until_it_is_released(sendmail: Sendmail) -> None:
    relay(sendmail, 'mode = "enforce"\naction = "quarantine"')
    transcript = sendmail.send("bob@fabrikam.com", "x@example.com")
    assert transcript.accepted
    queue_id = transcript.end.text.split()[1] if transcript.end else ""
    assert sendmail.queued() == [f"hf{queue_id}"]
    sendmail.flush()
    assert sendmail.left() == []
    sendmail.release(queue_id)
    sendmail.flush()
    assert sendmail.left() == [(RELAYED, "x@example.com")]


def test_action_tag_removes_a_clients_header_and_sets_its_own(sendmail: Sendmail) -> None:
    relay(sendmail, 'mode = "enforce"\naction = "tag"')
    message = b"From: bob@fabrikam.com\r\nX-Gatepost-Relay: fine\r\nx-gatepost-relay: fine\r\n\r\nhello\r\n"
    assert sendmail.send("bob@fabrikam.com", "x@example.com", message).accepted
    (mail,) = sendmail.internet.messages
    assert mail.content.lower().count(b"x-gatepost-relay:") == 1
    assert b"X-Gatepost-Relay: refused; reason=nothing-accepted; reference=" in mail.content


def test_legacy_rule_set_decides_at_the_end_of_the_headers(sendmail: Sendmail) -> None:
    relay(sendmail, 'mode = "enforce"\nrequirements = "legacy"')
    own = b"From: ann@contoso.com\r\n\r\nhello\r\n"
    assert sendmail.send("bob@fabrikam.com", "x@example.com", own).accepted
    assert "550 5.7.64" in str(sendmail.send("bob@fabrikam.com", "x@example.com").last)
    assert sendmail.left() == [(RELAYED, "x@example.com")]


@pytest.mark.parametrize("inet", [False, True], ids=["unix, of another user", "inet"])
def test_sockets_of_gateposts_user_and_ports_are_good_enough(boot_sendmail: Boot, inet: bool) -> None:
    with boot_sendmail(inet=inet) as sendmail:
        if not inet:
            account = pwd.getpwnam("games")
            for path in (sendmail.sockets, sendmail.sockets / "milter.sock", sendmail.sockets / "policyd.sock"):
                os.chown(path, account.pw_uid, account.pw_gid)
        assert sendmail.send("bob@fabrikam.com", "team@contoso.com", client=ABROAD).accepted
        assert sendmail.left() == [(RELAYED, "one@example.com"), (RELAYED, "two@example.net")]
        assert (sendmail.root / "output").read_text() == ""
