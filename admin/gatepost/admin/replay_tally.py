# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges the messages of a log by the configuration in force, and counts who would have been refused. Bounded memory.

A verdict depends on the client and on the domains of P1 and recipient, of which all that are nobody's here come to the
same, so it is reached once for each of these.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, Optional

from gatepost.admin.replay_message import ALIAS, Message, Origin
from gatepost.relay import Client, Mail, Result, RuleSet, normalize_domain
from gatepost.service import flow
from gatepost.service.addresses import domain_of, routed
from gatepost.service.certificates import Shown
from gatepost.service.reversal import Bounce, reverse
from gatepost.service.snapshot import Snapshot
from gatepost.srs import Classic, Exchange

GROUPS = 10_000
"""How many groups, hosts or domains are counted each before the rarest are put together."""
SAMPLES = 3
_VERDICTS = 30_000
_CLIENTS = 5_000
_DOMAINS = 50_000
_LONGEST_VALIDITY_DAYS = 1000


class Heading(Enum):
    """Under what a recipient is counted that is not simply let through."""

    REFUSED = "refused"
    CERTIFICATE_UNNAMED = "certificate-unnamed"
    """Refused, but the client showed a trusted certificate whose names are not in the log."""
    P2_UNSEEN = "p2-unseen"
    """Refused, unless P2 is accepted (rule set legacy)."""
    REJECTED = "rejected"
    """Refused, and the MTA did not take it anyway."""
    UPSTREAM = "upstream"
    """Let through here, and refused by Exchange Online."""


class Ruling(NamedTuple):
    """The verdict on a client, P1 domain and recipient domain, as far as it is counted. None: let through."""

    heading: Optional[Heading]
    organization: str
    reason: str
    upstream: str
    inside: bool


@dataclass(frozen=True)
class Sample:
    """One recipient of a group."""

    queue_id: str
    time: str
    reverse_path: str
    rcpt: str
    outcome: str
    size_bytes: int


@dataclass
class Group:
    """What is counted for one client, P1 domain, organisation and reason."""

    origin: Origin
    sender_domain: str
    organization: str
    reason: str
    messages: int = 0
    recipients: int = 0
    samples: list[Sample] = field(default_factory=list)


@dataclass
class Count:
    """Messages and recipients by key; of too many keys the rarest are dropped, *others* is what they counted."""

    counts: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    others: list[int] = field(default_factory=lambda: [0, 0])

    def add(self, key: tuple[str, ...], recipients: int) -> None:
        found = self.counts.get(key)
        if found is None:
            if len(self.counts) >= 2 * GROUPS:
                ordered = self.top()
                for _, (messages, number) in ordered[GROUPS:]:
                    self.others[0] += messages
                    self.others[1] += number
                self.counts = {name: list(numbers) for name, numbers in ordered[:GROUPS]}
            found = self.counts[key] = [0, 0]
        found[0] += 1
        found[1] += recipients

    def top(self) -> list[tuple[tuple[str, ...], tuple[int, int]]]:
        """Return the keys with messages and recipients, the most first."""
        ordered = sorted(self.counts.items(), key=lambda item: (-item[1][0], -item[1][1], item[0]))
        return [(key, (messages, recipients)) for key, (messages, recipients) in ordered]


@dataclass
class Section:
    """All that is counted under one heading."""

    messages: int = 0
    recipients: int = 0
    reasons: Count = field(default_factory=Count)
    hosts: Count = field(default_factory=Count)
    domains: Count = field(default_factory=Count)
    groups: dict[tuple[str, ...], Group] = field(default_factory=dict)
    others: list[int] = field(default_factory=lambda: [0, 0])

    def group(self, origin: Origin, sender_domain: str, organization: str, reason: str) -> Group:
        key = (origin.ip, origin.common_name, sender_domain, organization, reason)
        found = self.groups.get(key)
        if found is None:
            if len(self.groups) >= 2 * GROUPS:
                self._shrink()
            found = self.groups[key] = Group(origin, sender_domain, organization, reason)
        return found

    def _shrink(self) -> None:
        ordered = sorted(self.groups.items(), key=lambda item: -item[1].messages)
        for _, group in ordered[GROUPS:]:
            self.others[0] += group.messages
            self.others[1] += group.recipients
        self.groups = dict(ordered[:GROUPS])

    def top(self) -> list[Group]:
        """Return the groups, the largest first."""
        return sorted(self.groups.values(), key=lambda group: (-group.messages, -group.recipients))


class Tally:
    """Counts messages by *snapshot*'s rules. organization: count only what is attributed to it, "" for all.

    messages, recipients: those that clients sent, judged. inside, relayed: of the recipients, those that need no relay
    and those that are let through. hops, made_here: messages that are no client's, see `Message`. incomplete: those of
    which the log has not all lines; of them, unknown are those that could not be judged. restored: those whose P1 SRS
    had rewritten before it was logged.
    """

    def __init__(self, snapshot: Snapshot, organization: str = "") -> None:
        srs = snapshot.config.srs
        self.snapshot = snapshot
        self._organization = organization
        self._old = replace(  # a log may be older than srs.validity_days
            snapshot,
            exchange=Exchange(snapshot.keys, srs.hash_length, _LONGEST_VALIDITY_DAYS),
            classic=Classic(
                snapshot.keys,
                srs.srs0.separator,
                srs.srs0.hash_length,
                srs.srs0.hash_minimum,
                _LONGEST_VALIDITY_DAYS,
                srs.srs0.base64url,
            ),
        )
        self._rulings: dict[tuple[Origin, str, str], Ruling] = {}
        self._clients: dict[Origin, Client] = {}
        self._known: dict[str, str] = {}
        self.sections = {heading: Section() for heading in Heading}
        self.hosts = Count()
        self.messages = self.recipients = self.inside = self.relayed = self.made_here = self.hops = 0
        self.incomplete = self.unknown = self.restored = self.unrestored = 0
        self.outcomes: dict[str, int] = {}

    def add(self, message: Message, now: int) -> None:
        """Count a message. *now*: Unix seconds, for the age of SRS addresses."""
        if message.hop:
            self.hops += 1
            return
        self.incomplete += not message.whole
        if message.made_here and message.sender is not None:
            self.made_here += 1
            if self.snapshot.upstream:
                self._made_here(message)
            return
        if message.origin is None or message.sender is None:
            self.unknown += 1
            return
        recipients = message.recipients()
        if not recipients:
            self.unknown += 1
            return
        self._judge(message, message.origin, recipients, now)

    def _judge(self, message: Message, origin: Origin, recipients: dict[bytes, tuple[str, bytes]], now: int) -> None:
        reverse_path = self._as_given(text(message.sender or b""), now)
        sender_domain = reverse_path.rpartition("@")[2] if "@" in reverse_path else f"<{reverse_path}>"
        sender_key = self._sender_key(sender_domain)
        self.messages += 1
        self.recipients += len(recipients)
        found: dict[tuple[Heading, str, str], list[tuple[str, str]]] = {}
        for octets, (outcome, became) in recipients.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            rcpt = text(octets)
            if "@" not in rcpt or routed(rcpt):  # the MTA has read it as what stands in the log beside it
                rcpt = text(became)
            if octets == ALIAS or "@" not in rcpt:  # the latter is in $myorigin
                self.inside += 1
                continue
            ours = self._ours(rcpt.rpartition("@")[2])
            # Of mail to inside, client and P1 decide nothing (R2).
            key = (ANYBODY, "", ours) if ours and not self.snapshot.upstream else (origin, sender_key, ours)
            ruling = self._rulings.get(key) or self._rule(key, origin, reverse_path, rcpt)
            self.inside += ruling.inside
            if ruling.inside and became is not octets and self.snapshot.upstream:
                rcpt = text(became)
                ruling = self._leaving(reverse_path, sender_domain, rcpt)
            if ruling.heading is None:
                self.relayed += not ruling.inside
                continue
            heading = ruling.heading
            if outcome == "rejected":
                if heading is Heading.UPSTREAM:
                    continue
                heading = Heading.REJECTED
            reason = ruling.upstream if heading is Heading.UPSTREAM else ruling.reason
            found.setdefault((heading, ruling.organization, reason), []).append((rcpt, outcome))
        self.hosts.add((origin.ip, origin.name), len(recipients))
        if found:
            self._count(message, origin, reverse_path, found)

    def _made_here(self, message: Message) -> None:
        """Count a bounce or a forwarded copy, which no client relays, but Exchange Online is to take."""
        reverse_path = text(message.sender or b"")
        sender_domain = reverse_path.rpartition("@")[2] if "@" in reverse_path else f"<{reverse_path}>"
        found: dict[tuple[Heading, str, str], list[tuple[str, str]]] = {}
        for octets, outcome in message.outcomes.items():
            ruling = self._leaving(reverse_path, sender_domain, text(octets))
            if ruling.heading is Heading.UPSTREAM:
                key = (Heading.UPSTREAM, ruling.organization, ruling.upstream)
                found.setdefault(key, []).append((text(octets), outcome))
        if found:
            self._count(message, MADE_HERE, reverse_path, found)

    def _as_given(self, reverse_path: str, now: int) -> str:
        """Return P1 as the client gave it, where SRS rewrote it before the queue manager logged it."""
        found = reverse(self._old, reverse_path, now, _nothing)
        if found.bounce is Bounce.ORIGINAL:
            self.restored += 1
            return found.original
        if found.bounce is not Bounce.NOT_SRS and self._ours(reverse_path.rpartition("@")[2]):
            self.unrestored += 1
        return reverse_path

    def client(self, origin: Origin) -> Client:
        """Return what the rules say of a client."""
        found = self._clients.get(origin)
        if found is None:
            if len(self._clients) >= _CLIENTS:
                self._clients.clear()
            exempt = self.snapshot.config.relay.exempt
            found = self._clients[origin] = self.snapshot.rules.client(
                origin.ip or None,
                self.names(origin),
                authenticated=origin.authenticated and "authenticated" in exempt,
                local=origin == MADE_HERE or (origin.local and "local" in exempt),
            )
        return found

    def names(self, origin: Origin) -> tuple[str, ...]:
        """Return the names of a client's trusted certificate, as far as log and certificate_folder tell."""
        if not origin.trusted or origin.unnamed:
            return ()
        shown = Shown(origin.common_name, origin.issuer, origin.fingerprint)
        return self.snapshot.certificates.names_of(shown)

    def judged(self, origin: Origin, reverse_path: str, rcpt: str) -> flow.Judgement:
        """Return the judgement on one recipient."""
        return flow.judge(self.snapshot, self.client(origin), Mail(reverse_path), rcpt)

    def _rule(self, key: tuple[Origin, str, str], origin: Origin, reverse_path: str, rcpt: str) -> Ruling:
        if len(self._rulings) >= _VERDICTS:
            self._rulings.clear()
        judgement = self.judged(origin, reverse_path, rcpt)
        verdict, upstream = judgement.verdict, judgement.upstream
        organization = verdict.organization.name if verdict.organization else ""
        heading = None
        if verdict.result is Result.REFUSE:
            heading = Heading.REFUSED
            if origin.unnamed:
                heading = Heading.CERTIFICATE_UNNAMED
            elif self.snapshot.config.relay.requirements is RuleSet.LEGACY:
                heading = Heading.P2_UNSEEN
        elif upstream is not None and upstream.result is Result.REFUSE:
            heading = Heading.UPSTREAM
        there = upstream.reason.value if upstream else ""
        inside = verdict.result is Result.INSIDE
        return self._rulings.setdefault(key, Ruling(heading, organization, verdict.reason.value, there, inside))

    def _ours(self, domain: str) -> str:
        """Return *domain* if the rules know it, else "" like for all others."""
        found = self._known.get(domain)
        if found is None:
            if len(self._known) >= _DOMAINS:
                self._known.clear()
            normal = normalize_domain(domain)
            found = self._known[domain] = normal if normal and self.snapshot.rules.inside(normal) else ""
        return found

    def _sender_key(self, sender_domain: str) -> str:
        """Return what a verdict depends on of a P1 domain: for SRS on the way to Exchange Online on all of it."""
        if sender_domain == "<>" or self.snapshot.upstream:
            return sender_domain
        return self._ours(sender_domain)

    def _leaving(self, reverse_path: str, sender_domain: str, rcpt: str) -> Ruling:
        """Rule on a copy that leaves for outside because this host made it, or forwards it."""
        key = (MADE_HERE, self._sender_key(sender_domain), self._ours(rcpt.rpartition("@")[2]))
        ruling = self._rulings.get(key) or self._rule(key, MADE_HERE, reverse_path, rcpt)
        return ruling if ruling.heading is Heading.UPSTREAM else ruling._replace(heading=None, inside=True)

    def _count(
        self,
        message: Message,
        origin: Origin,
        reverse_path: str,
        found: dict[tuple[Heading, str, str], list[tuple[str, str]]],
    ) -> None:
        domain = domain_of(reverse_path) or f"<{reverse_path}>"
        counted: dict[Heading, int] = {}
        for (heading, organization, reason), recipients in found.items():
            if self._organization and organization != self._organization:
                continue
            section = self.sections[heading]
            counted[heading] = counted.get(heading, 0) + len(recipients)
            section.reasons.add((organization, reason), len(recipients))
            group = section.group(origin, domain, organization, reason)
            group.messages += 1
            group.recipients += len(recipients)
            if len(group.samples) < SAMPLES:
                rcpt, outcome = recipients[0]
                group.samples.append(
                    Sample(message.queue_id, _time(message.time), reverse_path, rcpt, outcome, message.size_bytes)
                )
        for heading, number in counted.items():
            section = self.sections[heading]
            section.messages += 1
            section.recipients += number
            section.hosts.add((origin.ip, origin.name), number)
            section.domains.add((domain,), number)


MADE_HERE = Origin("", "this host", local=True)
"""Whose bounces and forwarded copies are."""
ANYBODY = Origin("", "")


def text(octets: bytes) -> str:
    """Decode an address; odd bytes survive."""
    return octets.decode("utf-8", "surrogateescape")


def _time(head: bytes) -> str:
    return text(head).rpartition(" ")[0]


def _nothing(token: str) -> Optional[str]:
    """Stand in for the store: a log is replayed without it."""
