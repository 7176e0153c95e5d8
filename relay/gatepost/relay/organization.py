# SPDX-License-Identifier: GPL-3.0-or-later
"""Organisations as they are configured: accepted domains and inbound connectors."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Optional, Union

Network = Union[IPv4Network, IPv6Network]


def network_of(text: str) -> Optional[Network]:
    """Return an address or a network in CIDR notation, host bits allowed (R7); None where it is neither.

    Masks in their stead, as in 203.0.113.5/0.0.0.0, mean networks that nobody reading them expects.
    """
    _, slash, length = text.partition("/")
    try:
        return None if slash and not length.isdigit() else ip_network(text, strict=False)
    except ValueError:
        return None


class DomainType(Enum):
    """Type of an accepted domain; the relay rule treats all three alike."""

    AUTHORITATIVE = "Authoritative"
    INTERNAL_RELAY = "InternalRelay"
    EXTERNAL_RELAY = "ExternalRelay"


@dataclass(frozen=True)
class AcceptedDomain:
    """A domain of an organisation, in normal form. match_subdomains: its subdomains too (R4)."""

    domain: str
    type: DomainType = DomainType.AUTHORITATIVE
    default: bool = False
    match_subdomains: bool = False


@dataclass(frozen=True)
class Connector:
    """An inbound connector of type OnPremises; a client matches it by address or by certificate name.

    tls_sender_certificate_name: a domain in normal form, or `*.` and one for it and all its subdomains (R8).
    associated_accepted_domains: where not empty, the connector counts for these accepted domains only (R11).
    declared: it is written by hand and not this host's own, so remedies may change it; of no weight else.
    """

    name: str
    sender_ip_addresses: tuple[Network, ...] = ()
    tls_sender_certificate_name: Optional[str] = None
    enabled: bool = True
    associated_accepted_domains: tuple[str, ...] = ()
    declared: bool = field(default=True, compare=False)


@dataclass(frozen=True)
class Organization:
    """A tenant, known by its *name*."""

    name: str
    accepted_domains: tuple[AcceptedDomain, ...]
    connectors: tuple[Connector, ...] = ()

    @property
    def default_domain(self) -> str:
        """The accepted domain with default set, else the first one. An organisation has at least one."""
        for accepted_domain in self.accepted_domains:
            if accepted_domain.default:
                return accepted_domain.domain
        return self.accepted_domains[0].domain
