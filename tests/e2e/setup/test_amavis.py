# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a forwarder where amavis takes mail behind the queue and hands it back on a port on loopback.

The filter is a stand-in that does what amavis does: it passes on the envelope with its DSN parameters and XFORWARD, and
puts a Received line of its own on top.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Callable

import pytest
from realmta import SmtpFilter
from realmta_site import BOB, Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript
from stages import shape

from gatepost.admin.sandbox import free_port

HEADER = (
    b"Received: from mail.contoso.com ([127.0.0.1])\r\n"
    b" by localhost (mail.contoso.com [127.0.0.1]) (amavis, port 10024) with ESMTP\r\n"
    b" id Xy3vqkJ0S9aR; Sat, 1 Aug 2026 12:00:01 +0200 (CEST)\r\n"
    b"X-Virus-Scanned: amavis at contoso.com"
)


@pytest.fixture(scope="module")
def amavis(stack: ExitStack) -> SmtpFilter:
    amavis = SmtpFilter(("127.0.0.1", free_port()), HEADER)
    stack.enter_context(amavis)
    return amavis


@pytest.fixture(scope="module")
def story(boot_site: Callable[..., Site], amavis: SmtpFilter) -> Story:
    ports = {":10024": f":{amavis.port}", ":10025": f":{amavis.target[1]}"}
    return tell(boot_site("amavis", "forwarder", replacing=ports))


class TestAmavis(EveryServer):
    pass


def test_only_what_leaves_with_a_foreign_p1_is_rewritten(story: Story) -> None:
    """amavis's Received line hides from the hop what ingress knew: what is forwarded bears the name of no mailbox."""
    assert transcript(story.enforced) == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        f"to-an-alias-outside: internet {REWRITTEN} -> john.home@example.com",
        f"to-both: internet {REWRITTEN} -> john.home@example.com",
        "to-both: mailbox bob@fabrikam.com -> games",
        "accepted-p1: internet app@contoso.com -> r1@example.com",
        f"foreign-p1: internet {REWRITTEN} -> r2@example.com",
        f"no-connector: {REFUSED}",
        "no-relay: 454 4.7.1 <r4@example.com>: Relay access denied",
        "refused-later: internet <> -> bob@fabrikam.com",
        "null-sender: mailbox <> -> games",
        f"sendmail: internet {REWRITTEN} -> r5@example.com",
        "bounce-from-outside: internet <> -> bob@fabrikam.com",
    ]


def test_amavis_sees_each_message_once_and_with_its_first_client(story: Story, amavis: SmtpFilter) -> None:
    seen = [mail for mail in amavis.seen if b"Subject: foreign-p1\r\n" in mail.content]
    senders = [shape(mail.mail).split()[1] for mail in seen]
    assert senders == [f"FROM:<{p1}>" for p1 in (BOB, BOB, REWRITTEN, BOB)]
    assert all("ADDR=192.0.2.5" in " ".join(mail.xforward) for mail in seen)


def test_mail_that_amavis_hands_back_is_not_judged_again(story: Story) -> None:
    """What is forwarded has a second row, of the hop: behind amavis it does not know the message that came in."""
    assert sorted(story.recorded) == [
        ("", "r3@example.com"),
        ("accepted-p1", "r1@example.com"),
        ("bounce-from-outside", REWRITTEN.lower()),
        ("foreign-p1", "r2@example.com"),
        ("null-sender", "games@contoso.com"),
        ("refused-later", "gone@example.com"),
        ("sendmail", "r5@example.com"),
        ("to-a-mailbox", "games@contoso.com"),
        ("to-an-alias-outside", "john.home@example.com"),
        ("to-an-alias-outside", "john.work@contoso.com"),
        ("to-both", "games@contoso.com"),
        ("to-both", "john.home@example.com"),
        ("to-both", "john.work@contoso.com"),
    ]
