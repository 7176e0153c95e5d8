# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of domains and networks: whether Postfix and gatepost agree on what is inside, and on whose hosts relay."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional, Union

from gatepost.admin.config_commands import toml
from gatepost.admin.doctor import postfix_entries as entries
from gatepost.admin.doctor.model import (
    Check,
    Circumstances,
    Edit,
    Finding,
    command,
    edit,
    error,
    info,
    ok,
    reload_daemons,
    warning,
)
from gatepost.admin.doctor.postfix import topology
from gatepost.admin.doctor.postfix_entries import REVERSE, postconf
from gatepost.admin.postfix.config import Service, split
from gatepost.admin.postfix.relaying import (
    GUARDS,
    RELAY_LISTS,
    Restriction,
    everything_inside,
    restrictions,
    verdict,
    wide_networks,
)
from gatepost.admin.postfix.tables import DOMAIN_LISTS, Tables, domain_list, is_table, listed_domains
from gatepost.admin.postfix.wiring import Topology
from gatepost.relay import normalize_domain
from gatepost.service.snapshot import mint_domain

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
_ASKED = 200
"""For so many domains tables are asked, some milliseconds each."""
_NAMED = 8
"""So many names are told; then, how many more there are."""


# Domains


def local_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether gatepost takes for inside all domains that Postfix delivers, or relays on its own account."""
    config, rules = circumstances.config, circumstances.snapshot.rules
    if not _rule_applies(circumstances):
        return
    tables = entries.tables(circumstances)
    missing: dict[str, str] = {}
    for name in DOMAIN_LISTS:
        for domain, listed in listed_domains(tables, name):
            if not listed:
                yield _hidden(circumstances, name, domain)
                continue
            normal = normalize_domain(domain)
            if normal and not rules.inside(normal):
                missing.setdefault(normal, name)
    if missing:
        kind = error if circumstances.snapshot.enforces_at_all else warning
        wanted = (*config.relay.local_domains, *missing)
        yield kind(
            f"in Postfix, and not inside for gatepost: {_some([f'{key} ({name})' for key, name in missing.items()])}",
            "Mail to them is judged as mail to outside: from hosts that are no connector's it is refused, in mode "
            "enforce, and elsewhere its sender may be rewritten.",
            edit(circumstances, f"[relay] local_domains = {toml(wanted)}"),
            reload_daemons(circumstances),
        )
    else:
        yield ok("every domain of Postfix is inside for gatepost")


def _rule_applies(circumstances: Circumstances) -> bool:
    """Tell whether anything here asks who relays for whom; canonical maps alone do not."""
    return bool(circumstances.config.organizations) and topology(circumstances) is not Topology.POSTSRSD_REPLACEMENT


def _hidden(circumstances: Circumstances, name: str, table: str) -> Finding:
    return info(
        f"{name} has {table}, which cannot be listed",
        "Each of its domains must be an accepted domain or in relay.local_domains, or mail to it is judged as mail to "
        "outside.",
        command(circumstances, "check --mail-from a@example.com --rcpt postmaster@DOMAIN"),
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def srs_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix takes mail for the domains in which SRS addresses are made."""
    config, snapshot = circumstances.config, circumstances.snapshot
    if not topology(circumstances).has_milter:
        return
    tables = entries.tables(circumstances)
    minting = {mint_domain(config, item) for item in config.organizations.values()} | set(snapshot.srs_domains)
    refused = [domain for domain in sorted(minting) if domain_list(tables, domain) is None]
    for domain in refused:
        declared = domain in snapshot.srs_domains
        parameter = "virtual_alias_domains" if declared else "relay_domains"
        value = circumstances.postfix.expanded(parameter)
        ours = {item.text: "" for item in entries.lookups(value) if entries.is_map(circumstances, item, REVERSE)}
        yield warning(
            f"{domain}, in which SRS addresses are made, is in none of {', '.join(DOMAIN_LISTS)}",
            "Where its MX leads here, bounces from outside are refused: Relay access denied.",
            *postconf(circumstances, parameter, entries.edited(circumstances.postfix, parameter, ours, last=domain)),
        )
    if minting and not refused:
        yield ok(f"Postfix takes bounces for {_some(sorted(minting))}")


def accepted_domains(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether mail to accepted domains stays off the egress hop."""
    if circumstances.config.egress is None:
        return
    tables = entries.tables(circumstances)
    config = circumstances.config
    accepted = [item for organization in config.organizations.values() for item in organization.accepted_domains]
    domains = [item.domain for item in accepted]
    unlisted = _not_listed(tables, domains)
    if len(unlisted) > _ASKED:
        yield info(f"only {_ASKED} of {len(unlisted)} accepted domains were looked at: tables cannot be listed")
    outside = [domain for domain in unlisted[:_ASKED] if not _kept(tables, domain)]
    subdomains = [f".{item.domain}" for item in accepted[:_ASKED] if item.match_subdomains]
    subdomains = [name for name in subdomains if not _kept(tables, f"gatepost{name}")]
    local = [domain for domain in config.relay.local_domains[:_ASKED] if "." in domain and not _kept(tables, domain)]
    for kind, names in ((warning, subdomains), (info, local)):
        if names:
            yield kind(
                f"inside for gatepost, and reached by default_transport or relayhost only: {_some(names)}",
                "Mail to them takes the egress hop, as mail to outside does, and arrives with a rewritten sender.",
                Edit("list them in relay_domains, or give them a way of their own in transport_maps"),
            )
    if outside:
        more = ", ".join(outside)
        yield error(
            f"accepted domains that Postfix reaches by default_transport or relayhost only: {_some(outside)}",
            "Mail to them takes the egress hop, as mail to outside does, and arrives with a rewritten sender.",
            *postconf(
                circumstances, "relay_domains", entries.edited(circumstances.postfix, "relay_domains", {}, last=more)
            ),
        )
    elif domains and not subdomains:
        yield ok("accepted domains stay off the egress hop")


def _not_listed(tables: Tables, domains: Sequence[str]) -> list[str]:
    """Return those of *domains* that no list of Postfix's names outright; for the rest its tables must be asked."""
    listed = {domain for name in DOMAIN_LISTS for domain, shown in listed_domains(tables, name) if shown}
    return [domain for domain in domains if domain not in listed]


def _kept(tables: Tables, domain: str) -> bool:
    """Tell whether *domain* stays off the hop: Postfix keeps it, or has a way of its own in transport_maps."""
    if domain_list(tables, domain):
        return True
    keys = [domain, *(f".{domain.split('.', at)[at]}" for at in range(1, domain.count(".") + 1))]
    return any(tables.query(table, key) for table in tables.config.entries("transport_maps") for key in keys)


# Networks


def networks(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix and gatepost let the same hosts relay."""
    if not _rule_applies(circumstances):
        return
    listed = circumstances.postfix.entries("mynetworks")
    wide = wide_networks(circumstances.postfix, listed)  # nobody's network: the check open-relay says so
    permitted, hidden = _networks(entry for entry in listed if entry not in wide)
    connectors = _connectors(circumstances)
    found = [
        *_unknown_to_postfix(circumstances, connectors, permitted, hidden),
        *_wider(circumstances, permitted, connectors),
    ]
    yield from found
    for entry in hidden:
        yield info(f"mynetworks has {entry}, whose networks are not compared with connectors")
    if not found:
        yield ok("mynetworks and the connectors' addresses agree")


def _connectors(circumstances: Circumstances) -> list[tuple[str, Network]]:
    """Return the connectors' networks, with their names."""
    return [
        (connector.name, network)
        for item in circumstances.config.organizations.values()
        for connector in item.connectors
        if connector.enabled
        for network in connector.sender_ip_addresses
    ]


def lets_connectors_relay(circumstances: Circumstances, service: Service) -> bool:
    """Tell whether mynetworks as *service* has it covers all connectors: none is for certificates."""
    permitted, hidden = _networks(circumstances.postfix.effective_entries(service, "mynetworks"))
    organizations = circumstances.config.organizations.values()
    by_name = any(item.enabled and item.tls_sender_certificate_name for org in organizations for item in org.connectors)
    covered = all(_covers(permitted, network) for _, network in _connectors(circumstances))
    return not by_name and (covered or bool(hidden))


def _unknown_to_postfix(
    circumstances: Circumstances,
    connectors: Sequence[tuple[str, Network]],
    permitted: Sequence[Network],
    hidden: Sequence[str],
) -> Iterator[Finding]:
    """Yield connectors whose hosts Postfix does not let relay, where policyd does not do that."""
    if circumstances.config.relay.enforced_by == "policyd" or hidden:
        return
    without = [(name, network) for name, network in connectors if not _covers(permitted, network)]
    if without:
        more = ", ".join(_written(network) for _, network in without)
        added = entries.edited(circumstances.postfix, "mynetworks", {}, last=more)
        yield warning(
            f"addresses of connectors that mynetworks lacks: {_some([f'{item} ({name})' for name, item in without])}",
            "Postfix refuses to relay for these hosts, whatever gatepost says, unless they authenticate or show a "
            "certificate.",
            *postconf(circumstances, "mynetworks", added),
        )


def _wider(
    circumstances: Circumstances, permitted: Sequence[Network], connectors: Sequence[tuple[str, Network]]
) -> Iterator[Finding]:
    """Yield networks of Postfix' own that are no connector's."""
    of_connectors = [network for _, network in connectors]
    wider = [network for network in permitted if not _covers(of_connectors, network)]
    why = (
        "No connector is for these hosts: what they send to outside with an accepted sender domain is refused in mode "
        "enforce; with another one Postfix relays it, and no SRS makes it pass SPF."
    )
    hosts = [network for network in wider if not network.is_loopback]
    if hosts:
        yield warning(
            f"networks in mynetworks that no connector covers entirely: {_some(list(map(str, hosts)))}",
            why,
            edit(circumstances, f"[[organization.connector]] sender_ip_addresses = {toml(tuple(map(str, hosts)))}"),
        )
    elif wider and not any(network.is_loopback for network in of_connectors):
        yield info(
            f"no connector is for this host's own programs: {_some(list(map(str, wider)))} in mynetworks",
            "What they send to outside by SMTP to localhost is judged as any host's; sendmail(1) is not affected.",
            edit(circumstances, '[[organization.connector]] sender_ip_addresses = ["127.0.0.1", "::1"]'),
        )


def _networks(listed: Iterable[str]) -> tuple[list[Network], list[str]]:
    """Return the networks in mynetworks, and its entries that are tables, files or exceptions."""
    found: list[Network] = []
    hidden = []
    for entry in listed:
        try:
            found.append(_unmapped(ipaddress.ip_network(entry.replace("[", "").replace("]", ""), strict=False)))
        except ValueError:
            hidden.append(entry)
    return list(dict.fromkeys(found)), hidden


def _unmapped(network: Network) -> Network:
    """Return the IPv4 network that `::ffff:127.0.0.0/104` is, or *network* itself."""
    first = network.network_address
    if isinstance(first, ipaddress.IPv6Address) and first.ipv4_mapped and network.prefixlen >= 96:
        return ipaddress.ip_network(f"{first.ipv4_mapped}/{network.prefixlen - 96}")
    return network


def _covers(networks: Sequence[Network], inner: Network) -> bool:
    """Tell whether *networks* cover *inner* together: 192.0.2.0/29 and 192.0.2.8/29 are 192.0.2.0/28."""
    found: list[Network] = []
    found += ipaddress.collapse_addresses(item for item in networks if isinstance(item, ipaddress.IPv4Network))
    found += ipaddress.collapse_addresses(item for item in networks if isinstance(item, ipaddress.IPv6Network))
    return any(_within(inner, outer) for outer in found)


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, ipaddress.IPv4Network) and isinstance(outer, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, ipaddress.IPv6Network) and isinstance(outer, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


def _written(network: Network) -> str:
    return f"[{network.network_address}]/{network.prefixlen}" if network.version == 6 else str(network)


# Open relays


def open_relay(circumstances: Circumstances) -> Iterator[Finding]:
    """Whether Postfix relays for strangers."""
    services = entries.ingress(circumstances)
    found = list(_everybody(circumstances, None))
    for service in services:
        if "mynetworks" in service.overrides:
            found += _everybody(circumstances, service)
        found += _unguarded(circumstances, service)
    for name, entry in everything_inside(entries.tables(circumstances).config):
        found.append(
            error(
                f"{name} has {entry}, which says yes to every domain",
                "Each recipient is taken for one of yours: Postfix relays for everybody, and no mail is outside.",
                Edit(f"list your own domains in {name}"),
            )
        )
    yield from found
    if not found:
        yield ok("Postfix does not relay for strangers")


def _everybody(circumstances: Circumstances, service: Optional[Service]) -> Iterator[Finding]:
    postfix, name = circumstances.postfix, "mynetworks"
    wide = wide_networks(postfix, split(entries.seen(postfix, service, name)))
    if not wide:
        return
    tables = [entry for entry in wide if is_table(entry) or entry.startswith("/")]
    networks = [entry for entry in wide if entry not in tables]
    remedy: list[str] = [Edit(f"take what is for everybody out of {entry}") for entry in tables]
    if networks:
        kept = entries.edited(postfix, name, dict.fromkeys(networks, ""), service) or "127.0.0.0/8, [::1]/128"
        remedy += postconf(circumstances, name, kept, service)
    yield error(
        f"{f'{service.key}: ' if service else ''}mynetworks has {', '.join(wide)}",
        "Postfix relays for strangers. gatepost leaves alone what no connector and no accepted sender "
        "domain is meant by, so it does not stop that.",
        *remedy,
    )


_GUARD = "reject_unauth_destination"


def _unguarded(circumstances: Circumstances, service: Service) -> Iterator[Finding]:
    """Yield a finding where none of the lists refuses strangers."""
    postfix, name = circumstances.postfix, RELAY_LISTS[0]
    if any(_refuses(verdict(postfix, service, item)) for item in RELAY_LISTS):
        return
    open_to_all = verdict(postfix, service, name)
    value = postfix.effective(service, name)
    gone = {str(open_to_all): ""} if open_to_all else {}
    new = entries.edited(postfix, name, gone, service, last=_GUARD)
    if new == _GUARD:
        new = f"permit_mynetworks, permit_sasl_authenticated, {_GUARD}"
    remedy = postconf(circumstances, name, new, service)
    if not any(item.name in GUARDS for name in RELAY_LISTS for item in restrictions(postfix, service, name)):
        yield error(
            f'{service.key}: smtpd_relay_restrictions = "{value}", and neither it nor smtpd_recipient_restrictions has '
            "reject_unauth_destination",
            "smtpd does not start so, and no mail comes in.",
            *remedy,
        )
        return
    yield error(
        f'{service.key}: smtpd_relay_restrictions = "{value}" and smtpd_recipient_restrictions let everybody relay',
        "Nothing refuses mail to outside from strangers: an open relay, which is abused within hours.",
        *remedy,
    )


def _refuses(restriction: Optional[Restriction]) -> bool:
    return restriction is not None and restriction.name in GUARDS


CHECKS = (
    Check("local-domains", "Postfix", local_domains),
    Check("srs-domains-in-postfix", "Postfix", srs_domains),
    Check("accepted-domains-in-postfix", "Postfix", accepted_domains),
    Check("networks", "Postfix", networks),
    Check("open-relay", "Postfix", open_relay),
)
