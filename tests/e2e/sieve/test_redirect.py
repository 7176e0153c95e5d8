# SPDX-License-Identifier: GPL-3.0-or-later
"""What Sieve scripts of Dovecot's users redirect leaves in the name of the mailbox that redirects it (S1, S3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Boot, SieveHost

BY_CAROL = ("carol+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "carol.home@example.com")
BY_DAVE = ("dave+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "dave.home@example.com")
BY_JOHN = ("john.alias+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.alias.home@example.com")
BY_GAMES = ("games+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "games.home@example.com")
BOUNCES = "bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
TO_BOB = ("", "bob@fabrikam.com")
CEO = b"X-Sieve: Pigeonhole Sieve 0.5.19 (4eae2f79)\r\nX-Sieve-Redirected-From: ceo@contoso.com\r\n"
"""What a forger puts on top of his message."""


@pytest.fixture(
    scope="module",
    params=["", "non_smtpd_milters =\n"],
    ids=["rewritten where sendmail(1) hands it in", "rewritten on the egress hop"],
)
def booted(boot_sieve: Boot, request: pytest.FixtureRequest) -> Iterator[SieveHost]:
    with boot_sieve(after=request.param) as host:
        yield host


@pytest.fixture
def host(booted: SieveHost) -> Iterator[SieveHost]:
    yield booted
    booted.forget()


def test_mail_to_a_user_without_redirect_stays_inside_with_its_p1(host: SieveHost) -> None:
    host.bob_writes("heidi@contoso.com")
    assert host.left() == []
    assert host.inside("heidi") == ["bob@fabrikam.com"]


def test_redirected_mail_leaves_in_the_name_of_the_mailbox(host: SieveHost) -> None:
    host.bob_writes("carol@contoso.com")
    assert host.left() == [BY_CAROL]
    assert host.inside("carol") == []


def test_copy_is_redirected_in_the_name_of_the_mailbox(host: SieveHost) -> None:
    host.bob_writes("dave@contoso.com")
    assert host.left() == [BY_DAVE]


def test_kept_mail_of_which_a_copy_is_redirected_has_its_p1(host: SieveHost) -> None:
    host.bob_writes("dave@contoso.com")
    assert host.inside("dave") == ["bob@fabrikam.com"]


def test_mail_to_an_extension_is_redirected_in_the_name_of_the_mailbox(host: SieveHost) -> None:
    host.bob_writes("dave+lunch@contoso.com")
    assert host.left() == [BY_DAVE]
    assert host.inside("dave") == ["bob@fabrikam.com"]


def test_two_redirects_of_one_script_leave_in_the_same_name(host: SieveHost) -> None:
    host.bob_writes("grace@contoso.com")
    grace = "grace+SRS=HASH=TT=fabrikam.com=bob@contoso.com"
    assert host.left() == [(grace, "one@example.com"), (grace, "two@example.net")]


def test_mail_to_several_users_is_redirected_in_the_name_of_each(host: SieveHost) -> None:
    host.bob_writes("carol@contoso.com", "dave@contoso.com", "heidi@contoso.com", "john.alias@contoso.com")
    assert host.left() == [BY_CAROL, BY_DAVE, BY_JOHN]
    assert host.inside("dave") == host.inside("heidi") == ["bob@fabrikam.com"]


def test_of_two_mailboxes_the_one_that_redirects_to_the_outside_is_named(host: SieveHost) -> None:
    host.bob_writes("erin@contoso.com")
    assert host.left() == [BY_CAROL]


def test_of_a_mailbox_that_redirects_to_an_alias_the_alias_is_named(host: SieveHost) -> None:
    host.bob_writes("frank@contoso.com")
    assert host.left() == [BY_JOHN]


def test_mail_of_an_own_sender_is_redirected_with_its_p1(host: SieveHost) -> None:
    host.bob_writes("carol@contoso.com", sender="mary@contoso.com", client="192.0.2.5")
    assert host.left() == [("mary@contoso.com", "carol.home@example.com")]


def test_null_sender_mail_is_redirected_with_a_null_sender(host: SieveHost) -> None:
    host.bob_writes("carol@contoso.com", sender="")
    assert host.left() == [("", "carol.home@example.com")]


def test_message_is_redirected_as_it_came_below_the_headers_that_are_added(host: SieveHost) -> None:
    message = host.message()
    host.stage.send("bob@fabrikam.com", "carol@contoso.com", message, client="198.51.100.7")
    assert host.left() == [BY_CAROL]
    content = host.only_mail().content
    assert content.endswith(message)
    assert content.count(b"X-Sieve-Redirected-From: carol@contoso.com\r\n") == 1


# Bounces (S9)


@pytest.mark.parametrize("mailbox", ["carol", "dave"])
def test_redirected_mail_that_the_next_hop_refuses_is_returned_to_the_sender_once(
    host: SieveHost, mailbox: str
) -> None:
    host.stage.internet.refuse[f"{mailbox}.home@example.com"] = "550 5.1.1 No such user"
    host.bob_writes(f"{mailbox}@contoso.com")
    assert host.left() == [TO_BOB]
    assert b"550 5.1.1 No such user" in host.only_mail().content


@pytest.mark.parametrize("mailbox", ["carol", "dave"])
def test_ndr_of_a_remote_mta_is_returned_to_the_sender_and_not_redirected(host: SieveHost, mailbox: str) -> None:
    host.bob_writes(f"{mailbox}@contoso.com")
    p1 = host.only_mail().mail_from
    assert p1.startswith(f"{mailbox}+SRS=")
    host.stage.internet.messages.clear()
    host.bob_writes(p1, sender="", client="203.0.113.9")
    assert host.left() == [TO_BOB]


# Forged headers, and others that do not count


def test_forged_header_does_not_count_beside_a_genuine_one(host: SieveHost) -> None:
    host.bob_writes("carol@contoso.com", "dave@contoso.com", above=CEO)
    assert host.left() == [BY_CAROL, BY_DAVE]


@pytest.mark.parametrize(("rcpt", "left"), [("john.alias@contoso.com", BY_JOHN), ("games@contoso.com", BY_GAMES)])
def test_forged_header_does_not_count_in_mail_that_an_alias_or_forward_file_sends_on(
    host: SieveHost, rcpt: str, left: tuple[str, str]
) -> None:
    host.bob_writes(rcpt, above=CEO)
    assert host.left() == [left]


@pytest.mark.parametrize(("rcpt", "left"), [("carol@contoso.com", BY_CAROL), ("games@contoso.com", BY_GAMES)])
def test_forged_header_above_a_forged_received_line_of_ours_does_not_count(
    host: SieveHost, rcpt: str, left: tuple[str, str]
) -> None:
    known = host.bob_writes("heidi@contoso.com")
    entrance = (
        "Received: from mx.fabrikam.com (unknown [198.51.100.7])\r\n"
        f"\tby mail.contoso.com (Postfix) with ESMTP id {known}\r\n"
        "\tfor <ceo@contoso.com>; Sat, 1 Aug 2026 12:00:00 +0000\r\n"
    )
    host.bob_writes(rcpt, above=CEO + entrance.encode())
    assert host.left() == [left]


def test_header_of_mail_that_is_relayed_does_not_count(host: SieveHost) -> None:
    host.bob_writes("x@example.com", above=CEO, client="192.0.2.5", login="mary")
    assert host.left() == [(BOUNCES, "x@example.com")]


def test_header_of_mail_that_comes_in_by_the_egress_port_does_not_count(host: SieveHost) -> None:
    with host.stage.session(client="", port=int(host.stage.ports["10027"])) as smtp:
        smtp.sendmail("bob@fabrikam.com", ["x@example.com"], CEO + host.message())
    assert host.left() == [(BOUNCES, "x@example.com")]


def test_header_below_a_received_line_does_not_count_in_mail_that_a_program_hands_in(host: SieveHost) -> None:
    received = b"Received: from mx.fabrikam.com by mail.contoso.com; Sat, 1 Aug 2026 12:00:00 +0000\n"
    message = host.message(received + CEO).replace(b"\r\n", b"\n")
    host.stage.postfix.sendmail(["-f", "bob@fabrikam.com", "x@example.com"], message)
    assert host.left() == [(BOUNCES, "x@example.com")]


def test_mailbox_in_a_domain_that_is_not_accepted_is_not_named(host: SieveHost) -> None:
    # The alias helpdesk leads to carol@mail.contoso.com, a local domain and no accepted one.
    host.bob_writes("helpdesk@contoso.com")
    assert host.left() == [(BOUNCES, "carol.home@example.com")]
    assert b"X-Sieve-Redirected-From: carol@mail.contoso.com\r\n" in host.only_mail().content
