# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done with what the rule refuses, on the relay hub, the forwarder and without a milter.

192.0.2.5 is a host of head office (connector by IP address), bob@fabrikam.com a foreign P1, mary@contoso.com inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Callable

import pytest
from relayhub import HUB

from gatepost.admin.nexthop import NextHop
from gatepost.admin.stage import Stage

NO_ALIASES = """
virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse
virtual_alias_domains =
"""
BOB, MARY, OUT = "bob@fabrikam.com", "mary@contoso.com", "x@example.com"
REWRITTEN = r"bounces\+SRS=[a-z2-7]{8}=[A-Z2-7]{2}=fabrikam\.com=bob@contoso\.com"
APART = "452 4.5.3 Inside and outside recipients need a message each, please try again"
PLAIN = b"From: Bob <bob@fabrikam.com>\r\nSubject: x\r\n\r\nhello\r\n"


def acting(action: str) -> Callable[[str], str]:
    return lambda text: re.sub(r'mode = ".*"', f'mode = "enforce"\naction = "{action}"', text)


@pytest.fixture(scope="module", params=["relay-hub", "forwarder"])
def holding(boot: Callable[..., Stage], request: pytest.FixtureRequest) -> Stage:
    return boot(request.param, before=HUB, after=NO_ALIASES, configuration=acting("quarantine"))


@pytest.fixture(scope="module", params=["relay-hub", "forwarder"])
def tagging(boot: Callable[..., Stage], request: pytest.FixtureRequest) -> Stage:
    return boot(request.param, before=HUB, after=NO_ALIASES, configuration=acting("tag"))


def test_quarantined_message_waits_in_the_hold_queue_and_leaves_rewritten_once_it_is_released(holding: Stage) -> None:
    sent = holding.send(BOB, "held@example.com", PLAIN)
    assert sent.accepted
    holding.postfix.wait_until_idle()
    (waiting,) = [mail for mail in holding.postfix.queue() if mail["queue_id"] == sent.queue_id]
    assert waiting["queue_name"] == "hold"
    holding.wait_for_log(rf"{sent.queue_id}: action=quarantine, .* reason=nothing-accepted, reference=\w+$")
    holding.postfix.release(sent.queue_id)
    mail = holding.internet.wait(lambda mail: mail.rcpt_to == ["held@example.com"])
    assert re.fullmatch(REWRITTEN, mail.mail_from)


@pytest.mark.parametrize("rcpts", [(MARY, OUT), (OUT, MARY)])
def test_inside_recipient_beside_a_held_one_gets_the_message_untouched(holding: Stage, rcpts: tuple[str, str]) -> None:
    first = holding.send(BOB, rcpts, PLAIN)
    assert [str(reply) for reply in first.rcpt] == ["250 2.1.5 Ok", APART]
    again = holding.send(BOB, rcpts[1], PLAIN)
    assert again.accepted
    inside = first if rcpts[0] == MARY else again
    mail = holding.inside.wait(lambda mail: inside.queue_id.encode() in mail.content)
    assert mail.mail_from == BOB
    assert mail.content.endswith(PLAIN)


def test_message_that_the_rule_lets_relay_is_not_held(holding: Stage) -> None:
    assert holding.send("app@contoso.com", "free@example.com", PLAIN).accepted
    holding.internet.wait(lambda mail: mail.rcpt_to == ["free@example.com"])


def test_tagged_message_leaves_rewritten_with_one_header_that_says_why(tagging: Stage) -> None:
    forged = b"X-Gatepost-Relay: relay\r\nx-gatepost-relay : relay\r\nX-GATEPOST-RELAY:\r\n relay\r\n" + PLAIN
    assert tagging.send(BOB, "tagged@example.com", forged).accepted
    mail = tagging.internet.wait(lambda mail: mail.rcpt_to == ["tagged@example.com"])
    assert re.fullmatch(REWRITTEN, mail.mail_from)
    tags = re.findall(rb"(?im)^x-gatepost-relay.*", mail.content)
    assert len(tags) == 1
    assert re.fullmatch(rb"X-Gatepost-Relay: refused; reason=nothing-accepted; reference=[A-Z2-7]{10}\r?", tags[0])


@pytest.mark.parametrize("rcpt", [MARY, "plain@example.com"])
def test_forged_header_is_removed_from_what_passes_by_the_rule_too(tagging: Stage, rcpt: str) -> None:
    assert tagging.send("app@contoso.com", rcpt, b"X-Gatepost-Relay: relay\r\n" + PLAIN).accepted
    hop = tagging.inside if rcpt == MARY else tagging.internet
    mail = hop.wait(lambda mail: mail.rcpt_to == [rcpt])
    assert mail.content.endswith(b"\r\n" + PLAIN)
    assert b"x-gatepost-relay" not in mail.content.lower()


def test_inside_recipient_beside_a_tagged_one_gets_the_message_without_the_header(tagging: Stage) -> None:
    sent = tagging.send(BOB, (MARY, OUT), PLAIN)
    assert [str(reply) for reply in sent.rcpt] == ["250 2.1.5 Ok", APART]
    mail = tagging.inside.wait(lambda mail: sent.queue_id.encode() in mail.content)
    assert mail.content.endswith(b"\r\n" + PLAIN)
    assert b"X-Gatepost-Relay" not in mail.content


def test_tempfail_tells_the_client_to_try_again_and_the_inside_recipient_has_its_mail(
    boot: Callable[..., Stage],
) -> None:
    hub = boot("relay-hub", before=HUB, configuration=acting("tempfail"))
    sent = hub.send(BOB, (OUT, MARY), PLAIN)
    assert re.fullmatch(r"451 4\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]", str(sent.rcpt[0]))
    assert sent.accepted
    hub.inside.wait(lambda mail: mail.rcpt_to == [MARY] and mail.mail_from == BOB)


@pytest.fixture(scope="module")
def proxy_filter() -> Iterator[NextHop]:
    with NextHop() as hop:
        yield hop


@pytest.fixture(scope="module", params=[("relay-hub", "run"), ("policy-only", "policyd")], ids=["milter", "policyd"])
def filtering(boot: Callable[..., Stage], request: pytest.FixtureRequest, proxy_filter: NextHop) -> Stage:
    example, command = request.param
    after = f"smtpd_proxy_filter = 127.0.0.1:{proxy_filter.address[1]}\n"
    return boot(example, before=HUB, after=after, configuration=acting("quarantine"), gatepost=[command])


def test_proxy_filter_gets_only_what_the_rule_lets_relay(filtering: Stage, proxy_filter: NextHop) -> None:
    """What goes there never has a queue ID, nor does its end come to a milter: it can be refused, and not held."""
    before = len(proxy_filter.messages)
    sent = filtering.send(BOB, OUT, PLAIN)
    assert re.fullmatch(r"550 5\.7\.64 .*TenantAttribution; Relay Access Denied \[\w{10}\]", str(sent.last))
    assert filtering.send("app@contoso.com", OUT, PLAIN).accepted
    assert [mail.mail_from for mail in proxy_filter.messages[before:]] == ["app@contoso.com"]


def test_policyd_alone_holds_what_postfix_would_let_relay(boot: Callable[..., Stage]) -> None:
    server = boot("policy-only", before=HUB, configuration=acting("quarantine"), gatepost=["policyd"])
    sent = server.send(BOB, (OUT, MARY), PLAIN)
    assert sent.rcpt[0].code == 250
    assert sent.rcpt[1].code == 452
    server.postfix.wait_until_idle()
    assert [(mail["queue_name"], mail["queue_id"]) for mail in server.postfix.queue()] == [("hold", sent.queue_id)]
    assert server.send(BOB, MARY, PLAIN).accepted
    server.inside.wait(lambda mail: mail.rcpt_to == [MARY])
