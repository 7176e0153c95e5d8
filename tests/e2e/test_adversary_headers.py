# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers that a client sends to be taken for somebody else, on a real Postfix.

Under `legacy` the header From counts: a message is relayed only where a reader would find an accepted domain in it. A
header that only gatepost may set never survives. Whatever stands in a message, the log keeps its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Callable

import pytest

from gatepost.admin.stage import Stage, Transcript, command, transact

HUB = """
mynetworks = 127.0.0.0/8, 192.0.2.0/24
relay_domains = contoso.com
relay_transport = relay:[mailbox.contoso.com]:25
local_header_rewrite_clients =
"""
REFUSED = r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]"
FOREIGN = "bob@evil.example"


def legacy(text: str) -> str:
    text = text.replace('mode = "monitor"', 'mode = "enforce"') + "[ledger]\nsubjects = true\n"
    return text.replace('requirements = "2023-11-01"', 'requirements = "legacy"')


def tagging(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"\naction = "tag"')


@pytest.fixture(scope="module")
def hub(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, configuration=legacy)


@pytest.fixture(scope="module")
def tagger(boot: Callable[..., Stage]) -> Stage:
    return boot("relay-hub", before=HUB, configuration=tagging)


@pytest.fixture(autouse=True)
def _forget(hub: Stage) -> Iterator[None]:
    yield
    hub.internet.messages.clear()
    assert not re.search(r"worker \d+ (died|silent)|internal error", hub.log())


def send(stage: Stage, headers: bytes, body: bytes = b"hello\r\n") -> Transcript:
    return stage.send(FOREIGN, "x@example.com", headers + b"\r\n" + body)


@pytest.mark.parametrize(
    "headers",
    [
        b"",
        b"From:\r\n",
        b"From: <>\r\n",
        b"From: \r\n \r\n",
        b"From: undisclosed-recipients:;\r\n",
        b"From: app@contoso.com:;\r\n",
        b"From: app@contoso.com: bob@evil.example;\r\n",
        b"From: x: y: app@contoso.com;;\r\n",
        b"From: bob@evil.example (app@contoso.com)\r\n",
        b"From: bob@evil.example\r\n\t(\r\n\tapp@contoso.com\r\n\t)\r\n",
        b"From: bob@evil.example)app@contoso.com\r\n",
        b"From: bob@evil.example (\r\nFrom: app@contoso.com)\r\n",
        b'From: "\r\nFrom: " <app@contoso.com>\r\n',
        b'From: "app@contoso.com" <bob@evil.example>\r\n',
        b'From: "app@contoso.com"@evil.example\r\n',
        b'From: "Bob <app@contoso.com>"\r\n <bob@evil.example>\r\n',
        b"From: <@contoso.com:bob@evil.example>\r\n",
        b"From: app@contoso.com\r\n .evil.example\r\n",
        b"From: app@cont\r\n oso.com\r\n",
        b"From: app@sub.contoso.com\r\n",
        b"From: app@xn--contoso-.com\r\n",
        "From: app@\u0441ontoso.com\r\n".encode(),
        b"From: =?utf-8?b?YXBwQGNvbnRvc28uY29t?=\r\n",
        b"From: =?utf-8?q?app=40contoso=2Ecom?= <bob@evil.example>\r\n",
        b"From: =?utf-8?q?=3Capp=40contoso.com=3E=2C?= bob@evil.example\r\n",
        b"From: =?utf-8?q?bob?=@=?utf-8?q?contoso=2Ecom?=\r\n",
        b"From: app@=?utf-8?q?contoso=2Ecom?=\r\n",
        b"Sender: app@contoso.com\r\nReply-To: app@contoso.com\r\nResent-From: app@contoso.com\r\n",
        b"X-From: app@contoso.com\r\n",
        b"Subject: x\r\n\tFrom: app@contoso.com\r\n",
        b"Subject: x\0\rFrom: app@contoso.com\r\n",
        b"From\0: app@contoso.com\r\n",
        b"From app@contoso.com Sat Aug  1 12:00:00 2026\r\n",
    ],
)
def test_from_in_which_no_reader_finds_an_accepted_author_is_refused(hub: Stage, headers: bytes) -> None:
    assert re.fullmatch(REFUSED, str(send(hub, headers).last))


def test_from_in_the_body_or_in_a_part_does_not_count(hub: Stage) -> None:
    body = (
        b"From: app@contoso.com\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\nFrom: app@contoso.com\r\n\r\n"
        b"hello\r\n--b--\r\n"
    )
    headers = b"From: bob@evil.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n"
    assert re.fullmatch(REFUSED, str(send(hub, headers, body).last))


@pytest.mark.parametrize(
    "headers",
    [
        b"From: app@contoso.com\r\n",
        b"from:app@CONTOSO.com\r\n",
        b"From: bob@evil.example\r\nFrom: app@contoso.com\r\n",
        b"From: bob@evil.example, Anna <app@contoso.com>\r\n",
        b"From: staff: bob@evil.example, app@contoso.com;\r\n",
        b"From: Anna\r\n\t(the one)\r\n\t<app@contoso.com>\r\n",
        b'From: "bob@evil.example" <app@contoso.com>\r\n',
        b"From: =?utf-8?q?bob=40evil=2Eexample?= <app@contoso.com>\r\n",
    ],
)
def test_from_with_an_accepted_author_is_relayed_in_the_organization_s_name_whoever_stands_beside_him(
    hub: Stage, headers: bytes
) -> None:
    assert send(hub, headers).accepted
    hub.postfix.wait_until_idle()
    (mail,) = hub.internet.messages
    assert mail.mail_from.startswith("bounces+SRS=")
    assert headers in mail.content


# Headers that are gatepost's own


@pytest.mark.parametrize(
    "header",
    [
        b"X-Gatepost-Relay: passed\r\n",
        b"x-gatepost-relay:passed\r\n",
        b"X-Gatepost-Relay : passed\r\n",
        b"X-Gatepost-Relay\t: passed\r\n",
        b"X-Gatepost-Relay:\r\n passed\r\n",
        b"X-Gatepost-Relay: a\r\nX-Gatepost-Relay: b\r\n",
        b"X-Gatepost-Relay:: passed\r\n",
        b"A: b\nX-Gatepost-Relay: passed\r\n",
        b"A: b\rX-Gatepost-Relay: passed\r\n",
        b"A: " + b"b" * 120_000 + b"\r\nX-Gatepost-Relay: passed\r\n",
        b"From bob@evil.example Sat Aug  1 12:00:00 2026\r\nX-Gatepost-Relay: passed\r\n",
    ],
)
def test_header_that_only_gatepost_may_set_never_survives(tagger: Stage, header: bytes) -> None:
    tagger.internet.messages.clear()
    assert tagger.send("app@contoso.com", "x@example.com", header + b"From: app@contoso.com\r\n\r\nhello\r\n").accepted
    tagger.postfix.wait_until_idle()
    (mail,) = tagger.internet.messages
    assert not re.search(rb"(?im)^x-gatepost-relay\s*:", mail.content)


def test_header_that_gatepost_sets_has_nothing_of_the_client_in_it(tagger: Stage) -> None:
    tagger.internet.messages.clear()
    sender = '"a>\u202e, reason=p1-accepted <b"@evil.example'
    message = b"From: x\r\nX-Gatepost-Relay: passed\r\n\r\nhello\r\n"
    assert tagger.send(sender, "x@example.com", message, mail_options="SMTPUTF8").accepted
    tagger.postfix.wait_until_idle()
    (mail,) = tagger.internet.messages
    (value,) = re.findall(rb"(?im)^x-gatepost-relay:(.*)\r$", mail.content)
    assert re.fullmatch(rb" refused; reason=nothing-accepted; reference=[A-Z2-7]{10}", value)


# Log and terminal


HOSTILE = "\u202e\u2028\u2029\u200b\ufeff\u0085\u009b31m"


def test_no_text_of_a_client_begins_a_line_or_a_field_in_the_log_or_moves_a_terminal(hub: Stage) -> None:
    start = len(hub.log())
    with hub.session(helo=f"x>, action=pass, reference=ABCDEFGHIJ{HOSTILE}".encode()) as smtp:
        command(smtp, "NOOP \x1b[31m")
        sender, rcpt = f'"a>, action=pass{HOSTILE}, to=<b"@evil.example', f'"c>{HOSTILE}\x1b]0;t\x07"@example.com'
        message = f"From: {HOSTILE} <bob@evil.example>\r\nSubject: \x1b[31m{HOSTILE}\r\n\r\nhello\r\n".encode()
        assert not transact(smtp, sender, rcpt, message, mail_options="SMTPUTF8").accepted
        assert not transact(smtp, sender, "x@example.com", message, mail_options="SMTPUTF8").accepted
    line = hub.wait_for_log(r".*action=reject.*reference=\w+$", start=start)[0]
    logged = hub.log()[start:]
    assert all(character.isprintable() for character in logged.replace("\n", ""))
    assert [f"{name}=" for name in re.findall(r"(?:^|, |: )(\w+)=(?=[^=]*)", re.sub("<[^>]*>", "<>", line))] == [
        f"{name}=" for name in ("action", "from", "to", "client", "helo", "organization", "reason", "reference")
    ]
    reference = line[-10:]
    for arguments in (["explain", reference], ["explain", reference, "--json"], ["status"]):
        done = hub.gatepost(*arguments)
        assert done.returncode == 0
        assert all(character.isprintable() for character in (done.stdout + done.stderr).replace("\n", ""))
