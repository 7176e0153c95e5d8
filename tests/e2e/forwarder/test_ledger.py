# SPDX-License-Identifier: GPL-3.0-or-later
"""One row in the ledger for each message and recipient, though two hops and two daemons see it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from daemonprocess import poll
from ledgerrows import Row, rows
from stages import NDR

from gatepost.admin.stage import Stage

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder


@pytest.fixture(scope="module")
def booted(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder() as forwarder:
        yield forwarder


@pytest.fixture
def forwarder(booted: Forwarder) -> Iterator[Forwarder]:
    yield booted
    booted.forget()


def of(stage: Stage, queue_id: str) -> list[Row]:
    """Return the rows of the message that smtpd queued as *queue_id*."""
    stage.postfix.wait_until_idle()
    return [row for row in rows(stage.state_directory) if row["queue_id"] == queue_id]


@pytest.mark.parametrize(
    ("mailbox", "home"),
    [
        ("john.work", "john.home@example.com"),
        ("john.alias", "john.alias.home@example.com"),
        ("games", "games.home@example.com"),
        ("John.Work", "john.home@example.com"),
    ],
    ids=["virtual alias", "alias", ".forward", "in capitals"],
)
def test_forwarded_message_is_one_row_for_both_hops(forwarder: Forwarder, mailbox: str, home: str) -> None:
    queue_id = forwarder.bob_writes(f"{mailbox}@contoso.com")
    mail = forwarder.only_mail()
    (row,) = of(forwarder.stage, queue_id)
    assert row.some("recipient", "forwarded_to", "reverse_path", "action") == (
        f"{mailbox.lower()}@contoso.com",
        home,
        "bob@fabrikam.com",
        "rewrite",
    )
    assert row["rewritten"] == mail.mail_from.lower()
    assert row["egress_queue_id"] not in ("", queue_id)
    assert row.some("client", "organization", "verdict_current", "verdict_legacy", "reason") == (
        "198.51.100.7",
        "contoso",
        "inside",
        "inside",
        "recipient-accepted",
    )
    assert row.some("header_from", "message_id", "subject") == ("bob@fabrikam.com", "<1@fabrikam.com>", "")


def test_inside_and_forwarded_recipients_of_one_message_are_a_row_each(forwarder: Forwarder) -> None:
    queue_id = forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
    john, sales = of(forwarder.stage, queue_id)
    assert john.some("recipient", "action") == ("john.work@contoso.com", "rewrite")
    assert sales.some("recipient", "action", "rewritten") == ("list@contoso.com", "pass", "")
    assert john["reference"] == sales["reference"]


def test_alias_to_several_outside_is_one_row_with_all_that_it_went_to(forwarder: Forwarder) -> None:
    (row,) = of(forwarder.stage, forwarder.bob_writes("sales@contoso.com"))
    assert set(str(row["forwarded_to"]).split(", ")) == {"one@example.com", "two@example.net"}


def test_own_sender_is_recorded_as_it_passes(forwarder: Forwarder) -> None:
    queue_id = forwarder.bob_writes("customer@example.com", sender="app@contoso.com", client="192.0.2.5")
    (row,) = of(forwarder.stage, queue_id)
    assert row.some("action", "rewritten", "sender_accepted", "verdict_current", "connector") == (
        "pass",
        "",
        1,
        "relay",
        "our network",
    )


def test_refusal_at_rcpt_is_a_row(forwarder: Forwarder) -> None:
    transcript = forwarder.attempt("customer@example.com", client="192.0.2.5")
    (reply,) = transcript.rcpt
    assert reply.code == 550
    reference = reply.text.rpartition("[")[2].rstrip("]")
    (row,) = [row for row in rows(forwarder.stage.state_directory) if row["reference"] == reference]
    assert row.some("recipient", "action", "verdict_current", "verdict_legacy", "reason") == (
        "customer@example.com",
        "reject",
        "refuse",
        "",  # P2 comes after RCPT
        "nothing-accepted",
    )


def bounces_of(forwarder: Forwarder, address: str) -> list[object]:
    """Return how often mail came back to *address*, once policyd has noted that; it does so a moment later."""
    found: list[object] = []

    def noted() -> bool:
        bounces = rows(forwarder.stage.state_directory, "bounce")
        found[:] = [item["count"] for item in bounces if item["address"] == address]
        return bool(found)

    poll(noted, f"a bounce to {address} is noted")
    return found


def test_bounce_that_this_postfix_makes_is_noted_at_the_rewritten_address(forwarder: Forwarder) -> None:
    forwarder.stage.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    (row,) = of(forwarder.stage, forwarder.bob_writes("john.work@contoso.com"))
    assert bounces_of(forwarder, str(row["rewritten"])) == [1]


def test_bounce_from_outside_is_noted_and_is_a_row_itself(forwarder: Forwarder) -> None:
    forwarder.bob_writes("games@contoso.com")
    p1 = forwarder.only_mail().mail_from
    queue_id = forwarder.bob_writes(p1, message=NDR, sender="")
    (row,) = of(forwarder.stage, queue_id)
    assert row.some("recipient", "reverse_path", "action") == (p1.lower(), "", "pass")
    assert bounces_of(forwarder, p1.lower()) == [1]
