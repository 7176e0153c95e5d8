# SPDX-License-Identifier: GPL-3.0-or-later
"""Compact SRS addresses on a real Postfix: made, brought back, and what happens when the store is away (S5)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from postgresql import PostgreSQL, programs

from .test_bounces import NDR, TO_BOB

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

COMPACT = re.compile(r"bounces\+SRS=[a-z2-7]{16}=[A-Z2-7]{2}@contoso\.com")
LONG_LOCAL = "newsletter-of-the-week-for-customers-4711@news.fabrikam.com"
"""Its SRS address in the name of john.work has a local part over 64 octets."""
TOO_LONG = f"{'a' * 64}@{'b' * 60}.{'c' * 60}.{'d' * 60}.example"


def compact(text: str) -> str:
    return text + '\n[srs]\nform = "compact"\n'


@pytest.fixture(scope="module")
def booted(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder(configuration=compact) as forwarder:
        yield forwarder


@pytest.fixture
def forwarder(booted: Forwarder) -> Iterator[Forwarder]:
    yield booted
    booted.forget()


def until(attempt: Callable[[], bool]) -> None:
    """Repeat *attempt* until it succeeds: gatepost tries a store that was away anew every half second."""
    deadline = time.monotonic() + 20
    while not attempt():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def without_store(forwarder: Forwarder) -> Iterator[None]:
    """Put a folder in the place of the database, as if the disk were gone."""
    files = list(forwarder.stage.state_directory.glob("gatepost.db*"))
    for file in files:
        file.rename(file.with_name("away-" + file.name))
    (forwarder.stage.state_directory / "gatepost.db").mkdir()
    try:
        yield
    finally:
        (forwarder.stage.state_directory / "gatepost.db").rmdir()
        for file in files:
            file.with_name("away-" + file.name).rename(file)


def test_forwarded_mail_leaves_with_a_compact_sender_and_its_ndr_comes_back(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com", "list@contoso.com")
    p1 = forwarder.only_mail().mail_from
    assert COMPACT.fullmatch(p1)
    assert forwarder.inside("list") == ["bob@fabrikam.com"]
    forwarder.stage.internet.messages.clear()
    encoded, quoted = p1.replace("+", "%2B").replace("=", "%3D"), f'"{p1.partition("@")[0]}"@contoso.com'
    for written in (p1, p1.lower(), encoded, quoted):
        forwarder.bob_writes(written, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [TO_BOB] * 4


def test_own_bounce_of_a_compact_sender_comes_back(forwarder: Forwarder) -> None:
    forwarder.stage.internet.refuse["john.home@example.com"] = "550 5.1.1 No such user"
    forwarder.bob_writes("john.work@contoso.com")
    assert forwarder.left() == [TO_BOB]


def test_sender_too_long_for_any_other_form_is_forwarded_and_gets_his_bounce(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com", sender=TOO_LONG)
    p1 = forwarder.only_mail().mail_from
    assert COMPACT.fullmatch(p1)
    forwarder.stage.internet.messages.clear()
    forwarder.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
    assert forwarder.left() == [("", TOO_LONG)]


def test_one_sender_has_one_address_a_day_and_another_has_another(forwarder: Forwarder) -> None:
    for sender in ("bob@fabrikam.com", "bob@fabrikam.com", "Bob@fabrikam.com"):
        forwarder.bob_writes("john.work@contoso.com", sender=sender)
    forwarder.stage.postfix.wait_until_idle()
    senders = [mail.mail_from for mail in forwarder.stage.internet.messages]
    assert (len(senders), len(set(senders))) == (3, 2)


def test_unknown_token_is_refused_at_rcpt(forwarder: Forwarder) -> None:
    transcript = forwarder.attempt("bounces+SRS=aaaaaaaaaaaaaaaa=JL@contoso.com", sender="", message=NDR)
    assert str(transcript.rcpt[0]).endswith("Recipient address rejected: SRS address that is not known here")


def test_without_the_store_mail_leaves_in_the_long_form(forwarder: Forwarder) -> None:
    start = len(forwarder.stage.log())
    with without_store(forwarder):
        forwarder.bob_writes("john.work@contoso.com")
        assert forwarder.left() == [("john.work+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "john.home@example.com")]
        forwarder.stage.wait_for_log(r"error: \w+: store ", start=start)
        assert forwarder.stage.metric("gatepost_errors_total", daemon="milter", kind="store") > 0

    def compact_again() -> bool:
        forwarder.stage.internet.messages.clear()
        forwarder.bob_writes("john.work@contoso.com")
        return COMPACT.fullmatch(forwarder.only_mail().mail_from) is not None

    until(compact_again)


def test_without_the_store_what_has_no_long_form_waits_for_it(forwarder: Forwarder) -> None:
    with without_store(forwarder):
        forwarder.bob_writes("john.work@contoso.com", sender=TOO_LONG)
        forwarder.wait_until_deferred()
        assert forwarder.stage.internet.messages == []
    forwarder.stage.postfix.flush()
    assert COMPACT.fullmatch(forwarder.stage.internet.wait(lambda mail: True).mail_from)
    forwarder.stage.postfix.wait_until_idle()
    assert len(forwarder.stage.internet.messages) == 1


def test_bounce_waits_for_the_store_and_inside_mail_does_not(boot_forwarder: Boot) -> None:
    with boot_forwarder(configuration=compact) as forwarder:  # policyd must not have opened the store before
        forwarder.bob_writes("john.work@contoso.com")
        p1 = forwarder.only_mail().mail_from
        forwarder.stage.internet.messages.clear()
        with without_store(forwarder):
            transcript = forwarder.attempt(p1, sender="", message=NDR, client="203.0.113.9")
            assert transcript.rcpt[0].code == 451
            forwarder.bob_writes("list@contoso.com")
            assert forwarder.inside("list") == ["bob@fabrikam.com"]
        until(lambda: forwarder.attempt(p1, sender="", message=NDR, client="203.0.113.9").accepted)
        assert forwarder.left() == [TO_BOB]


def test_only_a_local_part_over_64_octets_is_made_compact_by_default(boot_forwarder: Boot) -> None:
    with boot_forwarder() as forwarder:
        forwarder.bob_writes("john.work@contoso.com")
        forwarder.bob_writes("john.work@contoso.com", sender=LONG_LOCAL)
        forwarder.stage.postfix.wait_until_idle()
        short, long = (mail.mail_from for mail in forwarder.stage.internet.messages)
        if "fabrikam.com=bob@" in long:
            short, long = long, short
        assert short.startswith("john.work+SRS=")
        assert COMPACT.fullmatch(long)
        forwarder.stage.internet.messages.clear()
        forwarder.bob_writes(long, sender="", message=NDR, client="203.0.113.9")
        assert forwarder.left() == [("", LONG_LOCAL)]


@pytest.mark.skipif(programs() is None, reason="no PostgreSQL server")
def test_bounce_comes_back_by_way_of_another_host_with_the_same_keys_and_postgresql(boot_forwarder: Boot) -> None:
    with PostgreSQL() as server:
        url = server.database()

        def shared(text: str) -> str:
            return compact(text) + f'secret_file = "/etc/../{secret}"\n[store]\nurl = "{url}"\n'

        with boot_forwarder(configuration=compact) as first:
            secret = first.stage.state_directory / "srs.secret"
            first.stage.configuration.write_text(shared(first.stage.configuration.read_text().partition("\n[srs]")[0]))
            assert first.stage.reload() == "configuration reloaded"
            with boot_forwarder(configuration=shared) as second:
                first.bob_writes("john.work@contoso.com")
                p1 = first.only_mail().mail_from
                assert COMPACT.fullmatch(p1)
                second.bob_writes(p1, sender="", message=NDR, client="203.0.113.9")
                assert second.left() == [TO_BOB]
