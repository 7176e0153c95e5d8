# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Exchange Online's relay rule, written from R1 to R11 alone. Nothing of gatepost is imported here.

One tenant: that of the organisation whose hub sends here (R3 asks which of several is meant). All connectors are of
type OnPremises (R6). Certificates are given by the names of a trusted one (R10).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

DENIED = "550 5.7.64 TenantAttribution; Relay Access Denied"
TAKEN = ""


@dataclass(frozen=True)
class InboundConnector:
    """Addresses and networks of clients, the certificate name, and the accepted domains that it is limited to."""

    addresses: Sequence[str] = ()
    certificate_name: str = ""
    associated: Sequence[str] = ()
    enabled: bool = True


@dataclass(frozen=True)
class Tenant:
    """accepted: each accepted domain, and whether it has MatchSubDomains. subdomains_relay: see R4."""

    accepted: Mapping[str, bool]
    connectors: Sequence[InboundConnector]
    subdomains_relay: bool = True


def answer(tenant: Tenant, ip: str, certificate: Iterable[str], mail_from: str, rcpt: str) -> str:
    """Return the reply to RCPT, TAKEN where it is taken. What P2 is has not mattered since 2023-11-01."""
    if any(True for _ in covering(tenant, domain_of(rcpt))):  # R2
        return TAKEN
    names = [name[2:] if name.startswith("*.") else name for name in certificate]  # R9: a wildcard one is its domain
    first = list(condition_1(tenant, names, mail_from))
    for connector in tenant.connectors:
        if not connector.enabled or not matches(connector, ip, names):  # R6
            continue
        if first and not connector.associated:
            return TAKEN
        if set(first) & set(connector.associated):  # R11
            return TAKEN
    return DENIED


def condition_1(tenant: Tenant, names: Iterable[str], mail_from: str) -> Iterator[str]:
    """Yield the accepted domains that the certificate or P1 brings in; a null P1 brings none (R5)."""
    for name in names:
        above = name.split(".", 1)[1] if "." in name else ""
        yield from (domain for domain in (name, above) if domain in tenant.accepted)  # R9
        yield from by_subdomain(tenant, name)
    if "@" not in mail_from:
        return
    domain = domain_of(mail_from)
    if domain in tenant.accepted:
        yield domain
    else:
        yield from by_subdomain(tenant, domain)


def by_subdomain(tenant: Tenant, domain: str) -> list[str]:
    """Return the nearest domain that has *domain* below it and MatchSubDomains, where that counts (R4)."""
    return list(covering(tenant, domain, declared=False))[:1] if tenant.subdomains_relay else []


def covering(tenant: Tenant, domain: str, *, declared: bool = True) -> Iterator[str]:
    if declared and domain in tenant.accepted:
        yield domain
    labels = domain.split(".")
    for index in range(1, len(labels)):
        above = ".".join(labels[index:])
        if tenant.accepted.get(above):
            yield above


def matches(connector: InboundConnector, ip: str, names: Iterable[str]) -> bool:
    """Tell whether the connector is for this client: by its address (R7) or by its certificate (R8)."""
    if any(ipaddress.ip_address(ip) in ipaddress.ip_network(text, strict=False) for text in connector.addresses):
        return True
    wanted = connector.certificate_name
    if wanted.startswith("*."):
        return any(name == wanted[2:] or name.endswith(wanted[1:]) for name in names)
    return any(name == wanted for name in names)


def domain_of(address: str) -> str:
    domain = address.rsplit("@", 1)[-1].lower()
    domain = domain[:-1] if domain.endswith(".") else domain
    try:
        return domain.encode("idna").decode("ascii")
    except UnicodeError:
        return domain
