# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a relay hub where rspamd looks at what comes in and postgrey is asked; no daemon is chrooted.

rspamd is Debian's, postgrey a stand-in.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Callable

import pytest
from realmta import PolicyService
from realmta_milters import Rspamd
from realmta_site import DAY, SOMEWHERE, Kind, Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript
from stages import shape

from gatepost.admin.sandbox import free_port

FORGED = Kind(SOMEWHERE, "", "bounces+SRS=aaaaaaaa=AA=fabrikam.com=bob@contoso.com")


@pytest.fixture(scope="module")
def postgrey() -> PolicyService:
    return PolicyService()


@pytest.fixture(scope="module")
def story(boot_site: Callable[..., Site], stack: ExitStack, root: Path, postgrey: PolicyService) -> Story:
    rspamd = Rspamd(root / "rspamd", free_port())
    stack.enter_context(rspamd)
    ports = {":11332": f":{rspamd.port}", ":10023": f":{postgrey.port}"}

    with postgrey:
        return tell(boot_site("rspamd", "relay-hub", replacing=ports, day={**DAY, "forged": FORGED}))


class TestRspamd(EveryServer):
    pass


def test_rule_holds_and_known_hosts_are_rewritten(story: Story) -> None:
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
        f"forged: 550 5.1.1 <{REWRITTEN}>: Recipient address rejected: SRS address with a wrong hash",
        f"sendmail: internet {REWRITTEN} -> r5@example.com",
        "bounce-from-outside: internet <> -> bob@fabrikam.com",
    ]


@pytest.mark.parametrize("day", ["before", "applied", "enforced", "undone"])
def test_rspamd_sees_the_envelope_that_the_client_gave(story: Story, day: str) -> None:
    (copy,) = getattr(story, day)["foreign-p1"].copies
    assert "X-Rspamd-Saw: <bob@fabrikam.com>" in copy.content.splitlines()


def test_each_policy_service_has_its_own_way_when_it_is_away(story: Story) -> None:
    """smtpd_policy_service_default_action = DUNNO is for postgrey."""
    wanted = "{ unix:gatepost/policyd.sock, { default_action = 451 4.3.0 Service unavailable, try again later } }"
    restrictions = story.parameters["applied"]["smtpd_recipient_restrictions"]
    assert restrictions.startswith(f" check_policy_service {wanted}, reject_non_fqdn_recipient")
    assert story.parameters["applied"]["smtpd_policy_service_default_action"] == " DUNNO"


def test_postgrey_is_asked_about_all_but_what_policyd_refuses(story: Story, postgrey: PolicyService) -> None:
    """It stands behind permit_mynetworks, and so is asked about mail from outside only.

    On three days the SRS address is the forged one; on the enforced day it is that of the bounce.
    """
    mailbox, alias = "games@contoso.com", "john.work@contoso.com"
    day = [mailbox, alias, mailbox, alias, mailbox]
    asked = [shape(request["recipient"]) for request in postgrey.asked]
    assert asked == [*day, REWRITTEN, *day, REWRITTEN, *day, REWRITTEN, *day, REWRITTEN]
