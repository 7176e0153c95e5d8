# SPDX-License-Identifier: GPL-3.0-or-later
"""What a refused client could be let through by: whose it is, its connectors, and domains that these take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

from gatepost.relay.names import certificate_domain, domain_of, parent
from gatepost.relay.organization import Connector, Organization
from gatepost.relay.rules import Accepted, Client, Rules
from gatepost.relay.verdict import Condition, Mail, Verdict


@dataclass(frozen=True)
class Circumstances:
    """A refused client, and the *organization* that can let it through; None where several may be meant.

    by_name, by_address: the organisation's enabled connectors that match the client, of whichever where it is None.
    """

    client: Client
    organization: Optional[Organization]
    by_name: tuple[Connector, ...]
    by_address: tuple[Connector, ...]

    @property
    def connectors(self) -> tuple[Connector, ...]:
        return (*self.by_name, *self.by_address)

    @property
    def owner(self) -> str:
        return f"organization[{self.organization.name}]" if self.organization else "your organization"

    @property
    def whose(self) -> str:
        return self.organization.name if self.organization else "your organization"

    def key(self, connector: Connector) -> str:
        return f"{self.owner}.connector[{connector.name}]"

    @property
    def without_default(self) -> bool:
        """Whether a second accepted domain makes it necessary to say which one is the default."""
        organizations = [self.organization] if self.organization else self.client.rules.organizations.values()
        return not all(any(domain.default for domain in owner.accepted_domains) for owner in organizations)

    def is_meant(self, organization: Organization) -> bool:
        return self.organization in (None, organization)

    def takes(self, domain: str) -> bool:
        """Tell whether a connector that matches takes mail of *domain* (R11), or one that is still to be declared."""
        return not self.connectors or any(allows(connector, domain) for connector in self.connectors)

    def enabled(self) -> Iterator[Connector]:
        """Yield the organisation's enabled connectors that remedies may change."""
        for connector in self.organization.connectors if self.organization else ():
            if connector.enabled and connector.declared:
                yield connector

    def example(self, connectors: tuple[Connector, ...]) -> Optional[str]:
        """Return an accepted domain that one of *connectors* takes, the default domain if possible; any where none is.

        None where the organisation is not known, or they take none.
        """
        if self.organization is None:
            return None
        domains = [self.organization.default_domain, *(item.domain for item in self.organization.accepted_domains)]
        taken = (item for item in domains if not connectors or any(allows(found, item) for found in connectors))
        return next(taken, None)

    def fitting_name(self, connector: Connector) -> Optional[str]:
        """Return a certificate name that *connector* matches and that is in an accepted domain, None: there is none."""
        pattern = connector.tls_sender_certificate_name or ""
        names = (f"mail.{pattern[2:]}", pattern[2:]) if pattern.startswith("*.") else (pattern,)
        return next((name for name in names if name and self._accepted(name, connector)), None)

    def _accepted(self, name: str, connector: Connector) -> bool:
        rules = self.client.rules
        return any(
            reached.organization is self.organization
            and rules.counts(reached)
            and allows(connector, reached.accepted_domain.domain)
            for reached in rules.certificate_reaches(name)
        )


def circumstances(verdict: Verdict, client: Client, mail: Mail) -> Circumstances:
    """Return what *client* could be let through by, for which *verdict* was given."""
    organization = verdict.organization or _only(client.rules) or _below(client, mail) or _disabled(verdict)
    return Circumstances(
        client,
        organization,
        tuple(_matching(client, organization, Condition.CONNECTOR_CERTIFICATE)),
        tuple(_matching(client, organization, Condition.CONNECTOR_ADDRESS)),
    )


def allows(connector: Connector, domain: str) -> bool:
    """Tell whether *connector* counts for the accepted *domain* (R11)."""
    return not connector.associated_accepted_domains or domain in connector.associated_accepted_domains


def accepted_above(rules: Rules, domain: str) -> Optional[Accepted]:
    """Return who accepts the nearest parent of *domain* that is accepted."""
    above = parent(domain)
    while above:
        accepted = rules.accepted(above)
        if accepted is not None:
            return accepted
        above = parent(above)
    return None


def _only(rules: Rules) -> Optional[Organization]:
    organizations = tuple(rules.organizations.values())
    return organizations[0] if len(organizations) == 1 else None


def _below(client: Client, mail: Mail) -> Optional[Organization]:
    """Return the organisation that has a domain above that of P1, or of a certificate name."""
    names = filter(None, map(certificate_domain, client.certificate_names))
    for domain in (domain_of(mail.reverse_path), *map(parent, names)):
        above = accepted_above(client.rules, domain) if domain else None
        if above is not None:
            return above.organization
    return None


def _disabled(verdict: Verdict) -> Optional[Organization]:
    """Return the organisation of a disabled connector that covers the client."""
    steps = (step for step in verdict.trace if step.condition is Condition.CONNECTOR_ENABLED)
    return next((step.organization for step in steps), None)


def _matching(client: Client, organization: Optional[Organization], by: Condition) -> Iterator[Connector]:
    for condition, _, connectors in client.enabled:
        for name, found in connectors.items():
            if condition is by and (organization is None or name == organization.name):
                yield from found
