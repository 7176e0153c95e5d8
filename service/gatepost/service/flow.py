# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a message: the relay verdict and SRS put together. Pure functions over a `Snapshot`.

The milter, the policy daemon and `gatepost check` all decide here; what a sender is rewritten to stands in `rewriting`,
what an SRS recipient is in `reversal`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Optional

from gatepost.relay import Client, Mail, Result, RuleSet, Verdict, attribute
from gatepost.service import replies
from gatepost.service.addresses import domain_of
from gatepost.service.replies import Reply
from gatepost.service.reversal import Bounce
from gatepost.service.rewriting import Egress, leaving
from gatepost.service.snapshot import Snapshot


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
    elif verdict.result is Result.REFUSE:
        treatment = Treatment.REFUSE
    else:
        treatment = Treatment.KEEP if spared else _TREATMENT[leaving(snapshot, mail.reverse_path)]
    return Judgement(verdict, enforce, treatment)


def srs_refusal(bounce: Bounce, guessing: Callable[[], bool]) -> Optional[tuple[Reply, str]]:
    """Return reply and log reason for a recipient that is one of our SRS addresses and not taken, else None.

    guessing: tells whether its client has named too many wrong ones; then the right ones are put off, too, for no guess
    is told that it was right.
    """
    if bounce not in _SRS_REFUSALS:
        return None
    return (replies.SRS_GUESSING, "srs-guessing") if guessing() else _SRS_REFUSALS[bounce]


_SRS_REFUSALS: dict[Bounce, Optional[tuple[Reply, str]]] = {
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
    if first is other or not snapshot.enforcing:
        return True
    return snapshot.config.egress is not None and Treatment.UNDECIDED not in (first, other)


_TREATMENT = {
    Egress.OUT: Treatment.KEEP,
    Egress.REWRITE: Treatment.REWRITE,
    Egress.IMPOSSIBLE: Treatment.UNREWRITABLE,
}
