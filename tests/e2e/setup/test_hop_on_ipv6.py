# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a forwarder whose egress hop is at ::1: Postfix goes on running, and what is forwarded takes the hop."""

from __future__ import annotations

import os
import socket
from typing import Callable

import pytest
from realmta_site import Site
from realmta_story import REFUSED, EveryServer, Story, tell, transcript

from gatepost.admin.stage import Stage

FORWARDED = "john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com"


def _listen_on_ipv6(stage: Stage) -> None:
    text = stage.configuration.read_text()
    assert "gatepost-egress:[127.0.0.1]:" in text
    stage.configuration.write_text(text.replace("gatepost-egress:[127.0.0.1]:", "gatepost-egress:[::1]:"))


@pytest.fixture(scope="module")
def site(boot_site: Callable[..., Site]) -> Site:
    with socket.socket(socket.AF_INET6) as loopback:
        try:
            loopback.bind(("::1", 0))
        except OSError:
            pytest.skip("this host has no ::1")
    replacing = {"smtpd_milters = inet:127.0.0.1:8891": "inet_protocols = ipv4"}
    return boot_site("opendkim", "forwarder", replacing=replacing, prepare=_listen_on_ipv6)


@pytest.fixture(scope="module")
def refused(site: Site) -> str:
    done = site.setup("--topology", "forwarder", "--apply")
    assert done.returncode == 1
    site.stage.postfix.postconf("-e", "inet_protocols = all")
    os.utime(site.stage.postfix.config_directory / "main.cf", (0, 0))
    site.stage.postfix.reload()
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def story(site: Site, refused: str) -> Story:
    return tell(site)


class TestHopOnIpv6(EveryServer):
    pass


def test_address_that_postfix_cannot_listen_at_is_refused(refused: str) -> None:
    assert "inet_protocols is ipv4, and the egress hop listens at [::1]:" in refused


def test_what_is_forwarded_takes_the_hop(story: Story) -> None:
    assert transcript(story.enforced)[:7] == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        f"to-an-alias-outside: internet {FORWARDED} -> john.home@example.com",
        f"to-both: internet {FORWARDED} -> john.home@example.com",
        "to-both: mailbox bob@fabrikam.com -> games",
        "accepted-p1: internet app@contoso.com -> r1@example.com",
        "foreign-p1: internet bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com -> r2@example.com",
        f"no-connector: {REFUSED}",
    ]
