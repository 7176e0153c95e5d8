# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of DNS: where the domains of SRS addresses lead, and the names of the addresses that mail leaves from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable

import dns.reversename
import spf
from dns.exception import Timeout

from gatepost.admin.doctor.addresses import is_own, outgoing, passed_on, telling
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    again,
    edit,
    error,
    info,
    ok,
    unknown,
    warning,
)
from gatepost.relay import enumeration
from gatepost.relay.index import parse_address
from gatepost.service.client_names import tidy
from gatepost.service.exports import counted
from gatepost.service.rewriting import rewrites
from gatepost.service.snapshot import Snapshot, mint_domain, srs_domain_of
from gatepost.service.spf import Lookups

LIMIT = 50
"""So many domains are asked about."""
_THREADS = 8
_LEAST_S = 1.0
EXCHANGE_ONLINE = (".mail.protection.outlook.com", ".mx.microsoft")
"""How the names of its MX end."""


def srs_domains(snapshot: Snapshot) -> list[str]:
    """Return the domains in which this host makes SRS addresses: those for relayed mail, then those of mailboxes."""
    config = snapshot.config
    if not rewrites(snapshot) and not config.policyd.tcp_table_forward:
        return []
    upstream = snapshot.upstream_by_p1
    organizations = [upstream.organization] if upstream else list(snapshot.rules.organizations.values())
    found = [mint_domain(config, item) for item in organizations]
    for item in organizations if config.egress else []:
        for accepted in item.accepted_domains:
            domain = srs_domain_of(config, item, accepted.domain) or accepted.domain
            if upstream is None or upstream.takes(domain):
                found.append(domain)
    return list(dict.fromkeys(found))


def exchangers(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether bounces to SRS addresses are led to this host."""
    here = here_of(circumstances)

    def ask(domain: str, lookups: Lookups) -> list[Finding]:
        return [_mx(circumstances, domain, here, lookups)]

    yield from each(circumstances, srs_domains(circumstances.snapshot), ask)


@dataclass(frozen=True)
class Here:
    """What this host is known by in DNS. hidden: why its addresses are not known here, else ""."""

    name: str
    addresses: tuple[str, ...]
    hidden: str

    def is_called(self, name: str, addresses: Sequence[str]) -> bool:
        """Tell whether *name*, which has *addresses*, is this host."""
        return (name != "" and name == self.name) or any(item in self.addresses or is_own(item) for item in addresses)


def here_of(circumstances: Circumstances) -> Here:
    """Return this host as Postfix has it: its name, and the addresses before a NAT (proxy_interfaces), too."""
    sending = outgoing(circumstances)
    if not circumstances.has_postfix:
        return Here("", sending.addresses, sending.hidden)
    name = circumstances.postfix.expanded("myhostname").lower()
    outside = [str(item) for item in map(parse_address, circumstances.postfix.entries("proxy_interfaces")) if item]
    return Here(name, (*sending.addresses, *outside), "" if outside else sending.hidden)


def _mx(circumstances: Circumstances, domain: str, here: Here, lookups: Lookups) -> Finding:
    """Raises spf.TempError."""
    hosts = exchanges(domain, lookups)
    lost = "No bounce of mail with an SRS address in this domain comes back: its senders never hear of it."
    record = Edit(f"in DNS: {domain}. IN MX 10 {here.name or 'THIS-HOST'}.")
    if hosts == [""]:
        return error(f"{domain} takes no mail: its MX is null (RFC 7505)", lost, record)
    addresses = {host: addresses_of(host, lookups) for host in hosts or [domain]}
    if not any(addresses.values()):
        what = f"its MX {enumeration(hosts)} has no address" if hosts else "it has neither MX nor address"
        return error(f"{domain} gets no mail: {what}", f"{lost} Many receivers refuse such a sender, too.", record)
    mine = [host for host, items in addresses.items() if here.is_called(host, items)]
    if not mine:
        return _leads_elsewhere(circumstances, domain, here, addresses)
    if next(iter(addresses)) in mine:
        return ok(f"{domain}: its MX {enumeration(mine)} is this host")
    others = [host for host in addresses if host not in mine]
    return info(
        f"{domain}: its MX {enumeration(mine)} is this host, and {enumeration(others)} is not",
        "Bounces go there, too, and come back only if that host passes them on to this one, or runs gatepost with the "
        "same keys.",
    )


def _leads_elsewhere(
    circumstances: Circumstances, domain: str, here: Here, addresses: Mapping[str, Sequence[str]]
) -> Finding:
    hosts = enumeration([f"{host} ({', '.join(items) or 'no address'})" for host, items in addresses.items()])
    name = here.name or "THIS-HOST"
    exchange = next((host for host in addresses if host.endswith(EXCHANGE_ONLINE)), None)
    if exchange:
        accepted = circumstances.snapshot.rules.accepted(domain)
        where = f'[[organization]] "{accepted.organization.name}"' if accepted else "[[organization]]"
        return error(
            f"{domain}: its MX {exchange} is Exchange Online",
            "That makes SRS addresses of the same form with a key of its own, and takes this host's for forged: "
            "their bounces are refused there.",
            edit(circumstances, f'srs_domain = "srs.{domain}" in {where}'),
            Edit(f"in DNS: srs.{domain}. IN MX 10 {name}."),
        )
    if here.hidden:
        what = f"{domain}: whether its MX {hosts} is this host is not known: {here.hidden}"
        return unknown(what, "", *telling(circumstances))
    return warning(
        f"{domain}: its MX {hosts} is not this host",
        "Bounces come back only if that host passes mail for this domain on to this one, or runs gatepost with the "
        "same keys. Else their senders never hear of them.",
        Edit(f"in DNS: {domain}. IN MX 10 {name}."),
        f"{telling(circumstances)[0]}   # where it is this host's, before a NAT",
    )


def reverse_names(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether the names of the addresses that mail leaves from lead back to them."""
    if circumstances.config.upstream:
        return  # Exchange Online goes by its connector
    through = passed_on(circumstances)
    if through:
        yield ok(f"mail leaves through {through}, whose name counts")
        return
    sending = outgoing(circumstances)
    name = here_of(circumstances).name or "THIS-HOST"
    yield from each(circumstances, sending.addresses, lambda address, lookups: [_reverse_name(address, name, lookups)])
    if sending.hidden:
        yield unknown(f"the name of this host's address is not known: {sending.hidden}", "", *telling(circumstances))


def _reverse_name(address: str, name: str, lookups: Lookups) -> Finding:
    """*name*: what it could be. Raises spf.TempError."""
    zone_name = dns.reversename.from_address(address).to_text()
    names = sorted(tidy(name) for name in lookups.ask(zone_name, "PTR") if isinstance(name, str))
    why = "Large receivers refuse or delay mail from an address without a name that leads back to it."
    if not names:
        record = Edit(f"at your provider: {zone_name} IN PTR {name}.")
        return warning(f"{address} has no name (PTR record)", why, record)
    kind = "AAAA" if ":" in address else "A"
    for found in names:
        if address in lookups.ask(found, kind):
            return ok(f"{address} is {found}, and that leads back")
    return warning(
        f"{address} is {enumeration(names)}, which does not lead back to it",
        why,
        Edit(f"in DNS: {names[0]}. IN {kind} {address}"),
    )


def each(
    circumstances: Circumstances, names: Sequence[str], ask: Callable[[str, Lookups], list[Finding]]
) -> Iterator[Finding]:
    """Yield what *ask* finds for each of *names*, then those for which it raises spf.TempError."""
    deadline = time.monotonic() + circumstances.dns_left_s
    resolver = circumstances.resolver()

    def asked(name: str) -> tuple[list[Finding], str]:
        try:
            return ask(name, Lookups(resolver, deadline)), ""
        except spf.TempError as failure:
            return [], "no answer in time" if isinstance(failure.__cause__, Timeout) else str(failure)

    with ThreadPoolExecutor(_THREADS, "doctor") as pool:
        results = list(pool.map(asked, names[:LIMIT]))
    # One domain that is silent must not keep the next check from asking about others.
    circumstances.dns_left_s = max(_LEAST_S, deadline - time.monotonic())
    for found, _ in results:
        yield from found
    silent = {name: why for name, (_, why) in zip(names, results) if why}
    if silent:
        yield unknown(
            f"DNS does not tell of {enumeration(list(silent))}: {next(iter(silent.values()))}",
            "",
            f"{again(circumstances)}   # once DNS answers; [dns] nameservers in gatepost.toml names other servers",
        )
    if len(names) > LIMIT:
        yield info(f"{counted(len(names) - LIMIT, 'domain')} more: only the first {LIMIT} were asked about")


def exchanges(domain: str, lookups: Lookups) -> list[str]:
    """Return the MX of *domain*, the preferred one first; [""]: the null MX. Raises spf.TempError."""
    return [tidy(name) for _, name in sorted(item for item in lookups.ask(domain, "MX") if isinstance(item, tuple))]


def addresses_of(host: str, lookups: Lookups) -> list[str]:
    """Return the addresses of *host*. Raises spf.TempError."""
    found = [*lookups.ask(host, "A"), *lookups.ask(host, "AAAA")]
    return [item for item in found if isinstance(item, str)]


CHECKS = (
    Check("mx", "DNS", exchangers),
    Check("reverse-name", "DNS", reverse_names),
)
