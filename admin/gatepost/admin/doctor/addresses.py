# SPDX-License-Identifier: GPL-3.0-or-later
"""From which addresses this host's mail leaves, for `gatepost doctor`: nothing is sent to find out."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Optional

from gatepost.admin.doctor.model import Circumstances, Edit, again, edit
from gatepost.relay.index import Address, parse_address

_INSIDE = [
    ip_network(text)
    for text in (
        *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
        *("::1/128", "fc00::/7", "fe80::/10"),
    )
]
"""Addresses that nobody outside sees: private ones, those of providers' NAT, loopback and link."""
_FAR = {4: "198.41.0.4", 6: "2001:503:ba3e::2:30"}
"""Addresses far away (of a root name server), to ask the routing table about. No packet goes there."""


@dataclass(frozen=True)
class Outgoing:
    """The addresses that the next hop sees, as far as they can be known.

    source: where they are from, in words. hidden: why not all can be known, else "".
    """

    addresses: tuple[str, ...] = ()
    source: str = ""
    hidden: str = ""


def outgoing(circumstances: Circumstances) -> Outgoing:
    """Return the addresses from which this host connects to others: as given, as configured, or as routed."""
    if circumstances.addresses:
        return Outgoing(circumstances.addresses, "--address")
    if circumstances.config.srs.outgoing_addresses:
        return Outgoing(circumstances.config.srs.outgoing_addresses, "srs.outgoing_addresses")
    found = {4: _routed(4), 6: _routed(6)}
    source = "routing table"
    if circumstances.has_postfix:
        bound = dict(_bound(circumstances))
        wanted = circumstances.postfix.entries("inet_protocols")
        used = [version for version, name in ((4, "ipv4"), (6, "ipv6")) if name in wanted or "all" in wanted]
        found = {version: bound.get(version) or found[version] for version in used}
        source = "main.cf" if any(version in bound for version in used) else source
    there = [address for address in found.values() if address]
    inside = [address for address in there if is_inside(address)]
    seen = tuple(address for address in there if address not in inside)
    if not there:
        return Outgoing(hidden="this host has no route to the outside")
    if not seen or found.get(4) in inside:  # a private IPv6 address leads nowhere
        why = f"mail leaves from {', '.join(inside)}, which no other site sees: NAT gives it another one on its way"
        return Outgoing(seen, source, why)
    return Outgoing(seen, source)


def telling(circumstances: Circumstances) -> tuple[str, Edit]:
    """Return how to tell from which addresses mail leaves: for once, and for good."""
    return (
        again(circumstances, " --address ADDRESS"),
        edit(circumstances, '[srs] outgoing_addresses = ["ADDRESS"]   # for good'),
    )


def passed_on(circumstances: Circumstances) -> str:
    """Return the host that all mail to outside is handed to, "" where this host delivers itself."""
    if circumstances.addresses or circumstances.config.upstream or not circumstances.has_postfix:
        return ""
    postfix = circumstances.postfix
    return postfix.expanded("relayhost") or postfix.expanded("default_transport").partition(":")[2]


def is_inside(address: str) -> bool:
    """Tell whether no other site sees *address*."""
    parsed = ip_address(address)
    return any(parsed in network for network in _INSIDE if network.version == parsed.version)


def is_own(address: str) -> bool:
    """Tell whether an interface of this host has *address*: only then can a socket be bound to it."""
    parsed = ip_address(address)
    try:
        with socket.socket(_FAMILIES[parsed.version], socket.SOCK_DGRAM) as made:
            made.bind((address, 0))
    except OSError:
        return False
    return not parsed.is_loopback and not parsed.is_unspecified


_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def _routed(version: int) -> Optional[str]:
    """Return the address that the routing table takes for the way to outside, None for no way."""
    try:
        with socket.socket(_FAMILIES[version], socket.SOCK_DGRAM) as made:
            made.connect((_FAR[version], 25))
            return str(made.getsockname()[0])
    except OSError:
        return None


def _bound(circumstances: Circumstances) -> Iterator[tuple[int, str]]:
    """Yield version and address of what Postfix's smtp client binds to: smtp_bind_address, else a single interface."""
    postfix = circumstances.postfix
    service = postfix.service("smtp", "unix")
    for address in _single(list(filter(None, map(parse_address, postfix.entries("inet_interfaces"))))):
        yield address.version, str(address)
    for name in ("smtp_bind_address", "smtp_bind_address6"):
        bound = parse_address(postfix.effective(service, name) if service else postfix.expanded(name))
        if bound is not None:
            yield bound.version, str(bound)


def _single(addresses: list[Address]) -> Iterator[Address]:
    """Yield the addresses that are the only one of their version and no loopback: these Postfix sends from."""
    for version in (4, 6):
        mine = [address for address in addresses if address.version == version]
        if len(mine) == 1 and not mine[0].is_loopback:
            yield mine[0]
