# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a message: the relay verdict and SRS put together. Pure functions over a `Snapshot`.

The milter, the policy daemon, its maps and `gatepost check` all decide here. *now* is Unix seconds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from gatepost.relay import (
    Client,
    Mail,
    Organization,
    Result,
    RuleSet,
    Verdict,
    attribute,
    normalize_domain,
)
from gatepost.service.snapshot import Snapshot, mint_domain
from gatepost.srs import Address, AddressError, Expired, HashMismatch, NotSrs

DAY_S = 86400
BOUNCES = "bounces"
"""The mailbox of SRS addresses for relayed mail (S4)."""


class Bounce(Enum):
    """What a recipient is as an SRS address."""

    NOT_SRS = "not-srs"
    FOREIGN = "foreign"
    """SRS-shaped, in a domain in which this host makes none (yet), or not one of ours: perhaps somebody else's."""
    ORIGINAL = "original"
    FORGED = "forged"
    EXPIRED = "expired"


@dataclass(frozen=True)
class Reversal:
    """*original*: the original sender in its written form, "" unless *bounce* is ORIGINAL."""

    bounce: Bounce
    original: str = ""


class Egress(Enum):
    """What must happen to an envelope sender when its message leaves."""

    OUT = "out"
    REWRITE = "rewrite"
    IMPOSSIBLE = "impossible"
    """It must be rewritten and cannot be: too long for an SRS address, or no address."""


class Treatment(Enum):
    """What the milter does for one recipient."""

    KEEP = "keep"
    REWRITE = "rewrite"
    REFUSE = "refuse"
    UNREWRITABLE = "unrewritable"
    UNDECIDED = "undecided"
    """Only the header From can still let it through (rule set legacy)."""


@dataclass(frozen=True)
class Judgement:
    """A verdict, whether it takes effect (*enforce*), and the *treatment* of the recipient that follows."""

    verdict: Verdict
    enforce: bool
    treatment: Treatment


def labels(verdict: Verdict) -> tuple[str, str, str]:
    """Return organisation ("" for none), verdict and reason as the metric of decisions has them."""
    name = verdict.organization.name if verdict.organization else ""
    return name, verdict.result.value, verdict.reason.value


def day(now: int) -> int:
    """Return the days since 1970-01-01 (UTC)."""
    return now // DAY_S


def parse_address(text: str) -> Address:
    """Return the address *text*, quoted as in SMTP, or bare as in Postfix' policy protocol. Raises AddressError."""
    try:
        return Address.parse(text)
    except AddressError:
        if text.startswith(("@", '"')):  # a source route, a broken quoted string
            raise
        local, _, domain = text.rpartition("@")
        return Address(local, domain[:-1] if domain.endswith(".") else domain)  # Postfix, too, drops the final dot


def domain_of(address: str) -> Optional[str]:
    """Return the domain of *address* as an A-label in lower case; None where there is none."""
    return normalize_domain(address.rpartition("@")[2]) if "@" in address else None


def plain(address: str) -> bool:
    """Tell whether *address* is a local part without quotes and a domain, and can be read in one way only.

    `<a@fabrikam.example(@contoso.com>` is a@fabrikam.example to Postfix, which takes ( for the begin of a comment.
    """
    return _PLAIN.fullmatch(address) is not None


_PLAIN = re.compile(r"""[^\s@"(),:;<>\\\[\]]+@[^\s@"(),:;<>\\]+""")


def routed(address: str) -> bool:
    """Tell whether *address* may lead elsewhere than its domain says: user%domain@here, host!user@here (RFC 1123)."""
    local, at, _ = address.rpartition("@")
    return _ROUTING.search(local if at else address) is not None


_ROUTING = re.compile(r"[@%!]")


def judge(snapshot: Snapshot, client: Client, mail: Mail, rcpt: str, *, headers_seen: bool = False) -> Judgement:
    """Decide on one recipient. *headers_seen*: mail.header_from is complete, nothing is left to wait for."""
    rule_set = snapshot.config.relay.requirements
    verdict = attribute(client, mail, domain_of(rcpt), snapshot.rules, rule_set)
    if verdict.result is Result.EXEMPT and verdict.organization is None:
        enforce = snapshot.enforces(snapshot.default_organization)
    else:
        enforce = snapshot.enforces(verdict.organization)
    if verdict.result is Result.REFUSE and rule_set is RuleSet.LEGACY and not headers_seen:
        treatment = Treatment.UNDECIDED
    elif verdict.result is Result.INSIDE or not enforce:
        treatment = Treatment.KEEP
    elif verdict.result is Result.REFUSE:
        treatment = Treatment.REFUSE
    else:
        treatment = _TREATMENT[leaving(snapshot, mail.reverse_path)]
    return Judgement(verdict, enforce, treatment)


def together(snapshot: Snapshot, first: Treatment, other: Treatment) -> bool:
    """Tell whether two recipients may share a message: what the milter decides at its end holds for all of them.

    With an egress hop those that need another sender get it there, each on its own.
    """
    if first is other or not snapshot.enforcing:
        return True
    return snapshot.config.egress is not None and Treatment.UNDECIDED not in (first, other)


_TREATMENT = {
    Egress.OUT: Treatment.KEEP,
    Egress.REWRITE: Treatment.REWRITE,
    Egress.IMPOSSIBLE: Treatment.UNREWRITABLE,
}


def leaving(snapshot: Snapshot, reverse_path: str) -> Egress:
    """Tell what must happen to *reverse_path* when its message leaves, whatever the mode (S1, S2)."""
    if not reverse_path or not snapshot.longest_mint_domain or _ours(snapshot, domain_of(reverse_path)):
        return Egress.OUT
    try:  # which organisation will be named is not known here, so the longest address must fit
        snapshot.exchange.forward(parse_address(reverse_path), BOUNCES, snapshot.longest_mint_domain, 0)
    except AddressError:
        return Egress.IMPOSSIBLE
    return Egress.REWRITE


def egress(snapshot: Snapshot, reverse_path: str) -> Egress:
    """Answer the `egress` map: must this sender pass the egress hop? Always OUT where no organisation enforces."""
    return leaving(snapshot, reverse_path) if snapshot.enforcing else Egress.OUT


def relayed(snapshot: Snapshot, reverse_path: str, organization: Optional[Organization], now: int) -> str:
    """Return the SRS address of relayed mail (S4), in the default organisation where *organization* is None.

    Raises AddressError where *reverse_path* can't be rewritten.
    """
    organization = organization or snapshot.default_organization
    if organization is None:
        raise AddressError("no organization is configured")
    original = parse_address(reverse_path)
    return str(snapshot.exchange.forward(original, BOUNCES, mint_domain(snapshot.config, organization), day(now)))


def forwarded(snapshot: Snapshot, reverse_path: str, mailbox: Address, now: int) -> str:
    """Return the SRS address of mail that *mailbox*, see `forwarder`, sent on (S3).

    Where that can't be written the form of relayed mail takes its place. Raises AddressError as `relayed` does.
    """
    accepted = snapshot.rules.accepted(mailbox.domain)
    organization = accepted.organization if accepted else None
    domain = snapshot.config.settings[organization.name].srs_domain if organization else None
    try:
        original = parse_address(reverse_path)
        return str(snapshot.exchange.forward(original, mailbox.local, domain or mailbox.domain, day(now)))
    except AddressError:  # too long, or a mailbox that needs quotes
        return relayed(snapshot, reverse_path, organization, now)


def forwarder(snapshot: Snapshot, orcpt: str, rcpt: str) -> Optional[Address]:
    """Return the mailbox that forwarded a message to *rcpt*; None where *orcpt* names none.

    orcpt: the value of ORCPT (RFC 3461, 4.2), as in `rfc822;john.work+40contoso.com`. It counts where its domain is
    accepted and it differs from the recipient; the local part is cut at the first `+`.
    """
    kind, _, text = orcpt.partition(";")
    if kind.lower() not in ("rfc822", "utf-8"):
        return None
    try:
        address = Address.parse(decode_xtext(text))
        mailbox = Address(address.local.partition("+")[0], normalize_domain(address.domain) or "")
        same = Address.parse(rcpt)
    except AddressError:
        return None
    if not mailbox.local or snapshot.rules.accepted(mailbox.domain) is None:
        return None
    if (address.local.lower(), mailbox.domain) == (same.local.lower(), normalize_domain(same.domain)):
        return None
    return mailbox


def decode_xtext(text: str) -> str:
    """Decode the xtext of ESMTP parameters, in which `+XX` stands for an octet (RFC 3461, 4), here one of UTF-8."""
    octets = _XTEXT.sub(lambda found: bytes([int(found[1], 16)]), text.encode("utf-8", "surrogateescape"))
    return octets.decode("utf-8", "surrogateescape")


_XTEXT = re.compile(rb"\+([0-9A-F]{2})")


def reverse(snapshot: Snapshot, rcpt: str, now: int) -> Reversal:
    """Tell what *rcpt* is as an SRS address, and whose bounce comes with it (S9)."""
    if "+srs=" not in rcpt.lower():
        return _NOT_SRS
    try:
        address = parse_address(rcpt)
    except AddressError:
        return _NOT_SRS
    domain = normalize_domain(address.domain)
    if domain is None or not _ours(snapshot, domain):
        return Reversal(Bounce.FOREIGN)
    try:
        return Reversal(Bounce.ORIGINAL, str(snapshot.exchange.reverse(Address(address.local, domain), day(now))))
    except NotSrs:
        return _NOT_SRS
    except HashMismatch:
        return Reversal(Bounce.FORGED if _mints(snapshot, domain) else Bounce.FOREIGN)
    except Expired:
        return Reversal(Bounce.EXPIRED)


_NOT_SRS = Reversal(Bounce.NOT_SRS)


def _ours(snapshot: Snapshot, domain: Optional[str]) -> bool:
    return domain is not None and (domain in snapshot.srs_domains or snapshot.rules.accepted(domain) is not None)


def _mints(snapshot: Snapshot, domain: str) -> bool:
    """Tell whether this host makes SRS addresses in *domain*, one of ours.

    An srs_domain takes the place of its organisation's other domains, and in monitor mode nothing is rewritten.
    """
    name = snapshot.srs_domains.get(domain)
    accepted = snapshot.rules.accepted(domain)
    if name is None and accepted:
        name = accepted.organization.name
        if snapshot.config.settings[name].srs_domain is not None:
            return False
    return name is not None and snapshot.enforces(snapshot.rules.organizations[name])
