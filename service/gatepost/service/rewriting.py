# SPDX-License-Identifier: GPL-3.0-or-later
"""Which envelope senders are rewritten with SRS, and to what. Pure functions over a `Snapshot`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from gatepost.relay import Organization, normalize_domain
from gatepost.service.addresses import decode_xtext, domain_of, parse_address, routed
from gatepost.service.reversal import Bounce, day, ours, reverse
from gatepost.service.snapshot import Snapshot, mailbox_domain, mint_domain
from gatepost.service.srs_config import COMPACT, Form, Format
from gatepost.srs import MAX_ADDRESS_OCTETS, Address, AddressError, AddressTooLong, NotSrs, first_hop

BOUNCES = "bounces"
"""The mailbox of SRS addresses for relayed mail (S4)."""
_OVERHEAD_OCTETS = 80
"""More than any form adds to the sender and the SRS domain."""
MAX_LOCAL_OCTETS = 64
"""Of a local part, its quotes included (RFC 5321, 4.5.3.1.1)."""


class Egress(Enum):
    """What must happen to an envelope sender when its message leaves."""

    OUT = "out"
    REWRITE = "rewrite"
    IMPOSSIBLE = "impossible"
    """It must be rewritten and cannot be: too long for an SRS address, or no address."""


@dataclass(frozen=True)
class Rewritten:
    """A new envelope sender, *form* for the metric: forward or bounces, long, or compact.

    token: of the compact form; the store must know it for *original* until *expires_day* before an MTA hears of
    *address*. otherwise: the long form for where that fails, "" where it would pass 254 octets.
    """

    address: str
    form: str
    token: str = ""
    original: str = ""
    expires_day: int = 0
    otherwise: str = ""


def without_store(rewritten: Rewritten) -> Optional[Rewritten]:
    """Return what to do where the store can't be written: the long form, None where there is none."""
    return Rewritten(rewritten.otherwise, "long") if rewritten.otherwise else None


def rewrites(snapshot: Snapshot) -> bool:
    """Tell whether anything rewrites P1 here: the milter, or the egress hop."""
    return snapshot.config.relay.enforced_by == "milter" or snapshot.config.egress is not None


def leaving(snapshot: Snapshot, reverse_path: str) -> Egress:
    """Tell what must happen to *reverse_path* when its message leaves, whatever the mode (S1, S2)."""
    if not reverse_path or not snapshot.longest_mint_domain:
        return Egress.OUT
    if _stays(snapshot, domain_of(reverse_path)):
        return Egress.OUT
    try:
        address = parse_address(reverse_path)
        if not _surely_fits(reverse_path, snapshot.longest_mint_domain):
            _fits(snapshot, address, snapshot.longest_mint_domain)
    except AddressError:
        # A hub with a certificate is relayed all the same, and Exchange Online then rewrites it (S1).
        return Egress.OUT if snapshot.upstream and snapshot.upstream.takes_all else Egress.IMPOSSIBLE
    return Egress.REWRITE


def _stays(snapshot: Snapshot, domain: Optional[str]) -> bool:
    """Tell whether senders in *domain* leave as they are. Exchange Online takes those in its tenant's domains only."""
    upstream = snapshot.upstream_by_p1
    return upstream.takes(domain) if upstream else ours(snapshot, domain) or not _listed(snapshot, domain)


def _surely_fits(reverse_path: str, domain: str) -> bool:
    """Tell whether the sender's length alone shows that it can be rewritten in *domain*, which nearly all are."""
    ordinary = "srs" not in reverse_path.lower() and reverse_path.isascii()
    return ordinary and 2 * len(reverse_path) + len(domain) + _OVERHEAD_OCTETS <= MAX_ADDRESS_OCTETS  # 2: for quotes


def _fits(snapshot: Snapshot, address: Address, domain: str) -> None:
    """Check that *address* can be rewritten, whatever the day, and in *domain*, the longest there is.

    Which organisation will be named is not known here. Raises AddressError.
    """
    original = first_hop(address)
    if original is not address and ours(snapshot, normalize_domain(original.domain)):
        original = address  # as `_to_rewrite` takes it where the layer is not, or no more, good
    _rewritten(snapshot, original, BOUNCES, domain, domain, 0)


def _listed(snapshot: Snapshot, domain: Optional[str]) -> bool:
    """Tell whether the lists let a sender's domain be rewritten. What has none is in no list."""
    if snapshot.include is not None and not (domain and snapshot.include.match(domain)):
        return False
    return not (domain and snapshot.exclude.match(domain))


def egress(snapshot: Snapshot, reverse_path: str) -> Egress:
    """Answer the `egress` map: must this sender pass the egress hop? Always OUT where no organisation enforces."""
    return leaving(snapshot, reverse_path) if snapshot.enforcing else Egress.OUT


def relayed(snapshot: Snapshot, reverse_path: str, organization: Optional[Organization], now: int) -> Rewritten:
    """Return the new sender of relayed mail (S4), in the default organisation where *organization* is None.

    In any case in the one whose tenant takes mail of no other. Raises AddressError where *reverse_path* can't be
    rewritten.
    """
    domain = _relay_domain(snapshot, organization)
    original = _to_rewrite(snapshot, parse_address(reverse_path), now)
    return _rewritten(snapshot, original, BOUNCES, domain, domain, now)


def _relay_domain(snapshot: Snapshot, organization: Optional[Organization]) -> str:
    upstream = snapshot.upstream_by_p1
    organization = upstream.organization if upstream else organization or snapshot.default_organization
    if organization is None:
        raise AddressError("no organization is configured")
    return mint_domain(snapshot.config, organization)


def forwarded(snapshot: Snapshot, reverse_path: str, mailbox: Address, now: int) -> Rewritten:
    """Return the new sender of mail that *mailbox*, see `forwarder`, sent on (S3).

    Where that can't be written, or Exchange Online does not take it, the form of relayed mail takes its place. Raises
    AddressError as `relayed` does.
    """
    accepted = snapshot.rules.accepted(mailbox.domain)
    if accepted is None:
        return relayed(snapshot, reverse_path, None, now)
    organization, upstream = accepted.organization, snapshot.upstream_by_p1
    domain = mailbox_domain(snapshot.config, accepted, mailbox.domain)
    if upstream and not upstream.takes(domain):
        return relayed(snapshot, reverse_path, organization, now)
    try:
        original = _to_rewrite(snapshot, parse_address(reverse_path), now)
        compact_domain = _relay_domain(snapshot, organization)
        return _rewritten(snapshot, original, mailbox.local, domain, compact_domain, now)
    except AddressError:  # too long, or a mailbox that needs quotes
        return relayed(snapshot, reverse_path, organization, now)


def _rewritten(
    snapshot: Snapshot, original: Address, mailbox: str, domain: str, compact_domain: str, now: int
) -> Rewritten:
    """Return the SRS address for *original*: the compact form is one of the whole organisation (S5)."""
    if _own_compact(snapshot, original):  # come back by way of others
        upstream = snapshot.upstream_by_p1
        if upstream is None or upstream.takes(domain_of(str(original))):
            return Rewritten(str(original), "compact")
    form = snapshot.config.srs.form
    try:
        long = str(_long(snapshot, original, mailbox, domain, day(now)))
    except AddressTooLong:
        if form is Form.LONG:
            raise
        long = ""
    # To Postfix a recipient with %, ! or a second @ is a route to elsewhere: it would refuse the bounces.
    fits = long and len(long.rpartition("@")[0].encode()) <= MAX_LOCAL_OCTETS and not routed(long)
    if form is Form.LONG or (form is Form.AUTO and fits):
        return Rewritten(long, BOUNCES if mailbox == BOUNCES else "forward")
    compact = snapshot.compact.forward(original, compact_domain, day(now))
    return Rewritten(
        address=str(compact),
        form="compact",
        token=snapshot.compact.token(compact),
        original=str(original),
        expires_day=day(now) + snapshot.config.srs.validity_days + 1,
        otherwise=long,
    )


def _own_compact(snapshot: Snapshot, address: Address) -> bool:
    if "+" not in address.local or COMPACT not in snapshot.reversed_forms:
        return False
    if not ours(snapshot, normalize_domain(address.domain)):
        return False
    try:
        return bool(snapshot.compact.token(address))
    except NotSrs:
        return False


def _long(snapshot: Snapshot, original: Address, mailbox: str, domain: str, day: int) -> Address:
    if snapshot.config.srs.format is Format.SRS0:
        return snapshot.classic.forward(original, domain, day)
    return snapshot.exchange.forward(original, mailbox, domain, day)


def _to_rewrite(snapshot: Snapshot, address: Address, now: int) -> Address:
    """Return what is to be rewritten for *address*: the first sender, if this host rewrote it before others did.

    Others' layers above the first one are left out, so that a chain of forwarders does not grow without end. A layer
    that claims to be this host's and is not stays wrapped: nobody chooses a mailbox of ours as the sender. A compact
    one names no mailbox and goes as it is, without asking the store.
    """
    first = first_hop(address)
    if first == address or not ours(snapshot, normalize_domain(first.domain)) or _own_compact(snapshot, first):
        return first
    reversal = reverse(snapshot, str(first), now, lambda token: None)
    return Address.parse(reversal.original) if reversal.bounce is Bounce.ORIGINAL else address


def forwarder(snapshot: Snapshot, orcpt: str, rcpt: str) -> Optional[Address]:
    """Return the mailbox that forwarded a message to *rcpt*; None where *orcpt* names none.

    orcpt: the value of ORCPT (RFC 3461, 4.2), as in `rfc822;john.work+40contoso.com`.
    """
    text = orcpt_address(orcpt)
    return mailbox_of(snapshot, text, rcpt) if text else None


def orcpt_address(orcpt: str) -> str:
    """Return the address in the value of ORCPT, "" where it has none of a known type."""
    kind, _, text = orcpt.partition(";")
    return decode_xtext(text) if kind.lower() in ("rfc822", "utf-8") else ""


def mailbox_of(snapshot: Snapshot, text: str, rcpt: str) -> Optional[Address]:
    """Return the mailbox that the address *text* names as the one that sent a message on to *rcpt*.

    It counts where its domain is accepted and it differs from the recipient; the local part is cut at the first `+`.
    """
    try:
        address = Address.parse(text)
        mailbox = Address(address.local.partition("+")[0], normalize_domain(address.domain) or "")
        same = Address.parse(rcpt)
    except AddressError:
        return None
    if not mailbox.local or snapshot.rules.accepted(mailbox.domain) is None:
        return None
    if (address.local.lower(), mailbox.domain) == (same.local.lower(), normalize_domain(same.domain)):
        return None
    return mailbox
