# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a relay hub whose clients show certificates at a service of their own, with TLS from the start.

That service has lists of restrictions of its own. Every daemon that can be is chrooted. The organisation, with its
certificate's name, is declared in mode monitor before.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest
from realmta_site import BOB, DAY, ORGANIZATION, Kind, Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript

from gatepost.admin.sandbox import free_port
from gatepost.admin.stage import Stage


@pytest.fixture(scope="module")
def site(boot_site: Callable[..., Site]) -> Site:
    port = free_port()
    day = dict(DAY)

    def admit(stage: Stage) -> None:
        crm, files = stage.authority.issue("crm.contoso.com"), stage.authority.issue("files.fabrikam.com")
        table = Path(stage.root, "mta/etc/relay_clientcerts")
        table.write_text(f"{crm.fingerprint} crm\n{files.fingerprint} files\n")
        day["crm"] = Kind("", BOB, "r6@example.com", certificate=crm, port=port)
        day["files"] = Kind("", BOB, "r7@example.com", certificate=files, port=port)

    return boot_site(
        "submissions",
        "relay-hub",
        day=day,
        replacing={"submissions inet": f"{port} inet"},
        prepare=admit,
        organization=ORGANIZATION,
    )


@pytest.fixture(scope="module")
def story(site: Site) -> Story:
    return tell(site)


class TestSubmissions(EveryServer):
    pass


def test_certificate_of_a_connector_relays_and_another_one_does_not(story: Story) -> None:
    assert transcript(story.before)[-4:] == [
        "crm: internet bob@fabrikam.com -> r6@example.com",
        "files: internet bob@fabrikam.com -> r7@example.com",
        "sendmail: internet bob@fabrikam.com -> r5@example.com",
        "bounce-from-outside: 554 5.7.1 <bob@fabrikam.com>: Relay access denied",
    ]
    assert transcript(story.enforced)[-4:] == [
        f"crm: internet {REWRITTEN} -> r6@example.com",
        f"files: {REFUSED}",
        f"sendmail: internet {REWRITTEN} -> r5@example.com",
        "bounce-from-outside: internet <> -> bob@fabrikam.com",
    ]


def test_policyd_is_first_in_the_list_that_the_service_has_of_its_own(story: Story) -> None:
    (name,) = [name for name in story.parameters["before"] if name.endswith("/inet/smtpd_recipient_restrictions")]
    assert story.parameters["before"][name] == " permit_tls_clientcerts,reject"
    assert story.parameters["applied"][name].split()[:2] == ["check_policy_service", "unix:gatepost/policyd.sock,"]


def test_rule_holds_and_known_hosts_are_rewritten(story: Story) -> None:
    assert transcript(story.enforced)[:-4] == [
        "to-a-mailbox: mailbox bob@fabrikam.com -> games",
        "to-an-alias-outside: internet bob@fabrikam.com -> john.home@example.com",
        "to-both: internet bob@fabrikam.com -> john.home@example.com",
        "to-both: mailbox bob@fabrikam.com -> games",
        "accepted-p1: internet app@contoso.com -> r1@example.com",
        f"foreign-p1: internet {REWRITTEN} -> r2@example.com",
        f"no-connector: {REFUSED}",
        "no-relay: 554 5.7.1 <r4@example.com>: Relay access denied",
        "refused-later: internet <> -> bob@fabrikam.com",
        "null-sender: mailbox <> -> games",
    ]
