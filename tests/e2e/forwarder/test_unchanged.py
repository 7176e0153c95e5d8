# SPDX-License-Identifier: GPL-3.0-or-later
"""Headers and body of what leaves are byte for byte what came in; only Received lines are added (S6)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

if TYPE_CHECKING:
    from .conftest import Boot, Forwarder

MESSAGES = {
    "no Date, no Message-Id, a bare From": b"From: bob\r\nTo: john\r\n\r\nhello\r\n",
    "no header": b"\r\nhello\r\n",
    "no body": b"From: bob@fabrikam.com\r\n",
    "nothing": b"\r\n",
    "998-octet lines": b"X-Long: " + b"x" * 990 + b"\r\nFrom: bob\r\n\r\n" + b"y" * 998 + b"\r\nz\r\n",
    "longer lines": b"From: bob\r\n\r\n" + b"y" * 10_000 + b"\r\nz\r\n",
    "8-bit text": b"From: bob\r\nSubject: caf\xe9\r\nX-Raw: \xff\xfe\r\n\r\nna\xefve \xe4\xff\x80\r\n",
    "8-bit MIME": b"From: bob\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\nna\xefve\r\n",
    "dots": b"From: bob\r\n\r\n.\r\n..\r\n.x\r\n...\r\n",
    "blanks at line ends": b"From: bob \t\r\nSubject:\tx  \r\n\ty \r\n  \r\n\r\nhello \t \r\n\r\n\r\n",
    "addresses without a domain": b"From: bob\r\nTo: a, (c) b@ex, <c>\r\nCc: undisclosed:;\r\nSender: @\r\n\r\nx\r\n",
    "broken MIME": b'From: bob\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n'
    b"Content-Transfer-Encoding: base64\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b\r\n\r\nunclosed\r\n",
    "Received, DKIM and SRS headers": b"Received: from x by mail.contoso.com (Postfix) id 0000; y\r\n"
    b"DKIM-Signature: v=1\r\nARC-Seal: i=1\r\nFrom: bob\r\n\r\nx\r\n",
}
MASTER_CF = """
smtp inet n - y - - smtpd
  -o local_header_rewrite_clients=
smtp unix - - y - - smtp
  -o smtp_line_length_limit=0
"""
"""The clients of these tests are on loopback, for which Postfix adds what is missing; and its client would fold lines.
Both as usual on the hop, unless the example prevents it."""
_RECEIVED = rb"Received: [^\r]*(?:\r\n\t[^\r]*)*\r\n"


@pytest.fixture(scope="module")
def booted(boot_forwarder: Boot) -> Iterator[Forwarder]:
    with boot_forwarder(master_before=MASTER_CF) as forwarder:
        yield forwarder


@pytest.fixture
def forwarder(booted: Forwarder) -> Iterator[Forwarder]:
    yield booted
    booted.forget()


@pytest.mark.parametrize("message", list(MESSAGES.values()), ids=list(MESSAGES))
@pytest.mark.parametrize("declared", ["BODY=8BITMIME", ""], ids=["8BITMIME", "undeclared"])
def test_virtual_alias_adds_received_only(forwarder: Forwarder, message: bytes, declared: str) -> None:
    forwarder.bob_writes("john.work@contoso.com", message=message, mail_options=declared)
    mail = forwarder.only_mail()
    assert mail.mail_from.startswith("john.work+SRS=")
    assert re.fullmatch(_RECEIVED * 2 + re.escape(message), mail.content)


@pytest.mark.parametrize("message", list(MESSAGES.values()), ids=list(MESSAGES))
def test_forward_file_adds_received_and_delivered_to_only(forwarder: Forwarder, message: bytes) -> None:
    forwarder.bob_writes("games@contoso.com", message=message, mail_options="BODY=8BITMIME")
    mail = forwarder.only_mail()
    assert mail.mail_from.startswith("games+SRS=")
    delivered_to = b"Delivered-To: games@contoso.com\r\n"  # local(8) adds it, to break loops
    assert re.fullmatch(_RECEIVED * 2 + delivered_to + _RECEIVED + re.escape(message), mail.content)


def test_utf8_addresses_and_headers_are_forwarded_as_they_are(forwarder: Forwarder) -> None:
    message = "From: bøb@fabrikam.com\r\nSubject: smørrebrød\r\n\r\nx\r\n".encode()
    forwarder.bob_writes("john.work@contoso.com", message=message, sender="bøb@fabrikam.com", mail_options="SMTPUTF8")
    mail = forwarder.only_mail()
    assert re.fullmatch(r"john\.work\+SRS=.{8}=..=fabrikam\.com=bøb@contoso\.com", mail.mail_from)
    assert "SMTPUTF8" in mail.mail_options
    assert mail.content.endswith(message)


def test_mail_parameters_survive_the_hop(forwarder: Forwarder) -> None:
    forwarder.bob_writes("john.work@contoso.com", mail_options="BODY=8BITMIME RET=HDRS ENVID=x+2By")
    assert {"BODY=8BITMIME", "RET=HDRS", "ENVID=x+2By"} <= set(forwarder.only_mail().mail_options)


@pytest.mark.parametrize("mailbox", ["john.work", "john.alias", "games"])
def test_dkim_signature_still_verifies_at_the_next_hop(forwarder: Forwarder, mailbox: str) -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; p=" + b"".join(public.splitlines()[1:-1])

    def dns(name: bytes, timeout: int = 5) -> bytes:
        return record if name == b"sel._domainkey.fabrikam.com." else b""

    head = b"From: bob@fabrikam.com\r\nSubject:  two  blanks \r\nTo: john.work@contoso.com\r\n"
    message = head + b"\r\nhello \r\n na\xefve\r\n"
    simple = (b"simple", b"simple")
    signed = dkim.sign(message, b"sel", b"fabrikam.com", pem, canonicalize=simple) + message
    forwarder.bob_writes(f"{mailbox}@contoso.com", message=signed, mail_options="BODY=8BITMIME")
    mail = forwarder.only_mail()
    assert mail.mail_from.startswith(f"{mailbox}+SRS=")
    assert dkim.verify(mail.content, dnsfunc=dns)
    assert not dkim.verify(mail.content.replace(b"hello", b"hallo"), dnsfunc=dns)
