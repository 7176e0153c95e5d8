# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a forwarder where a filter stands before the queue (smtpd_proxy_filter) and hands on to a second smtpd.

The filter is a stand-in that passes each session on as such filters do, XFORWARD included.
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
def proxy(stack: ExitStack) -> SmtpFilter:
    proxy = SmtpFilter(("127.0.0.1", free_port()), b"X-Filtered: yes")
    stack.enter_context(proxy)
    return proxy


@pytest.fixture(scope="module")
def story(boot_site: Callable[..., Site], proxy: SmtpFilter) -> Story:
    ports = {":10024": f":{proxy.port}", ":10025": f":{proxy.target[1]}"}
    return tell(boot_site("proxy-filter", "forwarder", replacing=ports))


class TestProxyFilter(EveryServer):
    pass


def test_only_what_leaves_with_a_foreign_p1_is_rewritten(story: Story) -> None:
    """Ingress has seen no message, so that what is forwarded bears the name of no mailbox."""
    assert transcript(story.enforced) == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        f"to-an-alias-outside: internet {REWRITTEN} -> john.home@example.com",
        f"to-both: internet {REWRITTEN} -> john.home@example.com",
        "to-both: mailbox bob@fabrikam.com -> games",
        "accepted-p1: internet app@contoso.com -> r1@example.com",
        f"foreign-p1: internet {REWRITTEN} -> r2@example.com",
        f"no-connector: {REFUSED}",
        "no-relay: 554 5.7.1 <r4@example.com>: Relay access denied",
        "refused-later: internet <> -> bob@fabrikam.com",
        "null-sender: mailbox <> -> games",
        f"sendmail: internet {REWRITTEN} -> r5@example.com",
        "bounce-from-outside: internet <> -> bob@fabrikam.com",
    ]


def test_filter_sees_nothing_that_is_refused(story: Story, proxy: SmtpFilter) -> None:
    assert len([mail for mail in proxy.seen if b"Subject: no-connector\r\n" in mail.content]) == 3
    assert not [mail for mail in proxy.seen if b"Subject: no-relay\r\n" in mail.content]


def test_what_is_refused_and_what_passes_the_hop_is_recorded(story: Story) -> None:
    """The end of a message, when a milter can record it, comes to none before the filter."""
    assert sorted(story.recorded) == [
        ("", "r3@example.com"),
        ("foreign-p1", "r2@example.com"),
        ("refused-later", "gone@example.com"),
        ("sendmail", "r5@example.com"),
        ("to-an-alias-outside", "john.home@example.com"),
        ("to-both", "john.home@example.com"),
    ]
