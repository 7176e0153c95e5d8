# SPDX-License-Identifier: GPL-3.0-or-later
"""One message as the milter collects it, and what its headers tell of the way that it came."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Optional, Protocol

from gatepost.milter import header_from
from gatepost.relay import Client, Organization
from gatepost.service.certificates import Shown
from gatepost.service.flow import Judgement, Treatment
from gatepost.service.hops import Hop, Hops
from gatepost.service.replies import Reply
from gatepost.service.snapshot import Snapshot

# Of Postfix, and of Dovecot's LMTP, which has no parenthesis behind the name.
_RECEIVED = re.compile(r"(?:^|\n\s)by (\S+)(?: \([^\n]*\))?(?: with \S+)?\s+id ([^\s;]+)")
FROM_LIMIT = 8192
_USUAL_FROM = re.compile(r'(?:"[\w .,@()-]*"|[\w =?/+-]*) ?<([\w.+=-]+@[\w.-]+)>|([\w.+=-]+@[\w.-]+)', re.ASCII)
_BY_SMTP = re.compile(r"\bwith (?:UTF8)?E?SMTPS?A?\b")
# What the MTA knows of the client is in parentheses, which it lets into no greeting: that may be [127.0.0.1], too.
_FROM_HERE = re.compile(r"from \S+ \([^()\n]*\[(?:127\.\d+\.\d+\.\d+|IPv6:::1)\]\)")


class Changes(Protocol):
    """What the end of a message can change of its envelope; each raises where the MTA has gone."""

    def sender(self, address: str) -> None: ...

    def add_recipient(self, address: str) -> None: ...

    def delete_recipient(self, path: str) -> None: ...

    def hold(self, reason: str) -> None: ...

    def add_header(self, name: str, value: str) -> None: ...

    def delete_header(self, name: str, index: int) -> None: ...


class Recipient(NamedTuple):
    """One that was let through RCPT and is no SRS address, with what was decided of it there.

    client: as it was known there. by_policyd: where policyd has decided on it, how that spells it in its record, else
    "".
    """

    rcpt: str
    judgement: Judgement
    client: Client
    by_policyd: str = ""


@dataclass
class Transaction:
    """One message. *reverse_path*: P1 without <>; *headers_from*: the values of its From headers, from_length: joined.

    client: as it is known at the present recipient. shown: what the MTA, or policyd, has told of its certificate.
    returning: SRS recipients as given, with the original sender that each stands for. returned_by_mta: those of them
    that the MTA has replaced itself. first: what was decided for the first recipient of all. spared: SPF lets P1 leave
    as it is; None: not asked. sieve: who redirected it, by Sieve's header. orcpt, hop: on the egress hop, the value of
    ORCPT and what ingress knew of the message. own_hosts: the names of this Postfix in Received lines, empty below the
    first line that is another's. refusal: of a message from sendmail(1), which can be answered at its end only.
    size_bytes: as the client declared it. ledger_reference: the message's in the ledger where it has no other. tags:
    how many headers that only gatepost may set it came with. given: P1 before the MTA completed it with a domain.
    """

    reverse_path: str
    client: Client
    shown: Shown
    bypassed: bool
    given: str = ""
    recipients: list[Recipient] = field(default_factory=list)
    returning: list[tuple[str, str]] = field(default_factory=list)
    returned_by_mta: set[str] = field(default_factory=set)
    first: Optional[Treatment] = None
    spared: Optional[bool] = None
    headers_from: list[str] = field(default_factory=list)
    from_length: int = 0
    p2_known: Optional[tuple[str, ...]] = None
    message_id: str = ""
    subject: str = ""
    size_bytes: Optional[int] = None
    received: bool = False
    sieve: str = ""
    egress_rcpt: str = ""
    orcpt: str = ""
    hop: Optional[Hop] = None
    own_hosts: Optional[set[str]] = None
    reference: str = ""
    ledger_reference: str = ""
    queue_id: str = ""
    refusal: Optional[Reply] = None
    tags: int = 0

    def add_from(self, value: str) -> None:
        """Take note of a From header; what nobody's From is as long as is left out, for strangers can send it."""
        length = self.from_length + len(value) + (2 if self.headers_from else 0)  # there may be a million empty ones
        if length <= FROM_LIMIT:
            self.from_length = length
            self.headers_from.append(value)
            self.p2_known = None

    @property
    def p2(self) -> tuple[str, ...]:
        """The addresses in the From headers so far: parsed once, for a thousand recipients may ask for them."""
        if self.p2_known is None:
            self.p2_known = header_addresses(self.headers_from)
        return self.p2_known

    def may_redirect(self, *, egress: bool, local: bool) -> bool:
        """Tell whether a Sieve header at this place can be of this host: above the line of the message's entrance.

        One from outside stands below that. On the egress hop lines of this host may stand above it.
        """
        if egress:
            return self.hop is None and self.own_hosts != set()
        return local and not self.received

    def hop_organization(self, snapshot: Snapshot) -> Optional[Organization]:
        """Return the organisation that ingress attributed the message to; None where that is not known here."""
        return snapshot.organization_by_digest.get(self.hop.organization) if self.hop else None

    def follow_received(self, value: str, hostname: str, hops: Hops, now: int) -> None:
        """Look the message up by the queue IDs of this Postfix, *hostname*.

        The topmost Received line's, and those below it for as long as they are its own; local(8) adds one for each
        forwarding.
        """
        found = _RECEIVED.search(value)
        if self.own_hosts is None:
            self.own_hosts = {hostname, found[1]} if found else set()
        if found is None or found[1] not in self.own_hosts:
            self.own_hosts = set()
            return
        self.hop = hops.get(found[2], now)
        self.reference = self.hop.reference if self.hop else ""
        if self.hop is None and _BY_SMTP.search(value) and not _FROM_HERE.match(value):
            self.own_hosts = set()  # the entrance, unknown; what stands below is the client's own


def header_addresses(values: Sequence[str]) -> tuple[str, ...]:
    """Return the addr-specs in the values of From headers, as they stand there (RFC 5322, 3.6.2)."""
    if len(values) == 1:
        usual = _USUAL_FROM.fullmatch(values[0].strip(" \t\r\n"))
        if usual:  # in a tenth of the time
            return (usual[1] or usual[2],)
    return tuple(address for value in values for address in header_from.addresses(value))
