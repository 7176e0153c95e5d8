# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides whether a message may be relayed to one recipient (R1 to R11)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

from gatepost.relay.names import domain_of
from gatepost.relay.rules import Candidate, Client, Rules, connector_for
from gatepost.relay.verdict import Condition, Mail, Reason, Result, RuleSet, Step, Verdict


def attribute(client: Client, mail: Mail, rcpt_domain: Optional[str], rules: Rules, rule_set: RuleSet) -> Verdict:
    """Return the verdict on a recipient in *rcpt_domain*.

    rcpt_domain: in normal form, None for an address literal, which is outside; for a recipient without a
    domain the caller gives the domain that the MTA appends. rules: those that made *client*.

    What met condition (1), relay is allowed by the first that met (2) too, in this order: certificate names
    as given, P1, and under LEGACY each address of P2, of which any one is enough (R1, R3).
    """
    if rcpt_domain is not None:
        found = rules.accepted(rcpt_domain)
        if found is not None:
            organization, accepted_domain, _ = found
            step = Step(Condition.RECIPIENT_INSIDE, rcpt_domain, organization, None, accepted_domain, True)
            return Verdict(
                Result.INSIDE, Reason.RECIPIENT_ACCEPTED, organization, None, accepted_domain, (step,), False
            )
        if rcpt_domain in rules.local_domains:
            step = Step(Condition.RECIPIENT_INSIDE, rcpt_domain, None, None, None, True)
            return Verdict(Result.INSIDE, Reason.RECIPIENT_LOCAL, None, None, None, (step,), False)
    steps = [Step(Condition.RECIPIENT_INSIDE, rcpt_domain or "", None, None, None, False)]
    exempt = _exemption(client, steps)
    steps += client.certificate_steps
    best = client.candidate
    if best is None or best.connector is None:
        legacy = rule_set is RuleSet.LEGACY and exempt is None
        for candidate in _by_address(client, mail, rules, steps, legacy=legacy):
            if candidate.connector is not None:
                best = candidate
                break
            best = best or candidate
    if best is None:
        return _without_candidate(client, mail, steps, exempt)
    return _with_candidate(best, steps, exempt)


def _exemption(client: Client, steps: list[Step]) -> Optional[Reason]:
    if client.authenticated:
        steps.append(Step(Condition.AUTHENTICATED, "", None, None, None, True))
        return Reason.AUTHENTICATED
    if client.local:
        steps.append(Step(Condition.LOCAL_SUBMISSION, "", None, None, None, True))
        return Reason.LOCAL_SUBMISSION
    return None


def _by_address(client: Client, mail: Mail, rules: Rules, steps: list[Step], *, legacy: bool) -> Iterator[Candidate]:
    """Yield what met condition (1) by P1, then, where *legacy*, by P2; condition (2) tried for each."""
    tries = [(Condition.P1_ACCEPTED, Reason.P1_ACCEPTED, mail.reverse_path)]
    if legacy:
        tries += [(Condition.P2_ACCEPTED, Reason.P2_ACCEPTED, address) for address in mail.header_from]
    for condition, reason, address in tries:
        domain = domain_of(address)
        accepted = None if domain is None else rules.accepted(domain)
        if accepted is None:
            steps.append(Step(condition, domain or f"<{address}>", None, None, None, False))
            continue
        held = rules.counts(accepted)
        steps.append(Step(condition, domain or "", accepted.organization, None, accepted.accepted_domain, held))
        if held:
            found = connector_for(accepted, client.enabled, client.disabled, client.ip or "", steps)
            yield Candidate(reason, accepted, *found)


def _with_candidate(best: Candidate, steps: list[Step], exempt: Optional[Reason]) -> Verdict:
    reason, (organization, accepted_domain, _), connector, limited = best
    if exempt is not None:
        result, reason = Result.EXEMPT, exempt
    elif connector is not None:
        result = Result.RELAY
    else:
        result = Result.REFUSE
        reason = Reason.NO_CONNECTOR if limited is None else Reason.CONNECTOR_FOR_OTHER_DOMAINS
    return Verdict(result, reason, organization, connector or limited, accepted_domain, tuple(steps), True)


def _without_candidate(client: Client, mail: Mail, steps: list[Step], exempt: Optional[Reason]) -> Verdict:
    """Refuse, or let through as exempt, mail of which nothing met condition (1)."""
    covering = next((step.organization for step in steps if step.organization is not None), None)
    organization, connector = client.own or (covering, None)
    reason = exempt or (Reason.NOTHING_ACCEPTED if mail.reverse_path else Reason.NULL_SENDER)
    return Verdict(
        Result.REFUSE if exempt is None else Result.EXEMPT,
        reason,
        organization,
        connector,
        None,
        (*steps, *client.connector_steps),
        bool(client.enabled) or covering is not None,
    )
