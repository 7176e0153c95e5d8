# SPDX-License-Identifier: GPL-3.0-or-later
"""The kinds of mail that are sent, and what must become of each by the rules.

{id} in an address is the message's number, which stands in its header X-Soak, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from soak.hosts import FORWARDED_TO, GONE

HEAD_OFFICE, NO_CONNECTOR, ABROAD = "192.0.2.5", "192.0.2.77", ""
"""Clients: in a connector, in mynetworks only, and somewhere: another address for each message."""
SAME, NULL = "same", "null"
DENIED = r"550 5\.7\.64 (<[^>]*>: Recipient address rejected: )?TenantAttribution; Relay Access Denied \[\w{10}\]"
FORGED = r"550 5\.1\.1 .*"


class Copy(NamedTuple):
    """One copy that must be delivered to *rcpt*. p1: SAME, NULL, or the mailbox of the SRS address that it must be."""

    rcpt: str
    p1: str


class Kind(NamedTuple):
    """rcpts: what becomes of each recipient. refused: the reply, a regular expression, where the rules say so.

    notified: the sender must get a delivery status notification, made by this Postfix. certificate: of the host's.
    """

    host: str
    name: str
    weight: int
    client: str
    mail_from: str
    rcpts: Mapping[str, tuple[Copy, ...]]
    certificate: str = ""
    refused: str = ""
    notified: bool = False


_TEXT = "A line of text that is as good as any other.\r\n" * 20
BOB = "Bob{id}@fabrikam.com"
LONG = "a-mailbox-with-a-name-that-makes-the-srs-address-too-long-{id}@department.fabrikam.com"
APP = "app{id}@contoso.com"
OUT = "r{id}@example.com"
MARY = "mary@contoso.com"


def _out(p1: str) -> dict[str, tuple[Copy, ...]]:
    return {OUT: (Copy(OUT, p1),)}


_TO_MARY = {MARY: (Copy(MARY, SAME),)}
_FORWARDED = {"fwd@contoso.com": (Copy(FORWARDED_TO, "fwd"),)}
_REFUSED: dict[str, tuple[Copy, ...]] = {OUT: ()}
_GONE: dict[str, tuple[Copy, ...]] = {GONE: ()}
_HUB, _UPSTREAM, _POLICY = "forwarder", "exchange-online", "policy-only"

KINDS = (
    Kind(_HUB, "accepted", 4, HEAD_OFFICE, APP, _out(SAME)),
    Kind(_HUB, "certificate", 4, ABROAD, BOB, _out("bounces"), certificate="crm"),
    Kind(_HUB, "certificate-san", 4, ABROAD, BOB, _out("bounces"), certificate="san"),
    Kind(_HUB, "long-p1", 3, ABROAD, LONG, _out("bounces"), certificate="crm"),
    Kind(_HUB, "null-with-certificate", 1, ABROAD, "", _out(NULL), certificate="crm"),
    Kind(_HUB, "inside", 2, ABROAD, BOB, _TO_MARY),
    Kind(_HUB, "null-inside", 2, ABROAD, "", {MARY: (Copy(MARY, NULL),)}),
    Kind(_HUB, "forwarded", 6, ABROAD, BOB, _FORWARDED),
    Kind(_HUB, "forwarded-long", 2, ABROAD, LONG, {"fwd@contoso.com": (Copy(FORWARDED_TO, "fwd"),)}),
    Kind(_HUB, "forwarded-and-inside", 3, ABROAD, BOB, {**_FORWARDED, **_TO_MARY}),
    Kind(_HUB, "undeliverable", 2, ABROAD, BOB, _GONE, certificate="crm", notified=True),
    Kind(_HUB, "undeliverable-forwarded", 2, ABROAD, BOB, {"gone@contoso.com": ()}, notified=True),
    Kind(_HUB, "foreign-p1", 3, HEAD_OFFICE, BOB, _REFUSED, refused=DENIED),
    Kind(_HUB, "no-connector", 2, NO_CONNECTOR, APP, _REFUSED, refused=DENIED),
    Kind(_HUB, "null-outside", 2, HEAD_OFFICE, "", _REFUSED, refused=DENIED),
    Kind(_UPSTREAM, "accepted", 2, HEAD_OFFICE, APP, _out(SAME)),
    Kind(_UPSTREAM, "foreign-p1-mended", 4, HEAD_OFFICE, BOB, _out("bounces")),
    Kind(_UPSTREAM, "certificate", 3, ABROAD, LONG, _out("bounces"), certificate="crm"),
    Kind(_UPSTREAM, "inside", 1, ABROAD, APP, _TO_MARY),
    Kind(_UPSTREAM, "null-outside", 2, HEAD_OFFICE, "", _REFUSED, refused=DENIED),
    Kind(_POLICY, "accepted", 3, HEAD_OFFICE, APP, _out(SAME)),
    Kind(_POLICY, "certificate", 2, ABROAD, BOB, _out(SAME), certificate="crm"),
    Kind(_POLICY, "inside", 1, ABROAD, BOB, _TO_MARY),
    Kind(_POLICY, "foreign-p1", 2, HEAD_OFFICE, BOB, _REFUSED, refused=DENIED),
    Kind(_POLICY, "no-connector", 2, NO_CONNECTOR, APP, _REFUSED, refused=DENIED),
)


@dataclass
class Message:
    """One message on its way. rcpts: by recipient, the copies that it must become.

    accepted: queue ID by recipient. refused: reply by recipient. begun, ended: Unix time of the first and last attempt.
    srs: it is a bounce to this SRS address. put_off: how often each recipient was.
    """

    number: int
    kind: Kind
    client: str
    mail_from: str
    rcpts: dict[str, tuple[Copy, ...]]
    srs: str = ""
    accepted: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    begun: float = 0.0
    ended: float = 0.0
    put_off: int = 0
    unclear: int = 0
    due: float = 0.0

    @property
    def pending(self) -> list[str]:
        return [rcpt for rcpt in self.rcpts if rcpt not in self.accepted and rcpt not in self.refused]

    @property
    def octets(self) -> bytes:
        header_from = self.mail_from or "MAILER-DAEMON@example.com"
        return (
            f"From: {header_from}\r\nTo: you@example.com\r\nSubject: {self.kind.name}\r\nX-Soak: {self.number}\r\n"
            f"Message-Id: <{self.number}@soak.example>\r\nDate: Sat, 1 Aug 2026 12:00:00 +0200\r\n\r\n{_TEXT}"
        ).encode()


def message(number: int, kind: Kind, client: str) -> Message:
    """Make the message *number* of a kind; *client* is its address where the kind says none."""

    def named(text: str) -> str:
        return text.replace("{id}", str(number))

    rcpts = {
        named(rcpt): tuple(Copy(named(copy.rcpt), copy.p1) for copy in copies) for rcpt, copies in kind.rcpts.items()
    }
    return Message(number, kind, kind.client or client, named(kind.mail_from), rcpts)


def bounce(number: int, host: str, srs: str, original: str, client: str) -> Message:
    """Make a bounce to the SRS address of *original*, as another site sends it."""
    kind = Kind(host, "bounce", 0, client, "", {srs: (Copy(original, NULL),)})
    return Message(number, kind, client, "", dict(kind.rcpts), srs=srs)


def forged(number: int, host: str, srs: str, client: str) -> Message:
    """Make a bounce to *srs* with a hash that no key made."""
    wrong = re.sub(r"(?<=\+SRS=)(.)", lambda found: "b" if found[1].lower() == "a" else "a", srs, count=1)
    kind = Kind(host, "bounce-forged", 0, client, "", {wrong: ()}, refused=FORGED)
    return Message(number, kind, client, "", dict(kind.rcpts))


def number_of(content: bytes) -> tuple[int, bool]:
    """Return the number of a message that was delivered, and whether this is a notification about it; -1 for none."""
    header, _, body = content.partition(b"\r\n\r\n")
    for part, notification in ((header, False), (body, True)):
        found = re.search(rb"(?m)^X-Soak: (\d+)\r?$", part)
        if found:
            return int(found[1]), notification
    return -1, False
