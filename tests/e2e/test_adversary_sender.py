# SPDX-License-Identifier: GPL-3.0-or-later
"""Envelope addresses that are written to be read in two ways.

The oracle is the next hop. Whatever a host that is known by its IP address alone has written after MAIL FROM, nothing
leaves with a P1 that is in no accepted domain, and no null sender does (R1, R4, R5); whatever a stranger has written
after RCPT TO, nothing leaves.
"""

from __future__ import annotations

import contextlib
import re
import smtplib
import socket
from collections.abc import Iterator
from typing import Callable

import pytest

from gatepost.admin.stage import Stage, command

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
local_header_rewrite_clients =
"""
STRANGER = "198.51.100.7"
REFUSED = r"550 5\.7\.64 .*TenantAttribution; Relay Access Denied \[\w{10}\]"
SYNTAX = r"(501 5\.1\.7|555 5\.5\.4|500 5\.5\.2) .*"

# What Postfix makes of each, seen with 3.7. "" is the null sender.
REFUSED_BY_THE_RULE = [
    "<>",
    '<"">',
    "<(@contoso.com>",
    "<(@contoso.com)>",
    "<(a)(@contoso.com>",
    '<"app@contoso.com"@evil.example>',
    "<@contoso.com:bob@evil.example>",
    "<@contoso.com,@contoso.com:bob@evil.example>",
    "<app%contoso.com@evil.example>",
    "<contoso.com!app@evil.example>",
    "<evil.example!bob>",
    "<bob%evil.example>",
    "<bob>",
    "<bob@evil.example(@contoso.com>",
    "<bob@evil.example(@contoso.com)>",
    "<app@contoso.com@evil.example>",
    r"<app\@contoso.com@evil.example>",
    "<app@sub.contoso.com>",
    "<app@contoso.com.evil.example>",
    "<app@evilcontoso.com>",
    "<app@c0ntoso.com>",
    "<app@_.contoso.com>",
    "<app@contoso.co>",
    "<app@[192.0.2.5]>",
    "<app@[IPv6:::1]>",
]
NOT_ASCII = [
    "<app@c\u00f6ntoso.com>",
    "<app@\u0441ontoso.com>",
    "<app@\uff43ontoso.com>",
    "<app@contoso\u3002com>",
    "<app@conto\u017fo.com>",
    "<app@contoso.com\u200b>",
    "<app@con\u00adtoso.com>",
    "<app@\u202emoc.osotnoc>",
]
NO_ADDRESS = [
    "<app@contoso.com..>",
    "<app@contoso..com>",
    "<app@.contoso.com>",
    "<app@>",
    r"<app@contoso.com\>",
    "<app@contoso.com><bob@evil.example>",
    "<bob@evil.example>app@contoso.com",
    "<> app@contoso.com",
    "<bob@evil.example,app@contoso.com>",
    "<bob@evil.example;app@contoso.com>",
    "<bob@evil.example\tapp@contoso.com>",
    "<app@contoso.com\0@evil.example>",
    "<bob@evil.example\0@contoso.com>",
    "<bob@evil.example\n@contoso.com>",
    "<app@contoso.com:25>",
    "<app@evil.example#contoso.com>",
    "<app@contoso.com%evil.example>",
    "<app@xn--contoso-.com>",
]
LEAVES_AS_CONTOSO = [
    "<app@CONTOSO.COM>",
    "<app@contoso.com.>",
    "<app@contoso.com >",
    "<<app@contoso.com>>",
    "app@contoso.com",
    "bob@evil.example<app@contoso.com>",
    "<>app@contoso.com",
    '<"app"@contoso.com>',
    '<"bob@evil.example"@contoso.com>',
    '<"bob@evil.example> BODY=8BITMIME <"@contoso.com>',
    '<"bob@evil.example>, action=pass, x=<"@contoso.com>',
    "<bob@evil.example@contoso.com>",
    "<bob@evil.example\r@contoso.com>",
    "<bob%evil.example@contoso.com>",
    "<evil.example!bob@contoso.com>",
    "<@evil.example:app@contoso.com>",
    "<contoso.com!app>",
    "<group:app@contoso.com;>",
    "<\u00e4pp@contoso.com>",
]
"""What Postfix itself reads as an address of contoso.com, however it may look."""


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"')


@pytest.fixture(scope="module", params=["yes", "no"], ids=["SMTPUTF8", "no SMTPUTF8"])
def hub(boot: Callable[..., Stage], request: pytest.FixtureRequest) -> Stage:
    return boot("relay-hub", before=HUB, after=f"smtputf8_enable = {request.param}", configuration=enforcing)


@pytest.fixture(autouse=True)
def _survives(hub: Stage) -> Iterator[None]:
    yield
    hub.internet.messages.clear()
    assert not re.search(r"worker \d+ (died|silent)|internal error", hub.log())


def attempt(
    stage: Stage, path: str, rcpt: str = "<x@example.com>", options: str = "", client: str = "192.0.2.5"
) -> str:
    """Send a message with *path* after MAIL FROM and *rcpt* after RCPT TO; return the last reply."""
    with stage.session(client=client) as smtp:
        for line in (f"MAIL FROM:{path}{options}", f"RCPT TO:{rcpt}", "DATA"):
            reply = command(smtp, line)
            if reply.code not in (250, 354):
                return str(reply)
        return str(command(smtp, "From: x\r\n\r\nhello\r\n."))


def left(stage: Stage) -> list[str]:
    """Return the P1 of all that has left, once the queue is at rest."""
    stage.postfix.wait_until_idle()
    return [mail.mail_from for mail in stage.internet.messages]


@pytest.mark.parametrize("path", REFUSED_BY_THE_RULE)
def test_sender_in_no_accepted_domain_is_refused_however_it_is_written(hub: Stage, path: str) -> None:
    assert re.fullmatch(REFUSED, attempt(hub, path))


@pytest.mark.parametrize("options", ["", " SMTPUTF8"], ids=["", "declared"])
@pytest.mark.parametrize("path", NOT_ASCII)
def test_look_alike_of_an_accepted_domain_is_refused(hub: Stage, path: str, options: str) -> None:
    assert re.fullmatch(f"{REFUSED}|{SYNTAX}", attempt(hub, path, options=options))


@pytest.mark.parametrize("path", NO_ADDRESS)
def test_what_is_no_address_is_refused_by_postfix(hub: Stage, path: str) -> None:
    assert re.fullmatch(SYNTAX, attempt(hub, path))


@pytest.mark.parametrize(
    "path", [f"<{'a' * 8000}@contoso.com>", f"<bob@{'e' * 8000}@contoso.com>", f"<app@{'a.' * 4000}contoso.com>"]
)
def test_sender_of_8_kb_is_refused(hub: Stage, path: str) -> None:
    with contextlib.suppress(smtplib.SMTPResponseException):  # Postfix 3.10 takes the rest of the line for commands
        assert attempt(hub, path).startswith("501 ")
    assert left(hub) == []


@pytest.mark.parametrize("path", LEAVES_AS_CONTOSO)
def test_sender_that_postfix_reads_as_ours_leaves_as_postfix_reads_it(hub: Stage, path: str) -> None:
    assert attempt(hub, path).startswith("250 ")
    (p1,) = left(hub)
    assert p1.lower().endswith("@contoso.com")


def test_second_message_smuggled_behind_a_bare_line_feed_is_under_the_rule_too(hub: Stage) -> None:
    smuggled = (
        b"MAIL FROM:<bob@evil.example>\r\nRCPT TO:<y@example.com>\r\nDATA\r\nFrom: ceo@contoso.com\r\n\r\nx\r\n.\r\n"
    )
    for end in (b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n\0.\r\n", b"\r\n.\n", b"\r.\r\n", b"\n.\r"):
        with hub.session() as smtp:
            for line in ("MAIL FROM:<app@contoso.com>", "RCPT TO:<x@example.com>", "DATA"):
                command(smtp, line)
            assert smtp.sock
            smtp.sock.sendall(b"From: app@contoso.com\r\n\r\nhello" + end + smuggled + b"\r\n.\r\nQUIT\r\n")
            smtp.sock.shutdown(socket.SHUT_WR)
            while smtp.sock.recv(4096):
                pass
    assert set(left(hub)) <= {"app@contoso.com"}


def test_commands_in_one_packet_with_starttls_in_it_are_under_the_rule(hub: Stage) -> None:
    with hub.session() as smtp:
        assert smtp.sock
        smtp.sock.sendall(
            b"STARTTLS\r\nMAIL FROM:<bob@evil.example>\r\nRCPT TO:<x@example.com>\r\nDATA\r\nx\r\n.\r\nQUIT\r\n"
        )
        smtp.sock.shutdown(socket.SHUT_WR)
        while smtp.sock.recv(4096):
            pass
    assert left(hub) == []


# Recipients


OUTSIDE_IN_DISGUISE = [
    "<x@example.com(@contoso.com>",
    "<()x@example.com>",
    "<x@contoso.com>x@example.com",
    "<x@example.com,y@contoso.com>",
    "x@contoso.com <x@example.com>",
    '<"x@example.com"@contoso.com>',
    '<"x@example.com"@mail.contoso.com>',
    '<"x%example.com"@mail.contoso.com>',
    '<"x@example.com">',
    "<x%example.com>",
    "<example.com!x>",
    "<x%example.com@>",
    "<x%example.com@mail.contoso.com>",
    "<example.com!x@mail.contoso.com>",
    "<x%example.com@[127.0.0.1]>",
    "<@contoso.com:x@example.com>",
    "<@contoso.com,@mail.contoso.com:x@example.com>",
    "<x@example.com@contoso.com>",
    r"<x\@example.com@contoso.com>",
    "<x@contoso.com@example.com>",
    "<x@contoso.com.example.com>",
    "<x@sub.contoso.com>",
    "<x@contoso.com\0@example.com>",
    "<x@contoso.com\r@example.com>",
    "<x@contoso.com\n@example.com>",
    "<group:x@example.com;>",
    "<x@example.com:x@contoso.com>",
    "<x@contos\u043e.com>",
    "<x@\uff43ontoso.com>",
    "<x@[192.0.2.99]>",
]


@pytest.mark.parametrize("sender", ["<app@contoso.com>", "<>"])
@pytest.mark.parametrize("rcpt", OUTSIDE_IN_DISGUISE)
def test_nothing_leaves_for_a_stranger_however_the_recipient_is_written(hub: Stage, rcpt: str, sender: str) -> None:
    options = "" if rcpt.isascii() else " SMTPUTF8"
    assert attempt(hub, sender, rcpt, options, client=STRANGER)[0] in "45"


# Where there is no milter, policyd sees what Postfix has read


@pytest.fixture(scope="module")
def policy_only(boot: Callable[..., Stage]) -> Stage:
    return boot("policy-only", before=HUB, configuration=enforcing, gatepost=["policyd"])


@pytest.mark.parametrize("path", [path for path in REFUSED_BY_THE_RULE if path not in ("<bob>",)])
def test_policyd_refuses_it_too(policy_only: Stage, path: str) -> None:
    assert re.fullmatch(REFUSED, attempt(policy_only, path))
    policy_only.internet.messages.clear()
