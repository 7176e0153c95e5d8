# SPDX-License-Identifier: GPL-3.0-or-later
"""The verdict equals that of a second implementation, written from R1 to R11 by linear search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Optional

from hypothesis import given, settings
from hypothesis import strategies as st

from gatepost.relay import (
    AcceptedDomain,
    Connector,
    Mail,
    Organization,
    Reason,
    Result,
    Rules,
    RuleSet,
    Verdict,
    attribute,
    explain,
)

DOMAINS = ["a.test", "b.test", "x.a.test", "y.a.test", "w.x.a.test", "v.w.x.a.test", "x.b.test", "w.x.b.test"]
FOREIGN = ["gmail.test", "z.gmail.test"]
NETWORKS = ["192.0.2.0/24", "0.0.0.0/0", "192.0.2.1/32", "192.0.2.0/30", "192.0.2.128/25", "2001:db8::/32"]
ADDRESSES = ["192.0.2.1", "192.0.2.2", "192.0.2.9", "192.0.2.200", "::ffff:192.0.2.1", "2001:db8::1", "2001:db9::1"]


@dataclass(frozen=True)
class Case:
    organizations: tuple[Organization, ...]
    subdomains_relay: bool
    ip: Optional[str]
    names: tuple[str, ...]
    authenticated: bool
    mail: Mail
    rcpt_domain: str
    rule_set: RuleSet


# The second implementation


def covers(accepted_domain: AcceptedDomain, domain: str) -> bool:
    return accepted_domain.match_subdomains and domain.endswith("." + accepted_domain.domain)


def accepting(
    case: Case, domain: str, *, certificate: bool = False
) -> Iterator[tuple[Organization, AcceptedDomain, bool]]:
    """Yield whose accepted domain *domain* is, the nearest first, and whether that satisfies condition (1)."""
    pairs = [(owner, accepted) for owner in case.organizations for accepted in owner.accepted_domains]
    declared = [domain, domain.split(".", 1)[1]] if certificate else [domain]  # R9
    exact = [pair for name in declared for pair in pairs if pair[1].domain == name]
    yield from ((*pair, True) for pair in exact)
    if exact and not certificate:
        return
    covering = [pair for pair in pairs if covers(pair[1], domain)]  # R4
    nearest = max(covering, key=lambda pair: len(pair[1].domain), default=None)
    if nearest and nearest not in exact:
        yield (*nearest, case.subdomains_relay)


def without_wildcard(name: str) -> str:
    return name[2:] if name.startswith("*.") else name


def matches(connector: Connector, case: Case) -> bool:
    wanted = connector.tls_sender_certificate_name
    for name in map(without_wildcard, case.names):  # R8
        if wanted and (name == wanted or (wanted.startswith("*.") and ("." + name).endswith(wanted[1:]))):
            return True
    ip = ip_address(case.ip.replace("::ffff:", "")) if case.ip else None
    return ip is not None and any(ip in network for network in connector.sender_ip_addresses)


def condition_2(owner: Organization, accepted: AcceptedDomain, case: Case) -> bool:
    return any(
        connector.enabled  # R6
        and matches(connector, case)
        and (not connector.associated_accepted_domains or accepted.domain in connector.associated_accepted_domains)
        for connector in owner.connectors
    )


def naive(case: Case) -> tuple[Result, Optional[Reason], Optional[str]]:
    """Return the result, the reason where it is certain, and the organisation's name."""
    for owner, _, _ in accepting(case, case.rcpt_domain):  # R2
        return Result.INSIDE, Reason.RECIPIENT_ACCEPTED, owner.name
    candidates = [  # R3
        (Reason.CERTIFICATE_ACCEPTED, found)
        for name in map(without_wildcard, case.names)
        for found in accepting(case, name, certificate=True)
    ]
    senders = [(Reason.P1_ACCEPTED, case.mail.reverse_path)]
    if case.rule_set is RuleSet.LEGACY and not case.authenticated:
        senders += [(Reason.P2_ACCEPTED, address) for address in case.mail.header_from]
    for reason, address in senders:
        if address:  # R5
            candidates += [(reason, found) for found in accepting(case, address.split("@")[1])]
    counting = [(reason, owner, accepted) for reason, (owner, accepted, counts) in candidates if counts]
    for reason, owner, accepted in counting:
        if condition_2(owner, accepted, case):
            if case.authenticated:
                return Result.EXEMPT, Reason.AUTHENTICATED, owner.name
            return Result.RELAY, reason, owner.name
    connected = {
        owner.name
        for owner in case.organizations
        if any(connector.enabled and matches(connector, case) for connector in owner.connectors)
    }
    if counting:
        meant: Optional[str] = counting[0][1].name
    elif len(connected) == 1:
        meant = next(iter(connected))
    else:
        meant = candidates[0][1][0].name if candidates else None
    if case.authenticated:
        return Result.EXEMPT, Reason.AUTHENTICATED, meant
    if counting:
        return Result.REFUSE, None, meant  # R11 tells the two reasons apart
    return Result.REFUSE, Reason.NOTHING_ACCEPTED if case.mail.reverse_path else Reason.NULL_SENDER, meant


# What it is compared on


@st.composite
def connectors(draw: st.DrawFn, name: str, domains: list[str]) -> Connector:
    certificate = st.sampled_from(["*.a.test", "*.b.test", "*.x.a.test", *DOMAINS])
    return Connector(
        name,
        tuple(map(ip_network, draw(st.lists(st.sampled_from(NETWORKS), max_size=1)))),
        draw(st.none() | certificate),
        draw(st.sampled_from([True, True, True, False])),
        tuple(draw(st.just([]) | st.lists(st.sampled_from(domains), max_size=2))),
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    owners = draw(
        st.fixed_dictionaries({domain: st.sampled_from(["o1", "o2", "o1", None, "o3"]) for domain in DOMAINS})
    )
    organizations = []
    for name in ("o1", "o2", "o3"):
        domains = [f"{name}.test", *(domain for domain, owner in owners.items() if owner == name)]
        accepted = tuple(AcceptedDomain(domain, match_subdomains=draw(st.booleans())) for domain in domains)
        found = tuple(draw(connectors(f"c{index}", domains)) for index in range(draw(st.integers(1, 3))))
        organizations.append(Organization(name, accepted, found))
    anywhere = st.sampled_from(DOMAINS + FOREIGN)
    anyone = anywhere.map(lambda domain: f"bob@{domain}")
    sender = st.sampled_from(FOREIGN).map(lambda domain: f"bob@{domain}")
    names = anywhere | anywhere.map(lambda domain: f"*.{domain}")
    return Case(
        tuple(organizations),
        draw(st.booleans()),
        draw(st.sampled_from([*ADDRESSES, None])),
        tuple(draw(st.lists(names, max_size=3))),
        draw(st.sampled_from([False, False, False, True])),
        Mail(draw(sender | anyone | st.just("")), tuple(draw(st.lists(anyone, max_size=2)))),
        draw(st.sampled_from([*FOREIGN, *FOREIGN, *FOREIGN, *DOMAINS])),
        draw(st.sampled_from([RuleSet.LEGACY, RuleSet.CURRENT])),
    )


@settings(max_examples=1000, deadline=None)
@given(cases())
def test_verdict_equals_that_of_a_linear_search(case: Case) -> None:
    rules = Rules(case.organizations, subdomains_relay=case.subdomains_relay)
    client = rules.client(case.ip, case.names, authenticated=case.authenticated)
    verdict = attribute(client, case.mail, case.rcpt_domain, rules, case.rule_set)
    result, reason, organization = naive(case)
    assert verdict.result is result
    assert (verdict.organization.name if verdict.organization else None) == organization
    assert reason is None or verdict.reason is reason


@settings(max_examples=500, deadline=None)
@given(cases(), cases(), st.lists(st.integers(0, 8), max_size=4))
def test_verdict_with_rules_made_of_others_equals_that_of_rules_made_anew(
    case: Case, other: Case, history: list[int]
) -> None:
    sets = [
        other.organizations if bits == 8 else [item for bit, item in enumerate(case.organizations) if bits >> bit & 1]
        for bits in history
    ]
    made: list[Rules] = []
    for organizations in (*sets, case.organizations):
        made.append(Rules(organizations, before=made[-1] if made else None))
    for rules in made:
        assert verdict_of(case, rules) == verdict_of(case, Rules(rules.organizations.values()))


def verdict_of(case: Case, rules: Rules) -> Verdict:
    client = rules.client(case.ip, case.names, authenticated=case.authenticated)
    return attribute(client, case.mail, case.rcpt_domain, rules, case.rule_set)


@settings(max_examples=300, deadline=None)
@given(cases())
def test_explanation_has_a_sentence_for_each_step_and_a_remedy_for_each_refusal(case: Case) -> None:
    rules = Rules(case.organizations, subdomains_relay=case.subdomains_relay)
    client = rules.client(case.ip, case.names, authenticated=case.authenticated)
    verdict = attribute(client, case.mail, case.rcpt_domain, rules, case.rule_set)
    explanation = explain(verdict, client, case.mail, f"x@{case.rcpt_domain}", case.rule_set)
    refused = verdict.result is Result.REFUSE
    sentences = (explanation.decision, *explanation.steps, *explanation.remedies)
    assert len(explanation.steps) == len(verdict.trace)
    assert all(sentence.endswith(".") and sentence.isprintable() for sentence in sentences)
    assert bool(explanation.failed) is refused
    assert bool(explanation.remedies) is (refused or verdict.reason is Reason.P2_ACCEPTED)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.lists(st.text(max_size=20), max_size=2))
def test_any_text_as_address_and_certificate_name_is_refused_and_explained(p1: str, ip: str, names: list[str]) -> None:
    connector = Connector("any", (ip_network("0.0.0.0/0"), ip_network("::/0")))
    rules = Rules([Organization("contoso", (AcceptedDomain("contoso.test"),), (connector,))])
    client, mail = rules.client(ip, names), Mail(p1, (p1,))
    verdict = attribute(client, mail, "gmail.test", rules, RuleSet.LEGACY)
    assert verdict.result is Result.REFUSE
    assert explain(verdict, client, mail, f"{p1}@gmail.test", RuleSet.LEGACY).decision.isprintable()
