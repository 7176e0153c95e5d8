# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients with certificates: what the tests of real TLS sessions share.

The hub serves contoso.com (connector crm.contoso.com) and fabrikam.com (connector *.fabrikam.com). Every client is on
loopback, in no connector by its address, and sends with a foreign P1: nothing but its certificate lets it relay (R1).
"""

from __future__ import annotations

import re
import shutil
import smtplib
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

from gatepost.admin.authority import Authority, Credentials
from gatepost.admin.stage import Reply, Stage, Transcript, command, transact

HUB = """
inet_protocols = all
mynetworks = 127.0.0.0/8, 203.0.113.0/24, [2001:db8::]/32
relay_domains = contoso.com, fabrikam.com
relay_transport = relay:[mailbox.contoso.com]:25
local_header_rewrite_clients =
smtpd_recipient_restrictions = permit
"""
FABRIKAM = """
[[organization]]
name = "fabrikam"
[[organization.accepted_domain]]
domain = "fabrikam.com"
[[organization.connector]]
name = "applications"
tls_sender_certificate_name = "*.fabrikam.com"
"""
FOREIGN = "app@vendor.example"
OUTSIDE = "x@example.com"
REFUSED = r"550 5\.7\.64 TenantAttribution; Relay Access Denied \[\w{10}\]"


def enforcing(text: str) -> str:
    return text.replace('mode = "monitor"', 'mode = "enforce"').replace("[relay]", FABRIKAM + "\n[relay]")


def folder(stage: Stage) -> Path:
    return stage.configuration.parent / "certificates"


def listed(stage: Stage, *credentials: Credentials) -> None:
    """Put certificates into the folder before gatepost starts."""
    folder(stage).mkdir(exist_ok=True)
    for item in credentials:
        shutil.copy(item.certificate, folder(stage))


class Clients:
    """Certificates of the hub's clients; those in *listed* are in the folder when gatepost starts."""

    def __init__(self, stage: Stage) -> None:
        ours, other = stage.authority, Authority(stage.root / "other", "Another CA")
        self.cn = ours.issue("crm.contoso.com")
        self.system = ours.issue("CRM System 1", ["files.contoso.net", "crm.contoso.com"])
        self.system_unlisted = ours.issue("CRM System 2", ["crm.contoso.com"])
        self.san_only = ours.issue(None, ["crm.contoso.com"])
        self.other_san_only = ours.issue(None, ["crm.fabrikam.net"])
        self.san_only_unlisted = ours.issue(None, ["crm.contoso.com"])
        self.wildcard = ours.issue("*.fabrikam.com")
        self.one_up = ours.issue("app.fabrikam.com")
        self.two_up = ours.issue("app.dev.fabrikam.com")
        self.self_signed = ours.issue("crm.contoso.com", self_signed=True)
        self.of_other_authority = other.issue("crm.contoso.com", ["crm.contoso.com"])
        self.expired = ours.issue("crm.contoso.com", ["crm.contoso.com"], expired=True)
        odd = Authority(stage.root / "odd", "Contoso +41 <CA> (ü)")
        with ours.file.open("ab") as trusted:
            trusted.write(odd.file.read_bytes())
        self.odd = odd.issue("Ü +41 <System>", ["crm.contoso.com"])
        self.odd_san_only = odd.issue(None, ["crm.contoso.com"])
        self.twin = ours.issue("Twin", ["crm.contoso.com", "files.contoso.net"])
        self.other_twin = ours.issue("Twin", ["files.contoso.net"])
        listed(stage, self.system, self.san_only, self.other_san_only, self.self_signed, self.expired)
        for number, item in enumerate((self.odd, self.odd_san_only, self.twin, self.other_twin)):
            shutil.copy(item.certificate, folder(stage) / f"more-{number}.pem")
        shutil.copy(self.of_other_authority.certificate, folder(stage) / "other.pem")


@contextmanager
def session(
    stage: Stage,
    certificate: Optional[Credentials],
    *,
    port: int = 0,
    source: tuple[str, int] = ("", 0),
    proxy: str = "",
    xclient: str = "",
) -> Iterator[smtplib.SMTP]:
    """Open a TLS session with *certificate*, from *source*. proxy: the PROXY line that a balancer sends before all."""
    connection = socket.create_connection(
        ("127.0.0.1", port or stage.postfix.smtp[1]), 30, source if source[1] else None
    )
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its port is free at once
    if proxy:
        connection.sendall(proxy.encode() + b"\r\n")
    smtp = smtplib.SMTP(timeout=30)
    smtp.sock = connection
    try:
        assert smtp.getreply()[0] == 220
        smtp.ehlo("app.contoso.com")
        smtp._host = "127.0.0.1"  # what the server's certificate is checked against
        assert smtp.starttls(context=stage.authority.client_context(certificate))[0] == 220
        smtp.ehlo("app.contoso.com")
        if xclient:
            assert command(smtp, f"XCLIENT {xclient}").code == 220
            command(smtp, "EHLO app.contoso.com")
        yield smtp
    finally:
        smtp.close()


def send(stage: Stage, certificate: Optional[Credentials], mail_from: str = FOREIGN, rcpt: str = OUTSIDE) -> Transcript:
    with session(stage, certificate) as smtp:
        return transact(smtp, mail_from, rcpt)


def refused(reply: Reply) -> bool:
    return re.fullmatch(REFUSED, str(reply)) is not None
