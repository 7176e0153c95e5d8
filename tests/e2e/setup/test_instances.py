# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up on the second of two instances of Postfix (postmulti), the mail exchanger; the first has this host's mail."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from subprocess import CompletedProcess
from typing import Callable

import pytest
from realmta_site import File, Site, files_below
from realmta_story import REFUSED, REWRITTEN, EveryServer, Story, tell, transcript

from gatepost.admin.sandbox import Postfix

FIRST = Path(__file__).parent / "configurations/instances/first"


@pytest.fixture(scope="module")
def site(boot_site: Callable[..., Site], stack: ExitStack, root: Path) -> Site:
    etc = root / "s/mta/etc"
    site = boot_site("instances", "forwarder", replacing={"/etc/postfix-mx": str(etc)})
    main_cf = (FIRST / "main.cf").read_text().replace("/etc/postfix-mx", str(etc))
    main_cf = main_cf.replace("[mail.contoso.com]:25", "[{}]:{}".format(*site.stage.postfix.smtp))
    first = Postfix(root / "first", main_cf=main_cf, master_cf=(FIRST / "master.cf").read_text(), whole=True)
    stack.enter_context(first)
    return Site(site.stage, site.topology, site.day, instance=etc, default_instance=first)


@pytest.fixture(scope="module")
def first_before(site: Site) -> dict[str, File]:
    return files_below(site.default_instance.config_directory)


@pytest.fixture(scope="module")
def story(site: Site, first_before: dict[str, File]) -> Story:
    return tell(site)


class TestInstances(EveryServer):
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


def test_first_instance_is_neither_changed_nor_reloaded(
    story: Story, site: Site, first_before: dict[str, File]
) -> None:
    assert files_below(site.default_instance.config_directory) == first_before
    assert "reload" not in site.default_instance.log()


def test_instance_can_be_named(site: Site) -> None:
    """The command for the next step is another one; all above it is what --config-directory gives."""
    by_name = _first_instance(site, "--topology", "forwarder", "--instance", "postfix-mx")
    by_folder = site.setup("--topology", "forwarder")
    assert by_name.stdout.splitlines()[:-1] == by_folder.stdout.splitlines()[:-1]


def test_without_a_name_it_is_the_first_instance_from_where_the_sockets_are_out_of_reach(site: Site) -> None:
    refused = _first_instance(site, "--topology", "forwarder")
    assert refused.returncode == 1
    assert "out of reach" in refused.stderr
    assert "another instance: --instance postfix-mx" in refused.stderr


def _first_instance(site: Site, *options: str) -> CompletedProcess[str]:
    return Site(site.stage, site.topology, site.day, default_instance=site.default_instance).setup(*options)
