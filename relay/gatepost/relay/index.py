# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the connectors that match a client, in a time that does not grow with the organisations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, Optional, Union

from gatepost.relay.names import parent
from gatepost.relay.organization import Connector, Network, Organization
from gatepost.relay.verdict import Condition

Address = Union[IPv4Address, IPv6Address]
ByOrganization = dict[str, tuple[Connector, ...]]


class Match(NamedTuple):
    """The connectors, by organisation name, that match a client by the address or name *looked_at*."""

    condition: Condition
    looked_at: str
    connectors: Mapping[str, tuple[Connector, ...]]


class ConnectorIndex:
    """Connectors by certificate name, by domain of a wildcard, and by network: one table a prefix length."""

    def __init__(self, connectors: Iterable[tuple[Organization, Connector]]) -> None:
        self._names: dict[str, ByOrganization] = {}
        self._wildcards: dict[str, ByOrganization] = {}
        networks: dict[tuple[int, int], dict[int, ByOrganization]] = {}
        for organization, connector in connectors:
            name = connector.tls_sender_certificate_name
            if name is not None and name.startswith("*."):
                _add(self._wildcards.setdefault(name[2:], {}), organization, connector)
            elif name is not None:
                _add(self._names.setdefault(name, {}), organization, connector)
            for network in map(_unmapped, connector.sender_ip_addresses):
                shift = network.max_prefixlen - network.prefixlen
                table = networks.setdefault((network.version, shift), {})
                _add(table.setdefault(int(network.network_address) >> shift, {}), organization, connector)
        self._networks: dict[int, list[tuple[int, dict[int, ByOrganization]]]] = {4: [], 6: []}
        # The longest prefix first: the connector that names the client most exactly is the one reported.
        for version, shift in sorted(networks):
            self._networks[version].append((shift, networks[version, shift]))

    def matches(self, address: Optional[Address], text: str, domains: Iterable[str]) -> tuple[Match, ...]:
        """Return what matches a client: by certificate *domains*, then by *address*, written *text*."""
        found = {id(match.connectors): match for match in self._by_certificate(domains)}
        by_address = self._by_address(address, text) if address is not None else ()
        return (*found.values(), *by_address)

    def _by_certificate(self, domains: Iterable[str]) -> Iterator[Match]:
        for domain in domains:
            connectors = self._names.get(domain)
            if connectors:
                yield Match(Condition.CONNECTOR_CERTIFICATE, domain, connectors)
            above = domain
            while above and self._wildcards:
                connectors = self._wildcards.get(above)
                if connectors:
                    yield Match(Condition.CONNECTOR_CERTIFICATE, domain, connectors)
                above = parent(above)

    def _by_address(self, address: Address, text: str) -> Iterator[Match]:
        number = int(address)
        for shift, table in self._networks[address.version]:
            connectors = table.get(number >> shift)
            if connectors:
                yield Match(Condition.CONNECTOR_ADDRESS, text, connectors)


def _add(connectors: ByOrganization, organization: Organization, connector: Connector) -> None:
    known = connectors.get(organization.name, ())
    if connector not in known:
        connectors[organization.name] = (*known, connector)


def parse_address(text: Optional[str]) -> Optional[Address]:
    """Return the IP address *text*, an IPv4-mapped one as IPv4 (RFC 4291, 2.5.5.2); None where it is none."""
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _unmapped(network: Network) -> Network:
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is None or network.prefixlen < 96:
        return network
    return IPv4Network((mapped, network.prefixlen - 96))
