# SPDX-License-Identifier: GPL-3.0-or-later
"""Judges the messages of a log by the rules in force, as in mode enforce, and counts what is refused. Bounded memory.

A verdict depends on the client and on the domains of P1 and recipient, of which all that are nobody's here come to the
same, so it is reached once for each of these.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import NamedTuple, Optional

from gatepost.admin.replay_count import LONGEST_DOMAIN, SAMPLES, Count, Sample, Section, clipped
from gatepost.admin.replay_message import ALIAS, Message, Origin, text
from gatepost.relay import Client, Mail, Result, RuleSet, normalize_domain
from gatepost.service import flow
from gatepost.service.addresses import domain_of, routed
from gatepost.service.certificates import NO_CERTIFICATE, Shown
from gatepost.service.flow import Treatment
from gatepost.service.reversal import Bounce, reverse
from gatepost.service.snapshot import Snapshot
from gatepost.service.upstream import refuses
from gatepost.srs import Classic, Exchange

_VERDICTS = 30_000
_CLIENTS = 5_000
_LIKES = 20_000
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
    MENDED = "mended"
    """Refused by the rule, and let through with an SRS address (action = "rewrite")."""
    UPSTREAM = "upstream"
    """Let through here, and refused by Exchange Online."""


_THROUGH = (None, Heading.MENDED, Heading.UPSTREAM)


class Ruling(NamedTuple):
    """The verdict on a client, P1 domain and recipient domain, as far as it is counted.

    heading: None where it is let through, or *left* to the MTA. by_enforce: Exchange Online takes it in mode enforce
    only, where SRS rewrites it.
    """

    heading: Optional[Heading]
    organization: str
    reason: str
    upstream: str
    inside: bool
    left: bool = False
    by_enforce: bool = False


class Tally:
    """Counts messages by *snapshot*'s rules, as if all enforced. organization: count only its own, "" for all.

    messages, recipients: those that clients sent and the MTA took, judged. inside, relayed, left: of the recipients,
    those that need no relay, those that are let through, and those that policyd leaves to the MTA. hops, made_here:
    messages that are no client's, see `Message`. incomplete: those of which the log has not all lines; of them, unknown
    are those that could not be judged. restored: those whose P1 SRS had rewritten before it was logged. by_enforce:
    those that Exchange Online takes only once mode enforce rewrites them. denied: those that the log itself has as
    refused by the next hop with 5.7.64; notices: the NDRs about these, which are judged no further.
    """

    def __init__(self, snapshot: Snapshot, organization: str = "") -> None:
        srs = snapshot.config.srs
        self._as_it_is = snapshot
        self.snapshot = snapshot = snapshot.with_all_enforcing()
        names = snapshot.enforcing
        self._only = next(iter(names)) if len(names) == 1 else ""
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
        self._likes: dict[Origin, Origin] = {}
        self._known: dict[str, str] = {}
        self.sections = {heading: Section() for heading in Heading}
        self.hosts = Count()
        self.messages = self.recipients = self.inside = self.relayed = self.left = self.made_here = self.hops = 0
        self.incomplete = self.unknown = self.restored = self.unrestored = 0
        self.by_enforce = self.denied = self.notices = 0
        self.outcomes: dict[str, int] = {}

    def add(self, message: Message, now: int) -> None:
        """Count a message. *now*: Unix seconds, for the age of SRS addresses."""
        self.denied += message.denied and not message.about_denied
        if message.hop:
            self.hops += 1
            return
        self.incomplete += not message.whole
        if message.made_here and message.sender is not None:
            self.made_here += 1
            self.notices += message.about_denied
            if self.snapshot.upstream and not message.about_denied:
                self._made_here(message)
            return
        if message.origin is None or message.sender is None:
            self.unknown += 1
            return
        recipients = message.recipients()
        if not recipients:
            self.unknown += 1
            self.incomplete += message.whole
            return
        self._judge(message, message.origin, recipients, now)

    def _judge(self, message: Message, origin: Origin, recipients: dict[bytes, tuple[str, bytes]], now: int) -> None:
        reverse_path = self._as_given(text(message.sender or b""), now)
        sender_domain = reverse_path.rpartition("@")[2] if "@" in reverse_path else f"<{reverse_path}>"
        sender_key = self._sender_key(sender_domain)
        like = self._like(origin)
        taken = sum(outcome != "rejected" for outcome, _ in recipients.values())
        if taken:
            self.messages += 1
            self.recipients += taken
            self.hosts.add((origin.ip, origin.name), taken)
        found: dict[tuple[Heading, str, str], list[tuple[str, str]]] = {}
        by_enforce = False
        for octets, (outcome, became) in recipients.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
            rcpt = text(octets)
            if "@" not in rcpt or routed(rcpt):  # the MTA has read it as what stands in the log beside it
                rcpt = text(became)
            rejected = outcome == "rejected"
            if octets == ALIAS or "@" not in rcpt:  # the latter is in $myorigin
                self.inside += not rejected
                continue
            ours = self._ours(rcpt.rpartition("@")[2])
            # Of mail to inside, client and P1 decide nothing (R2).
            key = (ANYBODY, "", ours) if ours and not self.snapshot.upstream else (like, sender_key, ours)
            ruling = self._rulings.get(key) or self._rule(key, origin, reverse_path, rcpt)
            if rejected:
                if ruling.heading not in _THROUGH:
                    key_of_group = (Heading.REJECTED, ruling.organization, ruling.reason)
                    found.setdefault(key_of_group, []).append((rcpt, outcome))
                continue
            self.inside += ruling.inside
            self.left += ruling.left
            if ruling.inside and became is not octets and self.snapshot.upstream:
                rcpt = text(became)
                ruling = self._leaving(reverse_path, sender_domain, rcpt)
            by_enforce |= ruling.by_enforce
            if ruling.heading is None:
                self.relayed += not ruling.inside and not ruling.left
                continue
            heading = ruling.heading
            reason = ruling.upstream if heading is Heading.UPSTREAM else ruling.reason
            found.setdefault((heading, ruling.organization, reason), []).append((rcpt, outcome))
        self.by_enforce += by_enforce
        if found:
            self._count(message, origin, reverse_path, found)

    def _made_here(self, message: Message) -> None:
        """Count a bounce or a forwarded copy, which no client relays, but Exchange Online is to take."""
        reverse_path = text(message.sender or b"")
        sender_domain = reverse_path.rpartition("@")[2] if "@" in reverse_path else f"<{reverse_path}>"
        found: dict[tuple[Heading, str, str], list[tuple[str, str]]] = {}
        by_enforce = False
        for octets, outcome in message.outcomes.items():
            ruling = self._leaving(reverse_path, sender_domain, text(octets))
            by_enforce |= ruling.by_enforce
            if ruling.heading is Heading.UPSTREAM:
                key = (Heading.UPSTREAM, ruling.organization, ruling.upstream)
                found.setdefault(key, []).append((text(octets), outcome))
        self.by_enforce += by_enforce
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

    def _like(self, origin: Origin) -> Origin:
        """Return the client whose verdicts *origin* shares: itself, or any that no connector knows."""
        found = self._likes.get(origin)
        if found is None:
            if len(self._likes) >= _LIKES:
                self._likes.clear()
            known = origin.trusted or origin.authenticated or origin.local
            if not known:
                client = self.snapshot.rules.client(origin.ip or None)
                known = bool(client.enabled or client.disabled)
            found = self._likes[origin] = origin if known else STRANGER
        return found

    def owner(self, organization: str) -> str:
        """Return an organisation as it is shown: mail that is attributed to none is for the only one."""
        return organization or self._only or "none found"

    def names(self, origin: Origin) -> tuple[str, ...]:
        """Return what the rules know a client's trusted certificate by: its names, or a text that there is none."""
        return self.snapshot.certificates.names_of(_shown(origin))

    def known_names(self, origin: Origin) -> tuple[str, ...]:
        """Return the names of a client's trusted certificate, as far as log and certificate_folder tell."""
        return self.snapshot.certificates.known_names(_shown(origin))

    def judged(self, origin: Origin, reverse_path: str, rcpt: str) -> flow.Judgement:
        """Return the judgement on one recipient, as in mode enforce."""
        return flow.judge(self.snapshot, self.client(origin), Mail(reverse_path), rcpt)

    def _rule(self, key: tuple[Origin, str, str], origin: Origin, reverse_path: str, rcpt: str) -> Ruling:
        if len(self._rulings) >= _VERDICTS:
            self._rulings.clear()
        judgement = self.judged(origin, reverse_path, rcpt)
        verdict, upstream = judgement.verdict, judgement.upstream
        organization = verdict.organization.name if verdict.organization else ""
        heading, left, by_enforce = None, False, False
        mended = verdict.result is Result.REFUSE and judgement.treatment is Treatment.REWRITE
        if verdict.result is Result.REFUSE and not mended:
            heading = Heading.REFUSED
            if origin.unnamed:
                heading = Heading.CERTIFICATE_UNNAMED
            elif flow.left_to_mta(self.snapshot, verdict):
                heading, left = None, True
            elif self.snapshot.config.relay.requirements is RuleSet.LEGACY:
                heading = Heading.P2_UNSEEN
        elif refuses(upstream):
            heading = Heading.UPSTREAM
        elif mended:
            heading = Heading.MENDED
        elif upstream is not None:
            by_enforce = refuses(flow.judge(self._as_it_is, self.client(origin), Mail(reverse_path), rcpt).upstream)
        there = upstream.reason.value if upstream else ""
        inside = verdict.result is Result.INSIDE
        ruling = Ruling(heading, organization, verdict.reason.value, there, inside, left, by_enforce)
        return self._rulings.setdefault(key, ruling)

    def _ours(self, domain: str) -> str:
        """Return *domain* if the rules know it, else "" like for all others."""
        if len(domain) > LONGEST_DOMAIN:
            return ""
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
            return sender_domain[:LONGEST_DOMAIN]
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
        domain = domain_of(reverse_path) or f"<{clipped(reverse_path)}>"
        counted: dict[Heading, int] = {}
        for (heading, organization, reason), recipients in found.items():
            if self._organization and (organization or self._only) != self._organization:
                continue
            section = self.sections[heading]
            counted[heading] = counted.get(heading, 0) + len(recipients)
            section.reasons.add((organization, reason), len(recipients))
            group = section.group(origin, domain, organization, reason)
            group.messages += 1
            group.recipients += len(recipients)
            if len(group.samples) < SAMPLES:
                rcpt, outcome = recipients[0]
                envelope = clipped(reverse_path), clipped(rcpt)
                group.samples.append(
                    Sample(message.queue_id, _time(message.time), *envelope, outcome, message.size_bytes)
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
STRANGER = Origin("", "unknown to all connectors")
"""Stands for every client that no connector knows and that shows nothing."""


def _shown(origin: Origin) -> Shown:
    if not origin.trusted or origin.unnamed:
        return NO_CERTIFICATE
    return Shown(origin.common_name, origin.issuer, origin.fingerprint)


def _time(head: bytes) -> str:
    return text(head).rpartition(" ")[0]


def _nothing(token: str) -> Optional[str]:
    """Stand in for the store: a log is replayed without it."""
