# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds what is right organisation by organisation and ambiguous between them (R3), for `gatepost config check`.

Every search walks sorted or nested names once, so that ten thousand organisations take a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from gatepost.relay import Connector, Network, Organization
from gatepost.relay.names import certificate_domain, parent
from gatepost.service.organizations import OrganizationConfig

LINES = 20
"""So many findings are told; of more than that, a few of each kind."""
_OF_EACH_KIND = 3
_NAMED = 3

Owners = dict[str, str]
"""The organisations that have something, each with the first of its connectors that does."""


def findings(organizations: Mapping[str, Organization], settings: Mapping[str, OrganizationConfig]) -> list[str]:
    """Return sentences: what is ambiguous, what happens then, what to do."""
    pairs = ((item, connector) for item in organizations.values() for connector in item.connectors)
    enabled = [pair for pair in pairs if pair[1].enabled]
    kinds = [
        ("shared addresses", list(_shared_networks(enabled))),
        ("shared certificate names", list(_shared_certificates(enabled))),
        ("certificate names in no accepted domain", list(_foreign_certificates(enabled))),
        ("accepted domains under another organization's", list(_nested_domains(organizations))),
        ("organizations without an enabled connector", list(unreachable(organizations, settings))),
    ]
    if sum(len(found) for _, found in kinds) <= LINES:
        return [line for _, found in kinds for line in found]
    lines = []
    for name, found in kinds:
        lines += found[:_OF_EACH_KIND]
        if len(found) > _OF_EACH_KIND:
            lines.append(f"and {len(found) - _OF_EACH_KIND} more {name}")
    return lines


def _shared_networks(enabled: list[tuple[Organization, Connector]]) -> Iterator[str]:
    """Yield the addresses that connectors of several organisations have, alike or one within the other."""
    owners: dict[Network, Owners] = {}
    for organization, connector in enabled:
        for network in connector.sender_ip_addresses:
            owners.setdefault(network, {}).setdefault(organization.name, connector.name)
    around: list[Network] = []  # what contains the network at hand, the widest first
    for network in sorted(owners, key=lambda item: (item.version, int(item.network_address), item.prefixlen)):
        while around and not _within(network, around[-1]):
            around.pop()
        mine = owners[network]
        outer = next((item for item in reversed(around) if any(name not in mine for name in owners[item])), None)
        if len(mine) > 1:
            yield f"{_address(network)} is in {_connectors(mine)}: {_SHARED_ADDRESS}"
        elif outer:
            others = {name: connector for name, connector in owners[outer].items() if name not in mine}
            start = f"{_address(network)} in {_connectors(mine)} is within {outer} in {_connectors(others)}"
            yield f"{start}: {_SHARED_ADDRESS}"
        around.append(network)


_SHARED_ADDRESS = (
    "without a certificate P1 alone tells whose mail comes from there, and mail with a null sender or a foreign P1 is "
    "refused as nobody's (relay.mode and relay.action). Give each organization a certificate of its own "
    "(tls_sender_certificate_name)"
)


def _within(network: Network, other: Network) -> bool:
    """Tell whether *network* is a part of *other*, which sorts before it."""
    return network.version == other.version and int(network.broadcast_address) <= int(other.broadcast_address)


def _address(network: Network) -> str:
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _shared_certificates(enabled: list[tuple[Organization, Connector]]) -> Iterator[str]:
    """Yield the certificate names that connectors of several organisations have, or that one's wildcard covers."""
    owners: dict[str, Owners] = {}
    for organization, connector in enabled:
        if connector.tls_sender_certificate_name:
            found = owners.setdefault(connector.tls_sender_certificate_name, {})
            found.setdefault(organization.name, connector.name)
    for name, mine in owners.items():
        if len(mine) > 1:
            yield f"certificate name {name} is in {_connectors(mine)}: {_SHARED_CERTIFICATE}"
            continue
        for wildcard in _wildcards_over(name):
            others = {other: connector for other, connector in owners.get(wildcard, {}).items() if other not in mine}
            if others:
                start = (
                    f"certificate name {name} in {_connectors(mine)} is covered by {wildcard} in {_connectors(others)}"
                )
                yield f"{start}: {_SHARED_CERTIFICATE}"
                break


_SHARED_CERTIFICATE = (
    "mail with such a certificate counts for the one of them that accepts the certificate's domain, whatever its P1 "
    "is. Give each organization a certificate name of its own"
)


def _wildcards_over(name: str) -> Iterator[str]:
    """Yield the wildcards, but *name* itself, that match all that *name* matches, the nearest first."""
    domain = name[2:] if name.startswith("*.") else name
    while domain:
        if name != f"*.{domain}":
            yield f"*.{domain}"
        domain = parent(domain)


def _foreign_certificates(enabled: list[tuple[Organization, Connector]]) -> Iterator[str]:
    """Yield the connectors whose certificates can't meet condition (1), also not one label up (R9)."""
    reached: dict[str, Callable[[str, bool], bool]] = {}
    for organization, connector in enabled:
        name = connector.tls_sender_certificate_name
        if name is None:
            continue
        if organization.name not in reached:
            reached[organization.name] = _reach(organization)
        domain = certificate_domain(name) or ""
        if not reached[organization.name](domain, name.startswith("*.")):
            yield (
                f'connector "{connector.name}" of {organization.name}: no accepted domain of {organization.name} is '
                f"{domain}, nor {parent(domain)}, one label up: its certificate meets condition 2 only, so that mail "
                "needs an accepted P1, and null senders are refused. Declare the domain, or use a certificate name in "
                f"an accepted domain, such as mail.{organization.default_domain}"
            )


def _reach(organization: Organization) -> Callable[[str, bool], bool]:
    """Return what tells whether a certificate for a domain, or for any below it, is in an accepted domain."""
    exact = {item.domain for item in organization.accepted_domains}
    covering = {item.domain for item in organization.accepted_domains if item.match_subdomains}
    above = {domain for item in exact for domain in _with_parents(item)}

    def accepted(domain: str) -> bool:
        return domain in exact or any(item in covering for item in _with_parents(parent(domain)))

    def reaches(domain: str, wildcard: bool) -> bool:
        return accepted(domain) or accepted(parent(domain)) or (wildcard and domain in above)

    return reaches


def _with_parents(domain: str) -> Iterator[str]:
    while domain:
        yield domain
        domain = parent(domain)


def _nested_domains(organizations: Mapping[str, Organization]) -> Iterator[str]:
    """Yield accepted domains below one that another organisation accepts with all its subdomains (R4)."""
    covering = {
        accepted.domain: item.name
        for item in organizations.values()
        for accepted in item.accepted_domains
        if accepted.match_subdomains
    }
    if not covering:
        return
    for item in organizations.values():
        for accepted in item.accepted_domains:
            above = next((domain for domain in _with_parents(parent(accepted.domain)) if domain in covering), None)
            if above is None or covering[above] == item.name:
                continue
            below = item.name if accepted.match_subdomains else covering[above]
            yield (
                f"{accepted.domain} of {item.name} is below {above}, which {covering[above]} accepts with "
                f"match_subdomains: {accepted.domain} itself counts for {item.name}, its subdomains for {below}. "
                f"If that is not meant, declare the subdomains of {above} one by one"
            )


def unreachable(organizations: Mapping[str, Organization], settings: Mapping[str, OrganizationConfig]) -> Iterator[str]:
    """Yield organisations that have connectors, or an export of them, and none that counts (R6)."""
    for name, item in organizations.items():
        if any(connector.enabled for connector in item.connectors):
            continue
        if item.connectors or settings[name].exchange_export.paths:
            which = "all its connectors are disabled" if item.connectors else "its exports have no connector to take"
            yield (
                f"{name}: {which}, so nothing meets condition 2 for it: whatever its hosts send to outside is refused. "
                "Enable one, or declare [[organization.connector]] with the hosts' addresses or certificate name"
            )


def _connectors(owners: Owners) -> str:
    named = [f'connector "{connector}" of {name}' for name, connector in list(owners.items())[:_NAMED]]
    more = len(owners) - len(named)
    return " and ".join(named) if not more else f"{', '.join(named)} and {more} more"
