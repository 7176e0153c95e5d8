# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the connectors that match a client, in a time that does not grow with the organisations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple, Optional, Union

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

    def __init__(
        self,
        connectors: Iterable[tuple[Organization, Connector]],
        before: Optional[ConnectorIndex] = None,
        gone: Iterable[Organization] = (),
    ) -> None:
        """Index *connectors*, and what *before*, which stays as it is, has of other organisations than those *gone*."""
        self._names: dict[str, ByOrganization] = dict(before._names) if before else {}
        self._wildcards: dict[str, ByOrganization] = dict(before._wildcards) if before else {}
        self._networks: dict[int, dict[int, dict[int, ByOrganization]]] = {4: {}, 6: {}}
        for version, tables in before._networks.items() if before else ():
            self._networks[version] = {shift: dict(table) for shift, table in tables.items()}
        self._own: dict[int, ByOrganization] = {}
        """By id, what stands in one place of this index and nowhere else, so that it may be changed."""
        for organization in gone:
            self._remove(organization)
        for organization, connector in connectors:
            self._add(organization, connector)
        self._own.clear()

    def _add(self, organization: Organization, connector: Connector) -> None:
        alone: ByOrganization = {organization.name: (connector,)}  # in all of its places that nobody else is in
        for table, key in self._places(connector):
            if table.setdefault(key, alone) is alone:
                continue
            there = self._changeable(table, key)
            known = there.get(organization.name, ())
            if connector not in known:
                there[organization.name] = (*known, connector)

    def _remove(self, organization: Organization) -> None:
        for connector in organization.connectors:
            for table, key in self._places(connector):
                if organization.name not in table.get(key, ()):
                    continue
                if len(table[key]) == 1:
                    del table[key]
                else:
                    del self._changeable(table, key)[organization.name]

    def _places(self, connector: Connector) -> Iterator[tuple[dict[Any, ByOrganization], Union[str, int]]]:
        """Yield each table that *connector* belongs into, and its key there."""
        name = connector.tls_sender_certificate_name
        if name is not None and name.startswith("*."):
            yield self._wildcards, name[2:]
        elif name is not None:
            yield self._names, name
        for version, shift, number in map(_place, connector.sender_ip_addresses):
            tables = self._networks[version]
            if shift not in tables:
                # The longest prefix first: the connector that names the client most exactly is the one reported.
                self._networks[version] = tables = dict(sorted([*tables.items(), (shift, {})]))
            yield tables[shift], number

    def _changeable(self, table: dict[Any, ByOrganization], key: Union[str, int]) -> ByOrganization:
        if id(table[key]) not in self._own:
            table[key] = dict(table[key])
            self._own[id(table[key])] = table[key]
        return table[key]

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
        for shift, table in self._networks[address.version].items():
            connectors = table.get(number >> shift)
            if connectors:
                yield Match(Condition.CONNECTOR_ADDRESS, text, connectors)


def parse_address(text: Optional[str]) -> Optional[Address]:
    """Return the IP address *text*, an IPv4-mapped one as IPv4 (RFC 4291, 2.5.5.2); None where it is none."""
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def _place(network: Network) -> tuple[int, int, int]:
    """Return the IP version of *network*, how many bits of an address are not its own, and those that are."""
    address, length = network.network_address, network.prefixlen
    if isinstance(address, IPv4Address):
        return 4, 32 - length, int(address) >> (32 - length)
    if address.ipv4_mapped and length >= 96:
        return 4, 128 - length, int(address.ipv4_mapped) >> (128 - length)
    return 6, 128 - length, int(address) >> (128 - length)
