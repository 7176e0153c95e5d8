# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sites with gatepost that forward to each other over real SMTP, and clients that wish for a loop or a false name.

A bounce goes back to the sender by way of the forwarders and comes by no address twice; with the long form it takes two
steps, however long the mail was in the loop. What can't be delivered then ends: nothing answers a bounce.
"""

from __future__ import annotations

import re
import smtplib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Optional

import pytest
from realmta import Listener
from stages import NDR, shape

from gatepost.admin.nexthop import NextHop
from gatepost.admin.stage import Stage, transact

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

HOPS = 10
STRANGER, WITHOUT_MILTER = "198.51.100.7", "203.0.113.66"


class Internet(Listener):
    """Passes each message on to the site that its recipient's domain names, as from a stranger; all else to *rest*.

    seen: P1 and recipient of each message that was tried, in order, with the reply to its end, or to its recipient.
    """

    def __init__(self, rest: NextHop) -> None:
        super().__init__()
        self.sites: dict[str, Stage] = {}
        self.seen: list[tuple[str, str, str]] = []
        self._rest = rest

    def _session(self, client: socket.socket) -> None:
        lines = client.makefile("rb")
        client.sendall(b"220 router.example ESMTP\r\n")
        mail, rcpt = b"", b""
        target: Optional[smtplib.SMTP] = None
        for line in lines:
            verb = line[:4].upper()
            if verb == b"EHLO":
                client.sendall(b"250-router.example\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 DSN\r\n")
            elif verb == b"MAIL":
                mail = line
                client.sendall(b"250 2.1.0 Ok\r\n")
            elif verb == b"RCPT":
                rcpt, target = line, self._target(line)
                reply = _ask(target, mail) if target else b""
                client.sendall(_ask(target, line) if target and reply[:1] == b"2" else reply or b"550 5.1.2 No\r\n")
            elif verb == b"DATA" and target:
                reply = _ask(target, line)
                client.sendall(reply)
                if reply.startswith(b"354"):
                    content = b"".join(iter(lines.readline, b".\r\n"))
                    reply = _ask(target, content + b".\r\n")
                    self.seen.append((_path(mail), _path(rcpt), reply.decode().strip()))
                    client.sendall(reply)
            elif verb == b"QUIT":
                client.sendall(b"221 2.0.0 Bye\r\n")
                return
            else:
                client.sendall(b"250 2.0.0 Ok\r\n")

    def _target(self, line: bytes) -> smtplib.SMTP:
        site = self.sites.get(_path(line).rpartition("@")[2].lower())
        host, port = site.postfix.smtp if site else self._rest.address
        target = smtplib.SMTP(host, port, timeout=30)
        target.ehlo("router.example")
        if site:
            target.docmd(f"XCLIENT ADDR={STRANGER} NAME=[UNAVAILABLE]")
            target.ehlo("router.example")
        return target


def _ask(target: smtplib.SMTP, line: bytes) -> bytes:
    target.send(line)
    code, text = target.getreply()
    return b"%d %b\r\n" % (code, text.replace(b"\n", b" "))


def _path(line: bytes) -> str:
    found = re.search(rb"<(.*)>", line)
    return found[1].decode() if found else ""


class World:
    """Two sites, each with keys of its own; what leaves either goes to the other one, or to *rest*."""

    def __init__(self, contoso: Forwarder, tailspin: Forwarder, internet: Internet, rest: NextHop) -> None:
        self.contoso, self.tailspin, self.internet, self.rest = contoso, tailspin, internet, rest

    def send(self, site: Forwarder, sender: str, rcpt: str, message: bytes, client: str = STRANGER) -> None:
        assert site.stage.send(sender, rcpt, message, client=client).accepted

    def settle(self) -> list[tuple[str, str]]:
        """Return P1 and recipient of what came to rest outside, once nothing moves any more."""
        both = (self.contoso.stage.postfix, self.tailspin.stage.postfix)
        before = -1
        while before != len(self.internet.seen) or any(postfix.queue() for postfix in both):
            before = len(self.internet.seen)
            for postfix in both:
                postfix.wait_until_idle()
        return [(shape(mail.mail_from), rcpt) for mail in self.rest.messages for rcpt in mail.rcpt_to]

    def tries(self, sender: str) -> list[str]:
        return [rcpt for p1, rcpt, _ in self.internet.seen if p1 == sender]


@pytest.fixture(scope="module")
def sites(boot_forwarder: Boot) -> Iterator[World]:
    with ExitStack() as stack:
        rest = stack.enter_context(NextHop())
        internet = stack.enter_context(Internet(rest))
        out = (
            f"relayhost = [127.0.0.1]:{internet.port}\nhopcount_limit = {HOPS}\nsmtp_connection_cache_on_demand = no\n"
        )
        contoso = stack.enter_context(
            boot_forwarder(
                after=f"{out}smtpd_milter_maps = inline:{{ {{{WITHOUT_MILTER} = DISABLE}} }}\n"
                "virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse,"
                " inline:{ {john@contoso.com = carla@tailspin.example} {one@contoso.com = lost@example.com} }\n"
                "virtual_alias_domains =\n"
            )
        )
        tailspin = stack.enter_context(
            boot_forwarder(
                after=f"{out}myhostname = mail.tailspin.example\n"
                "mydestination = mail.tailspin.example, localhost, tailspin.example\n"
                "virtual_alias_maps = socketmap:unix:gatepost/policyd.sock:reverse,"
                " inline:{ {carla@tailspin.example = john@contoso.com} {two@tailspin.example = one@contoso.com} }\n"
                "virtual_alias_domains =\n",
                configuration=lambda text: text.replace("contoso.com", "tailspin.example"),
            )
        )
        internet.sites.update({"contoso.com": contoso.stage, "tailspin.example": tailspin.stage})
        yield World(contoso, tailspin, internet, rest)


@pytest.fixture
def long_form(sites: World) -> Iterator[None]:
    stages = sites.internet.sites.values()
    before = [stage.configuration.read_text() for stage in stages]
    for stage in stages:
        stage.configuration.write_text(stage.configuration.read_text() + '[srs]\nform = "long"\n')
        stage.reload()
    yield
    for stage, text in zip(stages, before):
        stage.configuration.write_text(text)
        stage.reload()


@pytest.fixture
def world(sites: World) -> Iterator[World]:
    yield sites
    sites.settle()
    sites.internet.seen.clear()
    sites.rest.messages.clear()
    sites.rest.refuse.clear()


MAIL = b"From: Bob <bob@fabrikam.com>\r\nSubject: x\r\nMessage-Id: <1@fabrikam.com>\r\n\r\nhello\r\n"


def test_bounce_of_mail_that_two_sites_forwarded_goes_back_in_two_steps_and_ends(world: World) -> None:
    world.rest.refuse["lost@example.com"] = "550 5.1.1 No such user"
    world.send(world.tailspin, "bob@fabrikam.com", "two@tailspin.example", MAIL)
    assert world.settle() == [("", "bob@fabrikam.com")]
    # seen at the end of each dialogue: the first one's may come later
    assert sorted(shape(rcpt) for rcpt in world.tries("")) == [
        "bob@fabrikam.com",
        "two+SRS=HASH=TT=fabrikam.com=bob@tailspin.example",
    ]


def test_bounce_that_the_sender_refuses_ends_there(world: World) -> None:
    for rcpt in ("lost@example.com", "bob@fabrikam.com"):
        world.rest.refuse[rcpt] = "550 5.1.1 No such user"
    world.send(world.tailspin, "bob@fabrikam.com", "two@tailspin.example", MAIL)
    assert world.settle() == []
    assert len(world.tries("")) <= 2


def test_mail_in_a_loop_ends_and_its_bounce_comes_by_no_address_twice(world: World) -> None:
    """Compact addresses tell other sites nothing, so the bounce goes back all the way that the mail has come."""
    world.send(world.contoso, "bob@fabrikam.com", "john@contoso.com", MAIL)
    assert world.settle() == [("", "bob@fabrikam.com")]
    back = world.tries("")
    assert len(back) == len(set(back)) <= HOPS
    assert max(len(p1) for p1, _, _ in world.internet.seen) <= 130


def test_mail_in_a_loop_ends_and_its_bounce_takes_two_steps_in_the_long_form(world: World, long_form: None) -> None:
    world.send(world.contoso, "bob@fabrikam.com", "john@contoso.com", MAIL)
    assert world.settle() == [("", "bob@fabrikam.com")]
    assert len([rcpt for rcpt in world.tries("") if "+SRS=" in rcpt]) <= 2


@pytest.mark.parametrize("sender", ["john@contoso.com", "one@contoso.com"])
def test_mail_in_a_loop_whose_sender_forwards_into_it_or_out_ends(world: World, sender: str) -> None:
    world.send(world.contoso, sender, "john@contoso.com", MAIL)
    assert {p1 for p1, _ in world.settle()} <= {""}
    assert len(world.tries("")) <= 3 * HOPS  # the bounce goes back, is forwarded into the loop, and ends there


def test_bounce_in_a_loop_of_two_sites_ends_and_makes_no_other(world: World) -> None:
    world.send(world.contoso, "", "john@contoso.com", NDR)
    assert world.settle() == []
    assert {p1 for p1, _, _ in world.internet.seen} == {""}
    assert not re.match("2", world.internet.seen[-1][2])


def test_sender_that_wraps_addresses_of_both_sites_is_undone_and_grows_no_more(world: World, long_form: None) -> None:
    """The attacker gets right addresses of both by sending mail through them, and puts one into the other."""
    world.send(world.contoso, "eve@evil.example", "one@contoso.com", MAIL)
    world.settle()
    by_contoso = world.internet.seen[-1][0]
    world.send(world.tailspin, by_contoso, "two@tailspin.example", MAIL)
    world.settle()
    nested = world.internet.seen[-2][0]
    assert nested.endswith("@tailspin.example")
    assert world.internet.seen[-1][0] == by_contoso
    world.internet.seen.clear()
    world.rest.messages.clear()
    world.send(world.tailspin, "", nested, NDR)
    assert world.settle() == [("", "eve@evil.example")]
    assert sorted(world.tries("")) == sorted([by_contoso, "eve@evil.example"])


def test_address_of_one_site_counts_for_nothing_at_the_other(world: World) -> None:
    world.send(world.contoso, "eve@evil.example", "one@contoso.com", MAIL)
    world.settle()
    local = world.internet.seen[-1][0].rpartition("@")[0]
    for sender in ("", "eve@evil.example"):
        reply = world.tailspin.stage.send(sender, f"{local}@tailspin.example", NDR, client=STRANGER).last
        assert "SRS address with a wrong hash" in reply.text


# The egress port


def hop_port(world: World) -> int:
    return int(world.contoso.stage.ports["10027"])


def test_egress_port_takes_nobody_elses_word_for_a_client_address(world: World) -> None:
    with smtplib.SMTP("127.0.0.1", hop_port(world), timeout=30) as smtp:
        smtp.ehlo("evil.example")
        assert not smtp.has_extn("xclient")
        assert smtp.docmd("XCLIENT ADDR=192.0.2.5 NAME=app.contoso.com")[0] >= 500
        assert not smtp.has_extn("auth")


def test_egress_port_is_open_on_one_address_of_loopback_only(world: World) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", hop_port(world)), timeout=5)


def test_mail_put_straight_into_the_egress_port_gets_no_mailbox_for_any_header(world: World) -> None:
    forged = (
        b"Received: from x (x [127.0.0.1])\r\n\tby mail.contoso.com (Postfix) with ESMTP id 4ZZZZZ9zzz;"
        b" Sat, 1 Aug 2026 12:00:00 +0000\r\nX-Sieve-Redirected-From: ceo@contoso.com\r\n"
    )
    with world.contoso.stage.session(client="", port=hop_port(world)) as smtp:
        sent = transact(
            smtp, "bob@fabrikam.com", "x@example.com", forged + MAIL, rcpt_options="ORCPT=rfc822;ceo@contoso.com"
        )
    assert sent.accepted
    assert world.settle() == [("bounces+SRS=HASH=TT=fabrikam.com=bob@contoso.com", "x@example.com")]


@pytest.mark.parametrize("sender", ["", "app@contoso.com", "bounces+SRS=aaaaaaaa=AA=x.example=y@contoso.com"])
def test_sender_that_needs_no_hop_is_put_off_there(world: World, sender: str) -> None:
    with world.contoso.stage.session(client="", port=hop_port(world)) as smtp:
        assert transact(smtp, sender, "x@example.com", MAIL).last.code == 451


@pytest.mark.parametrize("greeting", ["[127.0.0.1]", "localhost", "mail.contoso.com"])
def test_client_without_a_milter_gets_no_mailbox_by_lines_that_it_brings(world: World, greeting: str) -> None:
    """It puts the queue ID of mail that this host has sent it into a Received line of its own (smtpd_milter_maps)."""
    stage = world.contoso.stage
    known = stage.send("bob@fabrikam.com", "one@contoso.com", MAIL, client=STRANGER)
    world.settle()
    world.rest.messages.clear()
    forged = (
        b"Received: from a (a [198.51.100.7])\r\n\tby mail.contoso.com (Postfix) with ESMTP id "
        + known.queue_id.encode()
        + b";\r\n\tSat, 1 Aug 2026 12:00:00 +0000\r\n"
    )
    with stage.session(client=WITHOUT_MILTER, helo=greeting) as smtp:
        assert transact(smtp, "eve@evil.example", "one@contoso.com", forged + MAIL).accepted
    assert world.settle() == [("bounces+SRS=HASH=TT=evil.example=eve@contoso.com", "lost@example.com")]
