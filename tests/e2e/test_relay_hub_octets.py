# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay hub: octets that are no UTF-8, and addresses and headers made to be read in two ways.

Whatever Postfix lets through to the milter, the mail passes rightly or is clearly refused, and no worker dies of it.
The hub has rule set legacy, which reads headers too, and `smtputf8_enable = no`, without which Postfix itself refuses
such octets in commands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Callable

import pytest

from gatepost.admin.nexthop import Received
from gatepost.admin.stage import Stage, Transcript, transact

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
local_header_rewrite_clients =
smtputf8_enable = no
"""
REFUSED = r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]"
P2_ACCEPTED = b"From: app@contoso.com\r\n\r\nhello\r\n"
P2_FOREIGN = b"From: bob@fabrikam.com\r\n\r\nhello\r\n"


def legacy(text: str) -> str:
    text = text.replace('mode = "monitor"', 'mode = "enforce"')
    return text.replace('requirements = "2023-11-01"', 'requirements = "legacy"')


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, configuration=legacy)


@pytest.fixture(autouse=True)
def _survives(hub: Stage) -> Iterator[None]:
    """Check after each test that no worker died and that gatepost counted no fault of its own."""
    yield
    assert not re.search(r"worker \d+ (died|silent)|internal error", hub.log())
    assert hub.metric("gatepost_errors_total") == 0


def text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def send(hub: Stage, sender: bytes, rcpt: bytes, message: bytes = P2_ACCEPTED, login: str = "") -> Transcript:
    return hub.send(text(sender), text(rcpt), message, login=login)


def arrived(hub: Stage, rcpt: bytes) -> Received:
    return hub.internet.wait(lambda mail: mail.rcpt_to == [text(rcpt)])


# Octets


def test_helo_name_that_is_no_utf8_keeps_no_mail_away(hub: Stage) -> None:
    with hub.session(helo=b"\xff\xfe.example") as smtp:
        assert transact(smtp, "app@contoso.com", "helo@example.com").accepted
    arrived(hub, b"helo@example.com")


def test_accepted_p1_that_is_no_utf8_passes_untouched(hub: Stage) -> None:
    assert send(hub, b"b\xe4r@contoso.com", b"p1@example.com").accepted
    assert arrived(hub, b"p1@example.com").mail_from == text(b"b\xe4r@contoso.com")


def test_foreign_p1_that_is_no_utf8_cannot_be_rewritten_and_is_refused_with_553(hub: Stage) -> None:
    reply = send(hub, b"b\xe4r@fabrikam.com", b"x@example.com", login="mary").last
    assert str(reply).startswith("553 5.1.7 Sender address is too long or malformed")


def test_recipient_that_is_no_utf8_is_relayed_as_it_is(hub: Stage) -> None:
    assert send(hub, b"bob@fabrikam.com", b"\xe4@example.com").accepted
    assert arrived(hub, b"\xe4@example.com").mail_from.startswith("bounces+SRS=")


def test_inside_recipient_that_is_no_utf8_gets_its_mail(hub: Stage) -> None:
    assert send(hub, b"bob@fabrikam.com", b"\xe4@contoso.com", P2_FOREIGN).accepted


def test_srs_hash_that_is_no_utf8_is_no_srs_address(hub: Stage) -> None:
    transcript = send(hub, b"", b"bounces+SRS=\xe4aaaaaaa=AA=fabrikam.com=bob@contoso.com")
    assert transcript.accepted
    hub.inside.wait(lambda mail: mail.rcpt_to[0].startswith("bounces+SRS=\udce4"))


def test_header_value_that_is_no_utf8_still_shows_its_address(hub: Stage) -> None:
    message = b"From: \xff\xfe <app@contoso.com>\r\n\r\nhello\r\n"
    assert send(hub, b"bob@fabrikam.com", b"v@example.com", message).accepted
    assert b"From: \xff\xfe <app@contoso.com>\r\n" in arrived(hub, b"v@example.com").content


def test_line_that_is_no_header_because_its_name_is_no_ascii_ends_the_headers(hub: Stage) -> None:
    message = b"Fr\xc3\xb6m: x\r\nFrom: app@contoso.com\r\n\r\nhello\r\n"
    assert re.fullmatch(REFUSED, str(send(hub, b"bob@fabrikam.com", b"x@example.com", message).last))


def test_smtputf8_enabled_postfix_refuses_such_octets_itself(boot: Callable[..., Stage]) -> None:
    stage = boot("relay-hub", before=HUB, after="smtputf8_enable = yes", configuration=legacy)
    assert str(send(stage, b"b\xe4r@contoso.com", b"x@example.com").last) == "500 5.5.2 Error: bad UTF-8 syntax"


# Two ways to read


@pytest.mark.parametrize(
    "header",
    [
        b'From: "app@contoso.com" <bob@fabrikam.com>\r\n',
        b"From: =?utf-8?q?app=40contoso.com?= <bob@fabrikam.com>\r\n",
        b"From: app@contoso.com\xff\r\n",
        b"From: app@contoso.com.fabrikam.com\r\n",
        b"From: app@contoso.com@fabrikam.com\r\n",
        b"X-From: app@contoso.com\r\n",
        b"Subject: x\r\n From: app@contoso.com\r\n",
    ],
)
def test_from_that_only_looks_accepted_is_refused(hub: Stage, header: bytes) -> None:
    reply = send(hub, b"bob@fabrikam.com", b"x@example.com", header + b"\r\nhello\r\n").last
    assert re.fullmatch(REFUSED, str(reply))


@pytest.mark.parametrize(
    "sender",
    [b"@contoso.com:bob@fabrikam.com", b"bob@contoso.com@fabrikam.com", b"fabrikam.com!bob", b"bob@sub.contoso.com"],
)
def test_p1_that_only_looks_accepted_is_refused(hub: Stage, sender: bytes) -> None:
    assert re.fullmatch(REFUSED, str(send(hub, sender, b"x@example.com", P2_FOREIGN).last))


@pytest.mark.parametrize(
    "rcpt",
    [
        b"@contoso.com:x@example.com",
        b"x%example.com@mail.contoso.com",
        b"example.com!x@mail.contoso.com",
        b'"x@example.com"@mail.contoso.com',
        b"x%example.com",
        b"x@example.com.",
        b"x@[192.0.2.9]",
    ],
)
def test_outside_recipient_that_only_looks_inside_is_refused(hub: Stage, rcpt: bytes) -> None:
    """mail.contoso.com is this Postfix: it sends such mail on to example.com."""
    assert re.fullmatch(REFUSED, str(send(hub, b"bob@fabrikam.com", rcpt, P2_FOREIGN).last))


@pytest.mark.parametrize("rcpt", [b"Mary@CONTOSO.com", b"mary@contoso.com.", b"postmaster"])
def test_inside_recipient_in_an_odd_spelling_gets_its_mail_r2(hub: Stage, rcpt: bytes) -> None:
    assert send(hub, b"bob@fabrikam.com", rcpt, P2_FOREIGN).accepted
