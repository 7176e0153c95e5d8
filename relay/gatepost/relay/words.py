# SPDX-License-Identifier: GPL-3.0-or-later
"""Puts a verdict in words, for a mail administrator: what was decided, why, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable

from gatepost.relay.attribution import attribute
from gatepost.relay.index import parse_address
from gatepost.relay.names import domain_of, nameless, normalize_domain, parent
from gatepost.relay.organization import Connector, Organization
from gatepost.relay.remedies import connectors_needed, remedies
from gatepost.relay.rules import Client
from gatepost.relay.verdict import Condition, Mail, Reason, Result, RuleSet, Step, Verdict

MANY = 5
"""How many connectors, domains or names a sentence lists before it says "and N more"."""


@dataclass(frozen=True)
class Explanation:
    """A verdict in words: whole sentences in printable characters.

    p1, p2: the two sender addresses, each with what it is worth, to be shown side by side. steps: one
    sentence for each step of the trace. failed: which condition failed, "" where none did. remedies: what to
    change, any one of which may do. also: what is needed beside any of these, for the other condition; again any one.
    """

    decision: str
    p1: str
    p2: str
    steps: tuple[str, ...]
    failed: str
    remedies: tuple[str, ...]
    also: tuple[str, ...] = ()


def explain(verdict: Verdict, client: Client, mail: Mail, rcpt: str, rule_set: RuleSet) -> Explanation:
    """Return *verdict*, which `attribute` gave for *mail* to the address *rcpt*, in words."""
    by_p2 = verdict.result is Result.REFUSE and _p2_alone_relays(client, mail, rcpt)
    return Explanation(
        decision=decision(verdict, mail, rcpt, rule_set),
        p1=_printable(_address(client, mail.reverse_path)),
        p2=_printable(_p2(client, mail, rule_set, by_p2)),
        steps=tuple(_printable(_step(step, client)) for step in verdict.trace),
        failed=_printable(_failed(verdict, client, mail, rule_set, by_p2)),
        remedies=tuple(map(_printable, remedies(verdict, client, mail))),
        also=tuple(map(_printable, connectors_needed(verdict, client, mail))),
    )


def _printable(text: str) -> str:
    """Return *text* without what could act on a terminal or break a line: an address may hold any octet."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _p2_alone_relays(client: Client, mail: Mail, rcpt: str) -> bool:
    legacy = attribute(client, mail, domain_of(rcpt), client.rules, RuleSet.LEGACY)
    return legacy.reason is Reason.P2_ACCEPTED


def decision(verdict: Verdict, mail: Mail, rcpt: str, rule_set: RuleSet) -> str:
    """Return what was decided in a sentence of printable characters. Of *verdict* its trace is not looked at."""
    return _printable(_decision(verdict, mail, rcpt, rule_set))


def _decision(verdict: Verdict, mail: Mail, rcpt: str, rule_set: RuleSet) -> str:
    reason, organization, connector = verdict.reason, verdict.organization, verdict.connector
    owner = organization.name if organization else ""
    if reason is Reason.RECIPIENT_ACCEPTED:
        return f"No relay: {rcpt} is a recipient of {owner}, so P1 and P2 may be anything."
    if reason is Reason.RECIPIENT_LOCAL:
        return f"No relay: the domain of {rcpt} is one of this host's own (relay.local_domains)."
    if reason is Reason.AUTHENTICATED:
        return "Relayed: the client has authenticated (SASL), which exempts it from the relay rule."
    if reason is Reason.LOCAL_SUBMISSION:
        return "Relayed: the message was submitted on this host, which exempts it from the relay rule."
    if verdict.result is Result.RELAY and connector:
        by = {
            Reason.CERTIFICATE_ACCEPTED: "its certificate name",
            Reason.P1_ACCEPTED: "P1",
            Reason.P2_ACCEPTED: "P2 alone, which counts under the rule set legacy only,",
        }[reason]
        return f'Relayed for {owner}: {by} is accepted and connector "{connector.name}" matches the client.'
    p2 = " nor P2" if rule_set is RuleSet.LEGACY and mail.header_from else ""
    why = {
        Reason.NOTHING_ACCEPTED: f"neither certificate nor P1{p2} is in an accepted domain",
        Reason.NULL_SENDER: "mail with a null sender needs a certificate in an accepted domain",
        Reason.NO_CONNECTOR: f"no enabled connector of {owner} matches the client",
        Reason.CONNECTOR_FOR_OTHER_DOMAINS: "the matching connector is for other accepted domains",
    }[reason]
    return f"Refused: {rcpt} is outside, and {why}."


def _address(client: Client, address: str) -> str:
    """Return a sender address and what it is worth."""
    if not address:
        return "<>: the null sender, which is in no accepted domain"
    domain = domain_of(address)
    if domain is None:
        return f"{address}: has no domain name"
    accepted = client.rules.accepted(domain)
    if accepted is None:
        return f"{address}: {domain} is no accepted domain"
    owner = accepted.organization.name
    if accepted.exact:
        return f"{address}: {domain} is an accepted domain of {owner}"
    covering = f"{address}: {domain} is a subdomain of {accepted.accepted_domain.domain}, accepted by {owner}"
    return covering if client.rules.counts(accepted) else f"{covering}, which does not count for relay"


def _p2(client: Client, mail: Mail, rule_set: RuleSet, by_p2: bool) -> str:
    if not mail.header_from:
        return "none seen"
    shown = "; ".join(_address(client, address) for address in mail.header_from)
    if rule_set is RuleSet.LEGACY:
        return f"{shown} (P2 counts under the rule set legacy only)"
    if by_p2:
        return f"{shown} (P2 let this message through before 2023-11-01; it does not count any more)"
    return f"{shown} (P2 does not count since 2023-11-01)"


def _failed(verdict: Verdict, client: Client, mail: Mail, rule_set: RuleSet, by_p2: bool) -> str:
    if verdict.result is not Result.REFUSE:
        return ""
    parts = [_condition_failed(verdict, client, mail, rule_set)]
    if by_p2 and rule_set is RuleSet.CURRENT:
        parts.append("Before 2023-11-01 its P2 alone would have let it through.")
    return " ".join(parts)


def _condition_failed(verdict: Verdict, client: Client, mail: Mail, rule_set: RuleSet) -> str:
    connector, owner = verdict.connector, verdict.organization.name if verdict.organization else ""
    if verdict.reason is Reason.CONNECTOR_FOR_OTHER_DOMAINS and connector and verdict.accepted_domain:
        return (
            f'Condition 2 failed: connector "{connector.name}" of {owner} matches the client, but is limited '
            f"to {enumeration(connector.associated_accepted_domains)}; "
            f"{verdict.accepted_domain.domain} is not among them."
        )
    if verdict.reason is Reason.NO_CONNECTOR:
        return f"Condition 2 failed: no enabled connector of {owner} matches {_client(client)}."
    if verdict.reason is Reason.NULL_SENDER:
        first = "Condition 1 failed: a null sender never counts as P1, and "
    else:
        also = " (nor that of P2)" if rule_set is RuleSet.LEGACY and mail.header_from else ""
        domain = domain_of(mail.reverse_path)
        p1 = f"the P1 domain {domain}" if domain else f"P1 <{mail.reverse_path}>, which has no domain name,"
        first = f"Condition 1 failed: {p1} is not accepted{also}, and "
    if any(nameless(name) is not None for name in client.certificate_names):
        first += f"gatepost does not know the names in {_nameless(client)}."
    elif client.certificate_names:
        first += f"no name of the certificate ({enumeration(client.certificate_names)}) is in an accepted domain."
    else:
        first += "the client presented no trusted certificate."
    if not client.enabled:
        return f"{first} Condition 2 failed too: no enabled connector matches {_client(client)}."
    enough = _enough(client)
    if connector:
        return f'{first} Condition 2 holds: connector "{connector.name}" of {owner} matches the client. {enough}'
    return f"{first} Condition 2 holds for several organizations, so the client alone names none of them. {enough}"


def _enough(client: Client) -> str:
    """Return where that a connector matches would have been enough."""
    if client.enabled[0].condition is Condition.CONNECTOR_ADDRESS:
        return "An IP address is enough only where P1 or the recipient is in an accepted domain."
    return "A certificate is enough only where one of its names is in an accepted domain, not in a connector alone."


def _step(step: Step, client: Client) -> str:
    return _STEP[step.condition](step, client)


def _recipient(step: Step, _: Client) -> str:
    if not step.looked_at:
        return "The recipient has no domain name, so it is outside: this is relay."
    start = f"Recipient domain {step.looked_at} is "
    if not step.held:
        return f"{start}no accepted domain and none of relay.local_domains: this is relay."
    if step.organization is None:
        return f"{start}one of relay.local_domains: no relay."
    return f"{start}{_accepted_as(step)}: no relay."


def _accepted_as(step: Step) -> str:
    domain = step.accepted_domain.domain if step.accepted_domain else ""
    owner = step.organization.name if step.organization else ""
    if domain == step.looked_at:
        return f"an accepted domain of {owner}"
    return f"a subdomain of {domain}, which {owner} accepts with match_subdomains"


def _sender(step: Step, _: Client) -> str:
    name = "P1" if step.condition is Condition.P1_ACCEPTED else "P2"
    if step.looked_at == "<>":
        return f"{name} is the null sender <>, which is in no accepted domain: condition 1 fails."
    if step.accepted_domain is None and normalize_domain(step.looked_at) is None:
        return f"{name} {step.looked_at} has no domain name: condition 1 fails."
    return f"{name} domain {step.looked_at} is {_whether_accepted(step, 'no accepted domain')}"


def _certificate(step: Step, _: Client) -> str:
    name, accepted_domain = step.looked_at, step.accepted_domain
    fingerprint = nameless(name)
    if fingerprint is not None:
        which = f"The certificate with {fingerprint}" if fingerprint else "The client's certificate"
        return f"{which} is not in relay.certificate_folder, so its names are not known: condition 1 fails."
    above = parent(name)
    if accepted_domain is not None and accepted_domain.domain == above and step.held and step.organization:
        return (
            f"Certificate name {name} is one label below {above}, an accepted domain of "
            f"{step.organization.name}: condition 1 holds."
        )
    if accepted_domain is None and normalize_domain(name) is None:
        return f'Certificate name "{name}" is no domain name: condition 1 fails.'
    no = f"no accepted domain, nor is {above}, one label up" if above else "no accepted domain"
    return f"Certificate name {name} is {_whether_accepted(step, no)}"


def _whether_accepted(step: Step, no: str) -> str:
    if step.held:
        return f"{_accepted_as(step)}: condition 1 holds."
    if step.accepted_domain is None:
        return f"{no}: condition 1 fails."
    return f"{_accepted_as(step)}, but relay.subdomains_relay = false keeps it from counting: condition 1 fails."


def _exempt(step: Step, _: Client) -> str:
    how = "has authenticated (SASL)" if step.condition is Condition.AUTHENTICATED else "submits on this host"
    return f"The client {how}: it is exempt from the relay rule."


def _matched(step: Step, client: Client) -> str:
    what = "Address" if step.condition is Condition.CONNECTOR_ADDRESS else "Certificate name"
    if step.connector is None or step.organization is None:
        return f"{what} {step.looked_at} matches connectors of several organizations, so it names none of them."
    if step.condition is Condition.CONNECTOR_ADDRESS:
        by = f"sender_ip_addresses {_network(step.connector, client)}"
    else:
        by = f"tls_sender_certificate_name {step.connector.tls_sender_certificate_name}"
    whose = f'"{step.connector.name}" of {step.organization.name}'
    matched = f"{what} {step.looked_at} matches connector {whose} by {by}"
    return f"{matched}." if step.connector.associated_accepted_domains else f"{matched}: condition 2 holds."


def _network(connector: Connector, client: Client) -> str:
    address = parse_address(client.ip)
    covering = [network for network in connector.sender_ip_addresses if address in network]
    return str(max(covering, key=lambda network: network.prefixlen, default=client.ip))


def _unmatched(step: Step, client: Client) -> str:
    if step.organization is None:
        return f"No enabled connector of any organization matches {_client(client)}: condition 2 fails."
    return (
        f"No enabled connector of {step.organization.name} matches {_client(client)} "
        f"({_connectors(step.organization)}): condition 2 fails."
    )


def _connectors(organization: Organization) -> str:
    enabled = [connector for connector in organization.connectors if connector.enabled]
    if not enabled:
        return "it has none"
    return f"compared with {enumeration([_covers(connector) for connector in enabled])}"


def _covers(connector: Connector) -> str:
    covered = [str(network) for network in connector.sender_ip_addresses]
    if connector.tls_sender_certificate_name:
        covered.append(connector.tls_sender_certificate_name)
    return f'"{connector.name}": {enumeration(covered)}'


def _disabled(step: Step, _: Client) -> str:
    connector = step.connector.name if step.connector else ""
    owner = step.organization.name if step.organization else ""
    return f'Connector "{connector}" of {owner} covers {step.looked_at}, but is disabled: it does not count.'


def _limited(step: Step, _: Client) -> str:
    connector = step.connector.name if step.connector else ""
    associated = step.connector.associated_accepted_domains if step.connector else ()
    start = f'Connector "{connector}" is limited to {enumeration(associated)} (associated_accepted_domains)'
    if step.held:
        return f"{start}, and {step.looked_at} is among them: condition 2 holds."
    return f"{start}, and {step.looked_at} is not among them: condition 2 fails."


_STEP: dict[Condition, Callable[[Step, Client], str]] = {
    Condition.RECIPIENT_INSIDE: _recipient,
    Condition.AUTHENTICATED: _exempt,
    Condition.LOCAL_SUBMISSION: _exempt,
    Condition.CERTIFICATE_ACCEPTED: _certificate,
    Condition.P1_ACCEPTED: _sender,
    Condition.P2_ACCEPTED: _sender,
    Condition.CONNECTOR_CERTIFICATE: _matched,
    Condition.CONNECTOR_ADDRESS: _matched,
    Condition.CONNECTOR_ANY: _unmatched,
    Condition.CONNECTOR_ENABLED: _disabled,
    Condition.CONNECTOR_DOMAINS: _limited,
}


def _client(client: Client) -> str:
    """Return what a connector may match: the client's address and certificate names."""
    address = f"address {client.ip}" if client.ip else "a client of unknown address"
    if not client.certificate_names:
        return f"{address} (no trusted certificate)"
    if any(nameless(name) is not None for name in client.certificate_names):
        return f"{address} (its certificate's names are not known)"
    return f"{address} or certificate {enumeration(client.certificate_names)}"


def _nameless(client: Client) -> str:
    fingerprint = next(filter(None, map(nameless, client.certificate_names)), "")
    return f"the client's certificate ({fingerprint})" if fingerprint else "the client's certificate"


def enumeration(items: Sequence[str]) -> str:
    """Return the first of *items*, and how many more there are."""
    shown = ", ".join(items[:MANY])
    return shown if len(items) <= MANY else f"{shown} and {len(items) - MANY} more"
