# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a configuration of many organizations that all look alike.

Each has 10 accepted domains, one of them with MatchSubDomains, and 3 connectors: one with 5 networks, of which all
organizations share one, and two with a certificate name.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

SHARED = "198.51.100.7"
"""An address of the network that all organizations share."""
_FIRST = 10 << 24  # each organization owns 1,024 addresses from 10.0.0.0 on
_OFFSETS = {24: 0, 25: 256, 28: 512, 32: 768}


def address(number: int) -> str:
    """Return an address that only organization *number* has, as a network of its own."""
    return str(IPv4Address(_FIRST + number * 1024 + _OFFSETS[32]))


def organization(number: int) -> str:
    """Return [[organization]] of organization *number*, about 1 kB."""
    first = _FIRST + number * 1024
    networks = [str(IPv4Network((first + offset, length))) for length, offset in _OFFSETS.items()]
    lines = ["[[organization]]", f'name = "org{number}"']
    for index in range(9):
        lines += ["[[organization.accepted_domain]]", f'domain = "d{index}.org{number}.example"']
        lines += ["default = true"] if index == 0 else []
    lines += [
        "[[organization.accepted_domain]]",
        f'domain = "wide.org{number}.example"',
        'type = "InternalRelay"',
        "match_subdomains = true",
        "[[organization.connector]]",
        'name = "networks"',
        "sender_ip_addresses = [" + ", ".join(f'"{item}"' for item in (*networks, "198.51.100.0/24")) + "]",
        "[[organization.connector]]",
        'name = "exact"',
        f'tls_sender_certificate_name = "mail.d1.org{number}.example"',
        "[[organization.connector]]",
        'name = "wildcard"',
        f'tls_sender_certificate_name = "*.d2.org{number}.example"',
    ]
    return "\n".join(lines) + "\n"


def organizations(size: int) -> str:
    """Return [[organization]] of *size* organizations, numbered from 0."""
    return "".join(map(organization, range(size)))
