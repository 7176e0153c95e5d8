# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a forwarder where all that leaves goes to a provider who wants TLS and a password."""

from __future__ import annotations

import ssl
from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import pytest
from realmta import Provider
from realmta_site import Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript

from gatepost.admin.authority import Authority
from gatepost.admin.sandbox import free_port


@pytest.fixture(scope="module")
def provider(stack: ExitStack, root: Path) -> Provider:
    """It passes mail on to the next hop of the tests, which is told its address once that is there."""
    certificate = Authority(root / "provider").issue("smtp.provider.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    return Provider(("127.0.0.1", free_port()), context, "contoso", "opensesame")


@pytest.fixture(scope="module")
def story(boot_site: Callable[..., Site], stack: ExitStack, provider: Provider) -> Story:
    stack.enter_context(provider)
    replacing = {"[smtp.provider.example]:submission": f"[127.0.0.1]:{provider.port}"}
    site = boot_site("sasl", "forwarder", replacing=replacing)
    provider.target = site.stage.internet.address
    return tell(site)


class TestSaslRelayhost(EveryServer):
    pass


def test_only_what_leaves_with_a_foreign_p1_is_rewritten(story: Story) -> None:
    assert transcript(story.enforced) == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        "to-an-alias-outside: internet john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com -> john.home@example.com",
        "to-both: internet john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com -> john.home@example.com",
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


def test_all_that_leaves_has_gone_through_the_provider(story: Story, provider: Provider) -> None:
    days = (story.before, story.applied, story.enforced, story.undone)
    left = [copy for day in days for outcome in day.values() for copy in outcome.copies if copy.where == "internet"]
    assert len(provider.seen) == len(left) > 0
    assert provider.logins > 0


def test_both_hops_of_a_forwarded_message_have_one_row(story: Story) -> None:
    assert sorted(story.recorded) == [
        ("", "r3@example.com"),
        ("accepted-p1", "r1@example.com"),
        ("bounce-from-outside", REWRITTEN.lower()),
        ("foreign-p1", "r2@example.com"),
        ("null-sender", "games@contoso.com"),
        ("refused-later", "gone@example.com"),
        ("sendmail", "r5@example.com"),
        ("to-a-mailbox", "games@contoso.com"),
        ("to-an-alias-outside", "john.work@contoso.com"),
        ("to-both", "games@contoso.com"),
        ("to-both", "john.work@contoso.com"),
    ]
