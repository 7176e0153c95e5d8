# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a relay hub where an access table says FILTER, and amavis hands mail back to a port of all addresses.

Nothing switches a filter off at that port, for none is on: what tells it is that it trusts loopback alone, in the words
of Debian's mynetworks.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Callable

import pytest
from realmta import SmtpFilter
from realmta_site import Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript

from gatepost.admin.sandbox import free_port


@pytest.fixture(scope="module")
def amavis(stack: ExitStack) -> SmtpFilter:
    amavis = SmtpFilter(("127.0.0.1", free_port()), b"X-Virus-Scanned: amavis at contoso.com")
    stack.enter_context(amavis)
    return amavis


@pytest.fixture(scope="module")
def story(boot_site: Callable[..., Site], amavis: SmtpFilter) -> Story:
    clients = "cidr:{{0.0.0.0/0 FILTER smtp-amavis:[127.0.0.1]:10024}}"
    replacing = {
        "content_filter = smtp-amavis:[127.0.0.1]:10024": f"smtpd_client_restrictions = check_client_access {clients}",
        "127.0.0.1:10025 inet n  -       y       -       -       smtpd\n        -o content_filter=\n": (
            f"{amavis.target[1]} inet n  -       y       -       -       smtpd\n"
        ),
        "mynetworks=127.0.0.0/8": "mynetworks=127.0.0.0/8,[::ffff:127.0.0.0]/104,[::1]/128",
        ":10024": f":{amavis.port}",
    }
    return tell(boot_site("amavis", "relay-hub", replacing=replacing))


class TestFilterAction(EveryServer):
    pass


def test_mail_that_comes_back_from_the_filter_is_not_judged_again(story: Story, amavis: SmtpFilter) -> None:
    assert transcript(story.enforced) == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        "to-an-alias-outside: internet bob@fabrikam.com -> john.home@example.com",
        "to-both: internet bob@fabrikam.com -> john.home@example.com",
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
    assert len([mail for mail in amavis.seen if b"Subject: accepted-p1\r\n" in mail.content]) == 4
