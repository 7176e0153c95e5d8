# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up as a relay hub where smtpd_command_filter has a table of the administrator's own.

Postfix takes one table there and no list, so setup stops; then its remedy is followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Callable

import pytest
from realmta_site import BOB, DAY, SOMEWHERE, Kind, Site
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript

from gatepost.admin.postfix.wiring import Topology, filter_files

OWN = "/^RCPT TO:<old@contoso.com>(.*)$/ RCPT TO:<games@contoso.com>$1\n"


@pytest.fixture(scope="module")
def site(boot_site: Callable[..., Site]) -> Site:
    return boot_site(
        "opendkim",
        "relay-hub",
        day={**DAY, "to-an-old-name": Kind(SOMEWHERE, BOB, "old@contoso.com")},
        replacing={"smtpd_milters = inet:127.0.0.1:8891": "smtpd_command_filter = regexp:/etc/postfix/commands"},
        prepare=lambda stage: Path(stage.root, "mta/etc/commands").write_text(OWN),
    )


@pytest.fixture(scope="module")
def stopped(site: Site) -> CompletedProcess[str]:
    files = site.files()
    done = site.setup("--topology", site.topology, "--apply")
    assert site.files() == files
    return done


@pytest.fixture(scope="module")
def story(site: Site, stopped: CompletedProcess[str]) -> Story:
    (rules,) = filter_files(Topology.RELAY_HUB).values()
    (site.stage.postfix.config_directory / "commands").write_text("\n".join([*rules, OWN]))
    site.stage.postfix.reload()
    return tell(site, _encoded_bounce)


def _encoded_bounce(site: Site) -> Mapping[str, tuple[str, ...]]:
    p1 = next(mail.mail_from for mail in site.stage.internet.messages if "+SRS=" in mail.mail_from)
    encoded = p1.replace("+", "%2B").replace("=", "%3D")
    return {"encoded-bounce": site.send("encoded-bounce", Kind(SOMEWHERE, "", encoded))}


class TestCommandFilter(EveryServer):
    pass


def test_setup_stops_and_says_what_to_do(stopped: CompletedProcess[str]) -> None:
    assert stopped.returncode == 1
    said = " ".join(stopped.stderr.split())
    assert "smtpd_command_filter is regexp:" in said
    assert "add gatepost's rules to it" in said


def test_ones_own_rules_and_gateposts_both_hold(story: Story, site: Site) -> None:
    assert [line for line in transcript(story.enforced) if line.startswith(("to-an-old", "foreign", "no-conn"))] == [
        f"foreign-p1: internet {REWRITTEN} -> r2@example.com",
        f"no-connector: {REFUSED}",
        "to-an-old-name: mailbox bob@fabrikam.com -> games",
    ]
    assert story.aside["encoded-bounce"][1] == "250 2.1.5 Ok"
    site.stage.postfix.wait_until_idle()
    (mail,) = [mail for mail in site.stage.internet.messages if b"Subject: encoded-bounce\r\n" in mail.content]
    assert mail.rcpt_to == ["bob@fabrikam.com"]
