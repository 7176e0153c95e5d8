# SPDX-License-Identifier: GPL-3.0-or-later
"""All organisations in tables by domain, name and network, and what they say of a client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, Optional

from gatepost.relay.index import ConnectorIndex, Match, parse_address
from gatepost.relay.names import certificate_domain, is_normal, parent
from gatepost.relay.organization import AcceptedDomain, Connector, Organization
from gatepost.relay.verdict import Condition, Reason, Step


class Accepted(NamedTuple):
    """Whose accepted domain covers a domain. exact: it is declared itself, not by MatchSubDomains (R4)."""

    organization: Organization
    accepted_domain: AcceptedDomain
    exact: bool


class Candidate(NamedTuple):
    """An accepted domain that met condition (1) for *reason*.

    connector: the one that met condition (2). limited: where none did, the first that R11 alone ruled out.
    """

    reason: Reason
    accepted: Accepted
    connector: Optional[Connector]
    limited: Optional[Connector]


@dataclass(frozen=True)
class Client:
    """A connection, with all that follows from its address and certificate alone. Made by `Rules.client`.

    enabled, disabled: the connectors that match it. candidate: the best that its certificate reached,
    certificate_steps how. own: the organisation and connector that match it, where only one organisation's
    do; connector_steps says so.
    """

    ip: Optional[str]
    certificate_names: tuple[str, ...]
    authenticated: bool
    local: bool
    rules: Rules = field(repr=False, compare=False)
    enabled: tuple[Match, ...] = field(repr=False)
    disabled: tuple[Match, ...] = field(repr=False)
    candidate: Optional[Candidate] = field(repr=False)
    certificate_steps: tuple[Step, ...] = field(repr=False)
    own: Optional[tuple[Organization, Connector]] = field(repr=False)
    connector_steps: tuple[Step, ...] = field(repr=False)


class Rules:
    """The organisations, immutable. Domains given to its methods are in normal form (`normalize_domain`).

    local_domains: domains that are inside and no organisation's. subdomains_relay: whether MatchSubDomains satisfies
    condition (1), beside making a recipient inside (R4). before: rules with some of the same organisations, the very
    objects, which then need not be looked at again. Raises ValueError for a name in no normal form, a domain or an
    organisation's name that is there twice, and an organisation without accepted domain.
    """

    def __init__(
        self,
        organizations: Iterable[Organization],
        *,
        local_domains: Iterable[str] = (),
        subdomains_relay: bool = True,
        before: Optional[Rules] = None,
    ) -> None:
        by_name: dict[str, Organization] = {}
        for organization in organizations:
            if by_name.setdefault(organization.name, organization) is not organization:
                raise ValueError(f"organization {organization.name} is there twice")
            if not organization.accepted_domains:
                raise ValueError(f"organization {organization.name} has no accepted domain")
        self.organizations: Mapping[str, Organization] = MappingProxyType(by_name)
        self.local_domains = frozenset(map(_normal, local_domains))
        self.subdomains_relay = subdomains_relay
        there = before.organizations if before else {}
        fresh = [item for name, item in by_name.items() if there.get(name) is not item]
        gone = [item for name, item in there.items() if by_name.get(name) is not item]
        self._exact: dict[str, Accepted] = dict(before._exact) if before else {}
        self._covering: dict[str, Accepted] = dict(before._covering) if before else {}
        for organization in gone:
            for accepted_domain in organization.accepted_domains:
                del self._exact[accepted_domain.domain]
                self._covering.pop(accepted_domain.domain, None)
        for organization in fresh:
            for accepted_domain in organization.accepted_domains:
                self._add(organization, accepted_domain)
            for connector in organization.connectors:
                _check_names(connector)
        pairs = [(organization, item) for organization in fresh for item in organization.connectors]
        enabled, disabled = (before._enabled, before._disabled) if before else (None, None)
        self._enabled: ConnectorIndex = ConnectorIndex((pair for pair in pairs if pair[1].enabled), enabled, gone)
        self._disabled: ConnectorIndex = ConnectorIndex((pair for pair in pairs if not pair[1].enabled), disabled, gone)

    def _add(self, organization: Organization, accepted_domain: AcceptedDomain) -> None:
        domain = _normal(accepted_domain.domain)
        accepted = Accepted(organization, accepted_domain, True)
        first = self._exact.setdefault(domain, accepted)
        if first is not accepted:
            raise ValueError(f"{domain} is accepted twice: in {first.organization.name} and in {organization.name}")
        if accepted_domain.match_subdomains:
            self._covering[domain] = Accepted(organization, accepted_domain, False)

    def accepted(self, domain: str) -> Optional[Accepted]:
        """Return who accepts *domain*: it is declared, or its nearest parent with MatchSubDomains is (R4)."""
        return self._exact.get(domain) or self._covered(domain)

    def _covered(self, domain: str) -> Optional[Accepted]:
        above = parent(domain) if self._covering else ""
        while above:
            found = self._covering.get(above)
            if found is not None:
                return found
            above = parent(above)
        return None

    def inside(self, domain: str) -> bool:
        """Tell whether mail to *domain* is no relay (R2)."""
        return domain in self.local_domains or self.accepted(domain) is not None

    def counts(self, accepted: Accepted) -> bool:
        """Tell whether *accepted* satisfies condition (1), not only makes a recipient inside (R4)."""
        return accepted.exact or self.subdomains_relay

    def certificate_reaches(self, domain: str) -> Iterator[Accepted]:
        """Yield what accepts a certificate's *domain*: itself, its parent (R9), a domain with MatchSubDomains."""
        found = None
        for name in (domain, parent(domain)):
            found = self._exact.get(name)
            if found is not None:
                yield found
        covered = self._covered(domain)
        if covered is not None and (found is None or covered.accepted_domain is not found.accepted_domain):
            yield covered

    def client(
        self,
        ip: Optional[str],
        certificate_names: Sequence[str] = (),
        *,
        authenticated: bool = False,
        local: bool = False,
    ) -> Client:
        """Return what the rules say of a connection, computed once for all its messages.

        ip: as the MTA reports it; None or no IP address matches nothing. certificate_names: CN, then SANs, of
        a certificate that is trusted; of an untrusted one none (R10). authenticated: by SASL. local: by
        sendmail(1).
        """
        address = parse_address(ip)
        domains = [domain for domain in map(certificate_domain, certificate_names) if domain]
        enabled = self._enabled.matches(address, ip or "", domains)
        disabled = self._disabled.matches(address, ip or "", domains)
        steps: list[Step] = []
        own, connector_steps = self._own(enabled, disabled, ip or "")
        return Client(
            ip=ip,
            certificate_names=tuple(certificate_names),
            authenticated=authenticated,
            local=local,
            rules=self,
            enabled=enabled,
            disabled=disabled,
            candidate=self._by_certificate(certificate_names, enabled, disabled, ip or "", steps),
            certificate_steps=tuple(steps),
            own=own,
            connector_steps=connector_steps,
        )

    def _by_certificate(
        self,
        names: Sequence[str],
        enabled: tuple[Match, ...],
        disabled: tuple[Match, ...],
        ip: str,
        steps: list[Step],
    ) -> Optional[Candidate]:
        best: Optional[Candidate] = None
        for name in names:
            domain = certificate_domain(name)
            reached = list(self.certificate_reaches(domain)) if domain else []
            if not reached:
                steps.append(Step(Condition.CERTIFICATE_ACCEPTED, domain or name, None, None, None, False))
            for accepted in reached:
                organization, accepted_domain, _ = accepted
                held = self.counts(accepted)
                steps.append(
                    Step(
                        Condition.CERTIFICATE_ACCEPTED,
                        domain or name,
                        organization,
                        None,
                        accepted_domain,
                        held,
                    )
                )
                if not held:
                    continue
                found = connector_for(accepted, enabled, disabled, ip, steps)
                candidate = Candidate(Reason.CERTIFICATE_ACCEPTED, accepted, *found)
                if candidate.connector is not None:
                    return candidate
                best = best or candidate
        return best

    def _own(
        self, enabled: tuple[Match, ...], disabled: tuple[Match, ...], ip: str
    ) -> tuple[Optional[tuple[Organization, Connector]], tuple[Step, ...]]:
        """Return whose connector matches, where it is one organisation's, and the steps that say so."""
        if not enabled:
            steps = [Step(Condition.CONNECTOR_ANY, ip, None, None, None, False)]
            for _, looked_at, found in disabled:
                if len(found) == 1:  # of many organisations, none is likelier than the others
                    name, (connector, *_) = next(iter(found.items()))
                    whose = self.organizations[name]
                    steps.append(Step(Condition.CONNECTOR_ENABLED, looked_at, whose, connector, None, False))
            return None, tuple(steps)
        condition, looked_at, connectors = enabled[0]
        name, (connector, *_) = next(iter(connectors.items()))
        if any(len(match.connectors) > 1 or name not in match.connectors for match in enabled):
            return None, (Step(condition, looked_at, None, None, None, True),)
        organization = self.organizations[name]
        return (organization, connector), (Step(condition, looked_at, organization, connector, None, True),)


@lru_cache(1024)
def known_client(
    rules: Rules,
    ip: Optional[str],
    certificate_names: tuple[str, ...],
    *,
    authenticated: bool = False,
    local: bool = False,
) -> Client:
    """Return `Rules.client`, remembered: it takes longer than a verdict, and the same clients come again and again.

    For a process that keeps one configuration only. Rules with a memory of their own clients would refer to themselves,
    and a supervisor, which freezes what is there, would never be rid of those of before.
    """
    return rules.client(ip, certificate_names, authenticated=authenticated, local=local)


def connector_for(
    accepted: Accepted,
    enabled: tuple[Match, ...],
    disabled: tuple[Match, ...],
    ip: str,
    steps: list[Step],
) -> tuple[Optional[Connector], Optional[Connector]]:
    """Try condition (2) for *accepted*; append what was tried to *steps*.

    Returns the connector that met it, or None and the first connector that R11 alone ruled out.
    """
    organization, accepted_domain, _ = accepted
    limited: Optional[Connector] = None
    for condition, looked_at, connectors in enabled:
        for connector in connectors.get(organization.name, ()):
            steps.append(Step(condition, looked_at, organization, connector, None, True))
            associated = connector.associated_accepted_domains
            if not associated:
                return connector, None
            held = accepted_domain.domain in associated
            steps.append(
                Step(
                    Condition.CONNECTOR_DOMAINS,
                    accepted_domain.domain,
                    organization,
                    connector,
                    accepted_domain,
                    held,
                )
            )
            if held:
                return connector, None
            limited = limited or connector
    if limited is None:
        steps.append(Step(Condition.CONNECTOR_ANY, ip, organization, None, None, False))
    for _, looked_at, connectors in disabled:
        for connector in connectors.get(organization.name, ()):
            steps.append(Step(Condition.CONNECTOR_ENABLED, looked_at, organization, connector, None, False))
    return None, limited


def _normal(domain: str) -> str:
    if not is_normal(domain):
        raise ValueError(f'"{domain}" is not a domain name in lower case, as A-label')
    return domain


def _check_names(connector: Connector) -> None:
    name = connector.tls_sender_certificate_name
    if name is not None:
        _normal(name[2:] if name.startswith("*.") else name)
    for domain in connector.associated_accepted_domains:
        _normal(domain)
