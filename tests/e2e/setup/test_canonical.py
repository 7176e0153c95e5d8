# SPDX-License-Identifier: GPL-3.0-or-later
"""Set up in postsrsd's place where a canonical table gives senders of one's own programs their real addresses.

It does so for the envelope and for From headers, in the way that setup tells who has it do both in one parameter.
"""

from __future__ import annotations

from typing import Callable

import pytest
from realmta_site import DAY, HEAD_OFFICE, Kind, Site
from realmta_story import Story, tell, transcript

from gatepost.admin.sandbox import free_port

TABLE = "inline:{ {root@host.internal = admin@contoso.com} {shop@contoso.com = shop@fabrikam.com} }"


@pytest.fixture(scope="module")
def story(boot_site: Callable[..., Site]) -> Story:
    maps = (
        f"sender_canonical_maps = {TABLE}\nsender_canonical_classes = envelope_sender\n"
        f"canonical_maps = {TABLE}\ncanonical_classes = header_sender\nlocal_header_rewrite_clients = static:all"
    )
    replacing = {"content_filter = smtp-amavis:[127.0.0.1]:10024": maps, ":10025": f":{free_port()}"}
    day = {
        **DAY,
        "own-program": Kind(HEAD_OFFICE, "root@host.internal", "r1@example.com"),
        "own-shop": Kind(HEAD_OFFICE, "shop@contoso.com", "r1@example.com"),
    }
    return tell(boot_site("amavis", "postsrsd-replacement", day=day, replacing=replacing))


def test_mail_is_as_before_until_an_organization_is_declared(story: Story) -> None:
    assert story.applied == story.before


def test_senders_that_the_table_knows_get_its_addresses_first(story: Story) -> None:
    expected = [
        "own-program: internet admin@contoso.com -> r1@example.com",
        "own-shop: internet bounces+SRS=HASH=TT=fabrikam.com=shop@contoso.com -> r1@example.com",
    ]
    assert [line for line in transcript(story.enforced) if line.startswith("own-")] == expected


def test_from_header_gets_its_address_as_before(story: Story) -> None:
    (copy,) = story.enforced["own-program"].copies
    assert "From: admin@contoso.com" in copy.content
    assert copy == story.before["own-program"].copies[0]


def test_mail_is_as_before_once_it_is_undone(story: Story) -> None:
    assert story.undone == story.before
