# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a message: the relay verdict and SRS put together. Pure functions over a `Snapshot`.

The milter, the policy daemon and `gatepost check` all decide here; what a sender is rewritten to stands in `rewriting`,
what an SRS recipient is in `reversal`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Optional

from gatepost.relay import Client, Mail, Result, RuleSet, Verdict, attribute
from gatepost.service import replies
from gatepost.service.addresses import domain_of
from gatepost.service.organizations import RefusalAction
from gatepost.service.replies import Reply
from gatepost.service.reversal import Bounce
from gatepost.service.rewriting import BOUNCES, Egress, leaving, rewrites
from gatepost.service.snapshot import Snapshot, mint_domain
from gatepost.service.upstream import Upstream, refuses


class Treatment(Enum):
    """What the milter does for one recipient."""

    KEEP = "keep"
    REWRITE = "rewrite"
    REFUSE = "refuse"
    DEFER = "defer"
    """What REFUSE is under action = "tempfail"."""
    HOLD = "hold"
    """The same under "quarantine"; all of the message then waits in the MTA's hold queue."""
    TAG = "tag"
    """The same under "tag"; all of the message then has a header that says so."""
    UPSTREAM = "upstream"
    """Exchange Online would refuse it, and no other sender would help, so it is refused here ([upstream] refuse)."""
    UNREWRITABLE = "unrewritable"
    UNDECIDED = "undecided"
    """Only the header From can still let it through (rule set legacy)."""


class Judgement(NamedTuple):
    """A verdict, whether it takes effect (*enforce*), and the *treatment* of the recipient that follows.

    upstream: what Exchange Online will say of the message as it leaves here; None without [upstream], and where it
    never gets there.
    """

    verdict: Verdict
    enforce: bool
    treatment: Treatment
    upstream: Optional[Verdict] = None


def labels(verdict: Verdict) -> tuple[str, str, str]:
    """Return organisation ("" for none), verdict and reason as the metric of decisions has them."""
    name = verdict.organization.name if verdict.organization else ""
    return name, verdict.result.value, verdict.reason.value


def judge(
    snapshot: Snapshot, client: Client, mail: Mail, rcpt: str, *, headers_seen: bool = False, spared: bool = False
) -> Judgement:
    """Decide on one recipient.

    headers_seen: mail.header_from is complete, nothing is left to wait for. spared: SPF lets the envelope sender leave
    as it is (only_spf).
    """
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
    else:
        treatment = Treatment.KEEP if spared else _LEAVING[leaving(snapshot, mail.reverse_path)]
        if verdict.result is Result.REFUSE:
            treatment = _treatment_of_refused(snapshot, client, verdict, treatment)
    there = snapshot.upstream
    if there is None or treatment in _NOT_LEAVING:
        return Judgement(verdict, enforce, treatment)
    upstream = at_upstream(snapshot, _leaving_as(snapshot, there, mail, enforce=enforce), rcpt)
    if refuses(upstream) and there.refuse and enforce:
        treatment = Treatment.UPSTREAM
    return Judgement(verdict, enforce, treatment, upstream)


def _treatment_of_refused(snapshot: Snapshot, client: Client, verdict: Verdict, leaves: Treatment) -> Treatment:
    """Return what becomes of what the rule refuses; *leaves*: what would become of it if it were relayed."""
    action = snapshot.action(verdict.organization)
    if action is RefusalAction.REWRITE:
        needs_it = leaves in (Treatment.REWRITE, Treatment.UNREWRITABLE)
        return leaves if needs_it and _relayed_as_srs(snapshot, client, verdict) else Treatment.REFUSE
    treatment = _REFUSED[action]
    return leaves if treatment in WHOLE_MESSAGE and leaves is Treatment.UNREWRITABLE else treatment


def _relayed_as_srs(snapshot: Snapshot, client: Client, verdict: Verdict) -> bool:
    """Tell whether the rule lets *client* relay with a sender in its organisation's default domain, as SRS makes it."""
    if verdict.organization is None:
        return False
    mail = Mail(f"{BOUNCES}@{verdict.organization.default_domain}")
    return attribute(client, mail, None, snapshot.rules, RuleSet.CURRENT).result is Result.RELAY


def _leaving_as(snapshot: Snapshot, there: Upstream, mail: Mail, *, enforce: bool) -> Mail:
    """Return the senders with which a message that goes on leaves. Any that SRS makes is like the others there."""
    at_hop = snapshot.config.egress is not None and bool(snapshot.enforcing)
    rewritten = at_hop or (enforce and rewrites(snapshot))
    if there.takes_all or not rewritten or leaving(snapshot, mail.reverse_path) is not Egress.REWRITE:
        return mail
    return Mail(f"{BOUNCES}@{mint_domain(snapshot.config, there.organization)}", mail.header_from)


def left_to_mta(snapshot: Snapshot, verdict: Verdict) -> bool:
    """Tell whether policyd leaves a recipient to Postfix: it is refused, and no organization is meant."""
    return verdict.result is Result.REFUSE and not verdict.meant and snapshot.config.relay.enforced_by != "milter"


def at_upstream(snapshot: Snapshot, mail: Mail, rcpt: str) -> Optional[Verdict]:
    """Return what Exchange Online says of *mail*, as it leaves here, to *rcpt*.

    None without [upstream], and where the mail does not get there: this host, or another organisation, has *rcpt*.
    """
    there, domain = snapshot.upstream, domain_of(rcpt)
    if there is None:
        return None
    if domain and snapshot.rules.inside(domain) and there.rules.accepted(domain) is None:
        return None
    return there.verdict(mail, domain)


def srs_refusal(bounce: Bounce, guessing: Callable[[], bool]) -> Optional[tuple[Reply, str]]:
    """Return reply and log reason for a recipient that is one of our SRS addresses and not taken, else None.

    guessing: tells whether its client has named too many wrong ones; then the right ones are put off, too, for no guess
    is told that it was right.
    """
    if bounce not in SRS_REFUSALS:
        return None
    return (replies.SRS_GUESSING, "srs-guessing") if guessing() else SRS_REFUSALS[bounce]


SRS_REFUSALS: dict[Bounce, Optional[tuple[Reply, str]]] = {
    Bounce.ORIGINAL: None,
    Bounce.FORGED: (replies.SRS_FORGED, "srs-forged"),
    Bounce.EXPIRED: (replies.SRS_EXPIRED, "srs-expired"),
    Bounce.UNKNOWN: (replies.SRS_UNKNOWN, "srs-unknown"),
}


def may_write_to_srs(snapshot: Snapshot, reverse_path: str) -> bool:
    """Tell whether our SRS addresses take mail from *reverse_path* (accept_from)."""
    return not reverse_path or snapshot.config.srs.accept_from == "everyone"


def together(snapshot: Snapshot, first: Treatment, other: Treatment) -> bool:
    """Tell whether two recipients may share a message: what the milter decides at its end holds for all of them.

    With an egress hop those that need another sender get it there, each on its own.
    """
    if first is other or not snapshot.enforces_at_all:
        return True
    if {first, other} & {*WHOLE_MESSAGE, Treatment.UNDECIDED}:
        return False
    return snapshot.config.egress is not None


WHOLE_MESSAGE = frozenset((Treatment.HOLD, Treatment.TAG))
"""What happens to all recipients of a message alike. It goes on, so its sender is rewritten as that of relayed mail."""
REFUSING = frozenset((Treatment.REFUSE, Treatment.DEFER, Treatment.HOLD, Treatment.TAG))
_NOT_LEAVING = frozenset(
    (Treatment.REFUSE, Treatment.DEFER, Treatment.HOLD, Treatment.UNREWRITABLE, Treatment.UNDECIDED)
)
_REFUSED = {
    RefusalAction.REJECT: Treatment.REFUSE,
    RefusalAction.TEMPFAIL: Treatment.DEFER,
    RefusalAction.QUARANTINE: Treatment.HOLD,
    RefusalAction.TAG: Treatment.TAG,
}
"""REWRITE is none of them, see `_treatment_of_refused`."""
_LEAVING = {
    Egress.OUT: Treatment.KEEP,
    Egress.REWRITE: Treatment.REWRITE,
    Egress.IMPOSSIBLE: Treatment.UNREWRITABLE,
}
