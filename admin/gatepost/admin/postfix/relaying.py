# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a Postfix relays for strangers: what its networks, its restriction lists and its domains say to them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Optional

from gatepost.admin.postfix.config import PostfixConfig, PostfixError, Service
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, contains, file_entries, is_table

WIDE = {4: 8, 6: 7}
"""No network of one's own is wider: 10.0.0.0/8, fc00::/7."""
GUARDS = frozenset(
    {"reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit"},
)
"""Restrictions that keep strangers from relaying."""
RELAY_LISTS = ("smtpd_relay_restrictions", "smtpd_recipient_restrictions")
"""The lists of which smtpd(8) wants a guard in one or the other; mail has to pass both."""
TAKES_ARGUMENT = r"check_\w+|reject_rbl_client|reject_rhsbl_\w+|permit_dnswl_client|permit_rhswl_client|warn_if_reject"
"""A pattern of the restrictions that take the next entry as argument."""

_NOBODYS_DOMAIN = "gatepost-setup.invalid"
_NOBODYS_ADDRESSES = ("0.0.0.1", "240.0.0.1", "3fff:ffff::1")
"""Addresses that no host has: what means one of them means everybody."""
_PATTERN_TABLE = re.compile(r"^(static|cidr|regexp|pcre):")
_PERMITS = re.compile(r"(ok|permit)\b|\d+$", re.IGNORECASE)


def wide_networks(config: PostfixConfig, networks: Sequence[str]) -> list[str]:
    """Return the entries of a mynetworks that have half the world in them: networks, files, tables."""
    tables = Tables(config)
    return [entry for entry in networks if _is_wide(tables, entry)]


def _is_wide(tables: Tables, entry: str) -> bool:
    try:
        if entry.startswith("!"):
            return False
        if entry.startswith("/"):
            return any(_is_wide(tables, inner) for inner in file_entries(entry))
        if is_table(entry):
            return any(tables.query(entry, address) is not None for address in _NOBODYS_ADDRESSES)
        network = ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except (PostfixError, ValueError):
        return False
    return network.prefixlen < WIDE[network.version]


def hosts_only(networks: Sequence[str]) -> bool:
    """Say whether a mynetworks has something, and nothing but single hosts and loopback, `::ffff:127.0.0.0/104` too."""
    return bool(networks) and all(_is_host(entry) for entry in networks)


def _is_host(entry: str) -> bool:
    try:
        network = ip_network(entry.replace("[", "").replace("]", ""), strict=False)
    except ValueError:
        return False
    first = network.network_address
    mapped = first.ipv4_mapped if first.version == 6 else None
    return network.prefixlen == network.max_prefixlen or first.is_loopback or bool(mapped and mapped.is_loopback)


@dataclass(frozen=True)
class Restriction:
    """An entry of a restriction list; *argument*: the table or server that a check_… asks.

    name: "" for a table alone, which stands for check_…_access of the list's kind.
    """

    name: str
    argument: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.argument}".strip()

    @property
    def table(self) -> str:
        """The table that tells actions (access(5)), "" where there is none."""
        return self.argument if not self.name or self.name.endswith("_access") else ""


def restrictions(config: PostfixConfig, service: Service, name: str) -> list[Restriction]:
    """Return a service's list, without warn_if_reject and what it is for, restriction classes in their place."""
    classes = set(config.entries("smtpd_restriction_classes"))
    return list(_restrictions(config, classes, config.effective_entries(service, name)))


def _restrictions(config: PostfixConfig, classes: AbstractSet[str], entries: Sequence[str]) -> Iterator[Restriction]:
    left = list(entries)
    while left:
        entry = left.pop(0)
        if entry in classes:
            yield from _restrictions(config, classes - {entry}, config.entries(entry))
        elif entry == "warn_if_reject":
            # What it is for only warns.
            if left and re.fullmatch(TAKES_ARGUMENT, left.pop(0)) and left:
                left.pop(0)
        elif re.fullmatch(TAKES_ARGUMENT, entry) and left:
            yield Restriction(entry, left.pop(0))
        elif is_table(entry):
            yield Restriction("", entry)
        else:
            yield Restriction(entry)


def verdict(config: PostfixConfig, service: Service, name: str) -> Optional[Restriction]:
    """Return what decides in a restriction list about strangers: a guard, or what permits all; None if nothing does."""
    tables = Tables(config)
    for restriction in restrictions(config, service, name):
        if restriction.name in GUARDS or restriction.name == "permit" or _permits_all(tables, restriction):
            return restriction
    return None


def sasl_only(config: PostfixConfig, service: Service, name: str) -> bool:
    """Say whether a restriction list lets nobody relay but users who have authenticated: policyd has no say there."""
    names = {item.name for item in restrictions(config, service, name)}
    others = {item for item in names if not item.startswith("reject")}
    return others == {"permit_sasl_authenticated"} and "reject" in names


def closed(config: PostfixConfig, service: Service, name: str) -> bool:
    """Say whether a restriction list lets in mynetworks, and nobody else."""
    return [item.name for item in restrictions(config, service, name)] == ["permit_mynetworks", "reject"]


def _permits_all(tables: Tables, restriction: Restriction) -> bool:
    if not _PATTERN_TABLE.match(restriction.table):
        return False
    keys = (*_NOBODYS_ADDRESSES, _NOBODYS_DOMAIN, f"somebody@{_NOBODYS_DOMAIN}")
    try:
        return any(_PERMITS.match(tables.query(restriction.table, key) or "") for key in keys)
    except PostfixError:
        return False


def everything_inside(config: PostfixConfig) -> Iterator[tuple[str, str]]:
    """Yield each list of domains, and its entry, that says yes to every domain.

    By default virtual_alias_domains are the tables of virtual_alias_maps, and one with everything in it is a
    mailbox for all mail, and no relay.
    """
    tables = Tables(config)
    for name in DOMAIN_LISTS:
        if name == "virtual_alias_domains" and not config.is_set(name):
            continue
        for entry in config.entries(name):
            try:
                if contains(tables, [entry], _NOBODYS_DOMAIN):
                    yield name, entry
            except PostfixError:
                continue
