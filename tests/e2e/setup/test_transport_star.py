# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a relay hub where transport_maps names a next hop for every domain, `*`. As a forwarder it is refused."""

from __future__ import annotations

from typing import Callable

import pytest
from realmta_site import DAY, Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript


@pytest.fixture(scope="module")
def site(boot_site: Callable[..., Site]) -> Site:
    return boot_site("transport", "relay-hub", day=DAY)


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    return tell(site)


class TestTransportStar(EveryServer):
    pass


def test_rule_holds_and_known_hosts_are_rewritten(story: Story) -> None:
    assert transcript(story.enforced) == [
        "to-a-mailbox: groupware bob@fabrikam.com -> games@contoso.com",
        "to-an-alias-outside: internet bob@fabrikam.com -> john.home@example.com",
        "to-both: groupware bob@fabrikam.com -> games@contoso.com",
        "to-both: internet bob@fabrikam.com -> john.home@example.com",
        "accepted-p1: internet app@contoso.com -> r1@example.com",
        f"foreign-p1: internet {REWRITTEN} -> r2@example.com",
        f"no-connector: {REFUSED}",
        "no-relay: 454 4.7.1 <r4@example.com>: Relay access denied",
        "refused-later: internet <> -> bob@fabrikam.com",
        "null-sender: groupware <> -> games@contoso.com",
        f"sendmail: internet {REWRITTEN} -> r5@example.com",
        "bounce-from-outside: internet <> -> bob@fabrikam.com",
    ]


def test_forwarder_is_refused_for_its_mail_would_go_past_the_hop(story: Story, site: Site) -> None:
    before = site.files()
    done = site.setup("--topology", "forwarder", "--apply")
    assert done.returncode != 0
    assert "transport_maps" in done.stdout + done.stderr
    assert site.files() == before
